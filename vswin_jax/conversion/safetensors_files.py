"""Tensors of a .safetensors file, mapped into memory."""

import json
import math

import ml_dtypes
import numpy as np

from vswin_jax.conversion.file_errors import DAMAGED, MOST_AXES, FileError, is_count

# Room for a hundred thousand tensors; what JSON of this length becomes stays below a gigabyte.
LONGEST_HEADER = 16 * 2**20

_LENGTH_BYTES = 8
_LONGEST_NAME = 200

_DTYPES = {
  "F64": np.dtype("<f8"),
  "F32": np.dtype("<f4"),
  "F16": np.dtype("<f2"),
  "BF16": np.dtype(ml_dtypes.bfloat16),
  "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
  "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
  "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
  "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
  "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
  "C64": np.dtype("<c8"),
  "I64": np.dtype("<i8"),
  "I32": np.dtype("<i4"),
  "I16": np.dtype("<i2"),
  "I8": np.dtype("i1"),
  "U64": np.dtype("<u8"),
  "U32": np.dtype("<u4"),
  "U16": np.dtype("<u2"),
  "U8": np.dtype("u1"),
  "BOOL": np.dtype("?"),
}


def looks_like_safetensors(head: bytes) -> bool:
  """Whether a file that starts like this, and is no text, is meant to be a .safetensors file."""
  return head[_LENGTH_BYTES : _LENGTH_BYTES + 1] == b"{"


def read_safetensors(file: np.ndarray) -> dict[str, np.ndarray]:
  """The tensors of a file by name, as views of it; the text under `__metadata__` is left out.

  Args:
    file: uint8 `[bytes]`, all of the file.

  Raises:
    FileError: the header lies, or a dtype is unknown.
  """
  length = int.from_bytes(file[:_LENGTH_BYTES].tobytes(), "little")
  start = _LENGTH_BYTES + length
  if start > len(file):
    raise FileError(
      f"a .safetensors file cut off: its header should have {length} bytes, the whole file has "
      f"{len(file)}; download it again"
    )
  if length > LONGEST_HEADER:
    raise FileError(f"the header has {length} bytes, expected at most {LONGEST_HEADER}; {DAMAGED}")
  header = _parse_header(file[_LENGTH_BYTES:start].tobytes())
  header.pop("__metadata__", None)
  data = file[start:]
  ranges = {name: _check_entry(name, entry) for name, entry in header.items()}
  expected = 0
  for name, (begin, end) in sorted(ranges.items(), key=lambda item: item[1]):
    if begin != expected:
      raise FileError(
        f"tensor {_short(name)} starts at byte {begin} of the data, expected {expected}, where the "
        f"one before ends; {DAMAGED}"
      )
    expected = end
  if expected != len(data):
    raise FileError(
      f"a .safetensors file cut off or damaged: its tensors should have {expected} bytes, the file "
      f"has {len(data)} for them; download it again"
    )
  return {
    name: np.ndarray(
      entry["shape"], _DTYPES[entry["dtype"]], buffer=data[ranges[name][0] : ranges[name][1]]
    )
    for name, entry in header.items()
  }


def _parse_header(text: bytes) -> dict:
  def refuse_duplicates(pairs: list) -> dict:
    entries = dict(pairs)
    if len(entries) != len(pairs):
      raise ValueError("a name occurs twice")
    return entries

  try:
    header = json.loads(text.decode("utf-8"), object_pairs_hook=refuse_duplicates)
  except (ValueError, RecursionError) as error:
    raise FileError(f"the header is no valid JSON ({type(error).__name__}); {DAMAGED}") from error
  if type(header) is not dict:
    raise FileError(f"the header is no JSON object; {DAMAGED}")
  return header


def _check_entry(name: str, entry: object) -> tuple[int, int]:
  """Checks what the header says of a tensor by itself; returns where its bytes are."""
  match entry:
    case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [begin, end]}:
      pass
    case _:
      raise FileError(f"tensor {_short(name)} has no dtype, shape or place; {DAMAGED}")
  if dtype not in _DTYPES:
    raise FileError(
      f"tensor {_short(name)} has the unknown dtype {_short(dtype)}, expected one of "
      f"{', '.join(_DTYPES)}; save it in one of them"
    )
  if len(shape) > MOST_AXES:
    raise FileError(
      f"tensor {_short(name)} has {len(shape)} axes, more than {MOST_AXES}; {DAMAGED}"
    )
  if not all(map(is_count, (*shape, begin, end))):
    raise FileError(f"tensor {_short(name)} has a size or place that is no count; {DAMAGED}")
  if end - begin != math.prod(shape) * _DTYPES[dtype].itemsize:
    raise FileError(
      f"tensor {_short(name)} has {end - begin} bytes, which is not what {dtype} "
      f"{str(shape)[:_LONGEST_NAME]} takes; {DAMAGED}"
    )
  return begin, end


def _short(text: str) -> str:
  """Text of the file as part of a message of one line."""
  return ascii(text[:_LONGEST_NAME])
