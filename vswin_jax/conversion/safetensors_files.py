"""Tensors of a .safetensors file as views of the mapped file."""

import json
import os

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from vswin_jax.conversion.file_errors import DAMAGED, FileError

# Room for a hundred thousand tensors; reading such a header takes less than 1 GB.
LONGEST_HEADER = 16 * 2**20

_LENGTH_BYTES = 8
_LONGEST_MESSAGE = 200

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
  """Whether a file that starts with `head`, and is no text, is meant to be a .safetensors file."""
  return head[_LENGTH_BYTES : _LENGTH_BYTES + 1] == b"{"


def read_safetensors(path: str | os.PathLike, file: np.ndarray) -> dict[str, np.ndarray]:
  """Returns the tensors of a file by name, as views of `file`; `__metadata__` is left out.

  Args:
    file: uint8 `[bytes]`, the contents of the file at `path`.

  Raises:
    FileError: the file is damaged, or a dtype is unknown.
  """
  length = int.from_bytes(file[:_LENGTH_BYTES].tobytes(), "little")
  start = _LENGTH_BYTES + length
  if LONGEST_HEADER < length <= len(file):
    raise FileError(f"the header has {length} bytes, expected at most {LONGEST_HEADER}; {DAMAGED}")
  try:
    # The library checks the header; its arrays would be copies, and it has no bfloat16 in numpy.
    with safe_open(path, framework="numpy"):
      pass
    header = json.loads(file[_LENGTH_BYTES:start].tobytes(), object_pairs_hook=_unique)
  except (SafetensorError, ValueError) as error:
    reason = ascii(str(error)[:_LONGEST_MESSAGE])[1:-1]
    raise FileError(f"not a valid .safetensors file ({reason}); {DAMAGED}") from error
  header.pop("__metadata__", None)
  return {name: _view(file[start:], name, **entry) for name, entry in header.items()}


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
  entries = dict(pairs)
  if len(entries) != len(pairs):
    raise ValueError("a name occurs twice in its header")
  return entries


def _view(data: np.ndarray, name: str, dtype: str, shape, data_offsets) -> np.ndarray:
  if dtype not in _DTYPES:
    raise FileError(
      f"tensor {name[:_LONGEST_MESSAGE]!a} has the dtype {dtype}, expected one of "
      f"{', '.join(_DTYPES)}; save it in one of them"
    )
  begin, end = data_offsets
  return np.ndarray(shape, _DTYPES[dtype], buffer=data[begin:end])
