"""Tensors of a .safetensors file as views of the mapped file."""

import json
import os

import numpy as np
from safetensors import SafetensorError, safe_open

from vswin_jax.conversion.formats import DAMAGED, SAFETENSORS_DTYPES, FileError

# Room for a hundred thousand tensors; reading such a header takes less than 1 GB.
LONGEST_HEADER = 16 * 2**20

_LENGTH_BYTES = 8
_LONGEST_MESSAGE = 200


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
  if dtype not in SAFETENSORS_DTYPES:
    raise FileError(
      f"tensor {name[:_LONGEST_MESSAGE]!a} has the dtype {dtype}, expected one of "
      f"{', '.join(SAFETENSORS_DTYPES)}; save it in one of them"
    )
  begin, end = data_offsets
  return np.ndarray(shape, SAFETENSORS_DTYPES[dtype], buffer=data[begin:end])
