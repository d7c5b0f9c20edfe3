"""Errors, limits and dtypes shared by the readers of weight files."""

import ml_dtypes
import numpy as np

# Limit of numpy.
MOST_AXES = 64
DAMAGED = "the file is damaged; download or save it again"

# Dtype, its name in .safetensors files, and its storage class in PyTorch; None: it has none.
_DTYPES = (
  ("float64", "F64", "DoubleStorage"),
  ("float32", "F32", "FloatStorage"),
  ("float16", "F16", "HalfStorage"),
  ("bfloat16", "BF16", "BFloat16Storage"),
  ("float8_e4m3fn", "F8_E4M3", None),
  ("float8_e4m3fnuz", "F8_E4M3FNUZ", None),
  ("float8_e5m2", "F8_E5M2", None),
  ("float8_e5m2fnuz", "F8_E5M2FNUZ", None),
  ("float8_e8m0fnu", "F8_E8M0", None),
  ("complex64", "C64", "ComplexFloatStorage"),
  ("complex128", None, "ComplexDoubleStorage"),
  ("int64", "I64", "LongStorage"),
  ("int32", "I32", "IntStorage"),
  ("int16", "I16", "ShortStorage"),
  ("int8", "I8", "CharStorage"),
  ("uint64", "U64", None),
  ("uint32", "U32", None),
  ("uint16", "U16", None),
  ("uint8", "U8", "ByteStorage"),
  ("bool", "BOOL", "BoolStorage"),
)
DTYPES = {name: np.dtype(getattr(ml_dtypes, name, name)) for name, _, _ in _DTYPES}
SAFETENSORS_DTYPES = {short: DTYPES[name] for name, short, _ in _DTYPES if short}
STORAGE_DTYPES = {storage: DTYPES[name] for name, _, storage in _DTYPES if storage} | {
  "UntypedStorage": DTYPES["uint8"],
  "_UntypedStorage": DTYPES["uint8"],
  # Quantized tensors become placeholders, but the legacy format requires their size.
  "QInt8Storage": DTYPES["int8"],
  "QUInt8Storage": DTYPES["uint8"],
  "QInt32Storage": DTYPES["int32"],
  "QUInt4x2Storage": DTYPES["uint8"],
  "QUInt2x4Storage": DTYPES["uint8"],
}


class FileError(ValueError):
  """Raised when a file can't be read; the message is one line."""


def is_count(value: object) -> bool:
  """Returns whether a value is an int that can count elements or bytes."""
  return type(value) is int and 0 <= value < 2**62
