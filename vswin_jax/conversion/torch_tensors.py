"""PyTorch tensors as numpy views of their storages."""

import dataclasses
import math

import numpy as np

from vswin_jax.conversion.formats import (
  DAMAGED,
  DTYPES,
  MOST_AXES,
  STORAGE_DTYPES,
  FileError,
  is_count,
)
from vswin_jax.conversion.pickles import Placeholder

# Limits on expanded tensors: times the elements of their storage, and elements beyond that.
_MAX_REPEATS = 16
_MAX_EXTRA = 2**24
_MAX_ARGUMENTS = 16
# Keys of storages are numbers in decimal.
_LONGEST_STORAGE_KEY = 100

CONSTANTS = {f"torch.{name}": dtype for name, dtype in DTYPES.items()}


@dataclasses.dataclass(frozen=True)
class StorageId:
  """Description of a storage in a pickle; dtype None: unknown; counts are in elements."""

  kind: str
  dtype: np.dtype | None
  key: str
  count: int
  view: object

  @property
  def nbytes(self) -> int:
    return self.count * self.dtype.itemsize


def has_kind(saved_id: object, kind: str) -> bool:
  """Returns whether a persistent id is of this kind, without comparing tensors."""
  is_id = type(saved_id) is tuple and len(saved_id) > 1 and type(saved_id[0]) is str
  return is_id and saved_id[0] == kind


def parse_storage_id(saved_id: object) -> StorageId:
  """Parses the persistent id of a storage; raises FileError for any other object."""
  match saved_id if has_kind(saved_id, "storage") else None:
    case (_, Placeholder() as kind, str(key), _, count, *view) if len(view) < 2:
      pass
    case _:
      raise FileError(f"its pickle refers to an object that is not a storage; {DAMAGED}")
  if not is_count(count) or len(key) > _LONGEST_STORAGE_KEY:
    raise FileError(f"its pickle describes an impossible storage; {DAMAGED}")
  package, _, name = kind.name.rpartition(".")
  dtype = STORAGE_DTYPES.get(name) if package.partition(".")[0] == "torch" else None
  return StorageId(kind.name, dtype, key, count, view[0] if view else None)


def _view(storage, offset, shape, strides, dtype=None, metadata=None) -> np.ndarray | Placeholder:
  """Returns a tensor as a view of its storage; offset and strides are in elements."""
  if isinstance(storage, Placeholder) or isinstance(dtype, Placeholder):
    return Placeholder("torch.Tensor")
  if type(metadata) is dict and any(metadata.get(name) is True for name in ("conj", "neg")):
    return Placeholder("torch.Tensor (conjugated or negated lazily)")
  if not isinstance(storage, np.ndarray) or not storage.flags.c_contiguous:
    raise FileError(f"a tensor in it has no storage; {DAMAGED}")
  if len(shape) > MOST_AXES:
    raise FileError(f"a tensor in it has {len(shape)} axes, more than {MOST_AXES}; {DAMAGED}")
  if len(shape) != len(strides) or not all(map(is_count, (offset, *shape, *strides))):
    raise FileError(f"a tensor in it has an impossible shape; {DAMAGED}")
  dtype = storage.dtype if dtype is None else dtype
  held = storage.nbytes // dtype.itemsize
  count = math.prod(shape)
  if count == 0:
    offset = 0
  elif offset + sum((size - 1) * stride for size, stride in zip(shape, strides)) >= held:
    raise FileError(f"a tensor in it goes beyond its storage of {held} elements; {DAMAGED}")
  if count > _MAX_REPEATS * held + _MAX_EXTRA:
    raise FileError(
      f"a tensor in it repeats a storage of {held} elements far too often, which would fill the "
      "memory; save it with .contiguous()"
    )
  return np.ndarray(
    tuple(shape),
    dtype,
    buffer=storage.view(np.uint8),
    offset=offset * dtype.itemsize,
    strides=tuple(stride * dtype.itemsize for stride in strides),
  )


def _rebuild_v2(storage, offset, shape, strides, requires_grad=False, hooks=None, metadata=None):
  return _view(storage, offset, shape, strides, None, metadata)


def _rebuild_v3(storage, offset, shape, strides, requires_grad, hooks, dtype, metadata=None):
  if not isinstance(dtype, np.dtype | Placeholder):
    raise FileError(f"a tensor in it has no dtype; {DAMAGED}")
  return _view(storage, offset, shape, strides, dtype, metadata)


def _rebuild_parameter(data, requires_grad=True, hooks=None, state=None):
  if not isinstance(data, np.ndarray | Placeholder):
    raise FileError(f"a parameter in it is not a tensor; {DAMAGED}")
  return data


def _rebuild_with_attributes(function, kind, arguments, state):
  """Rebuilds tensors with Python attributes; other subclasses of tensors become placeholders."""
  plain = kind.name in ("torch.Tensor", "torch.nn.parameter.Parameter")
  if plain and function.name in _REBUILD and len(arguments) <= _MAX_ARGUMENTS:
    return _REBUILD[function.name](*arguments)
  return Placeholder(kind.name)


def _make_size(sizes=()) -> tuple:
  if type(sizes) is not tuple:
    raise FileError(f"a torch.Size in it is not a tuple; {DAMAGED}")
  return sizes


def _make_device(kind, index=None) -> str:
  if type(kind) is not str or len(kind) > 100 or not (index is None or is_count(index)):
    raise FileError(f"a torch.device in it is not valid; {DAMAGED}")
  return kind if index is None else f"{kind}:{index}"


_REBUILD = {
  "torch._utils._rebuild_tensor": _view,
  "torch._utils._rebuild_tensor_v2": _rebuild_v2,
  "torch._utils._rebuild_tensor_v3": _rebuild_v3,
  "torch._utils._rebuild_parameter": _rebuild_parameter,
  "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
}
CALLS = _REBUILD | {
  "torch._tensor._rebuild_from_type_v2": _rebuild_with_attributes,
  "torch.tensor._rebuild_from_type_v2": _rebuild_with_attributes,
  "torch.Size": _make_size,
  "torch.device": _make_device,
}
