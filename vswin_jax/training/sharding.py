"""Where arrays live: a mesh of devices and the shardings laid over batches and states.

Models know nothing of this. Batches are cut along their first axis over all devices; parameters
are replicated along the mesh axis "data" and cut along the axis "fsdp".
"""

import itertools
import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXES = ("data", "fsdp")

# Smaller arrays are replicated: cutting them costs more messages than it saves memory.
_SMALLEST_SHARDED_SIZE = 2**14


def make_mesh(fsdp: int = 1, devices: Sequence[jax.Device] | None = None, slices: int = 0) -> Mesh:
  """A mesh of all devices: groups of `fsdp` share one copy of the parameters.

  Slices are devices joined by a fast network; between slices runs a slower one. Groups lie within a
  slice, so only sums of gradients go from slice to slice.

  Args:
    devices: None: those of all processes.
    slices: how many there are, of equal size; 0: as the devices say.

  Raises:
    ValueError: the devices can't be divided so.
  """
  devices = jax.devices() if devices is None else list(devices)
  found = _slices_of(devices)
  count = slices or len(found)
  if count < 1 or len(devices) % count:
    raise ValueError(
      f"mesh.slices is {slices}; it must divide the {len(devices)} devices, or be 0 to take them "
      f"as they say ({len(found)})"
    )
  size = len(devices) // count
  if fsdp < 1 or size % fsdp:
    where = f" in each of {count} slices" if count > 1 else ""
    raise ValueError(
      f"{size} devices{where} can't form groups of {fsdp} for fsdp; mesh.fsdp must divide {size}"
    )
  shape = (size // fsdp, fsdp)
  if count == len(found) > 1:
    grid = mesh_utils.create_hybrid_device_mesh(
      shape, (count, 1), devices, allow_split_physical_axes=True
    )
  elif count > 1:
    grid = np.asarray(list(itertools.chain(*found))).reshape(count * shape[0], fsdp)
  else:
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 2, devices=devices)
  return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * 2)


def _slices_of(devices: Sequence[jax.Device]) -> list[list[jax.Device]]:
  def number(device) -> int:
    return getattr(device, "slice_index", None) or 0

  by_slice = itertools.groupby(sorted(devices, key=number), key=number)
  return [list(group) for _, group in by_slice]


def batch_sharding(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, P(AXES))


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, P())


def state_shardings(mesh: Mesh, state):
  """Shardings for a tree of shapes: the longest axis that "fsdp" divides is cut along it.

  The rule sees shapes alone, so optimizer moments and averages lie where their parameter does.
  """
  groups = mesh.shape["fsdp"]

  def sharding(leaf) -> NamedSharding:
    if groups == 1 or math.prod(leaf.shape) < _SMALLEST_SHARDED_SIZE:
      return replicated(mesh)
    divisible = [axis for axis, size in enumerate(leaf.shape) if size % groups == 0]
    if not divisible:
      return replicated(mesh)
    longest = max(divisible, key=lambda axis: leaf.shape[axis])
    return NamedSharding(mesh, P(*[None] * longest, "fsdp"))

  return jax.tree.map(sharding, state)


def local_rows(sharding: NamedSharding, batch_size: int) -> list[int]:
  """Which rows of a global batch lie on the devices of this process, in rising order."""
  parts = sharding.addressable_devices_indices_map((batch_size,)).values()
  return sorted({row for (part,) in parts for row in range(*part.indices(batch_size))})


def put_batch(batch: dict[str, np.ndarray], sharding: NamedSharding) -> dict[str, jax.Array]:
  """Sends this host's part of a batch, its `local_rows`, to its devices, as parts of global
  arrays."""
  local_size = len(next(iter(batch.values())))
  batch_size = local_size * len(sharding.device_set) // len(sharding.addressable_devices)
  first_places = {row: place for place, row in enumerate(local_rows(sharding, batch_size))}

  def put(array: np.ndarray) -> jax.Array:
    def part(index):
      start, stop, _ = index[0].indices(batch_size)
      place = first_places[start]
      return array[place : place + stop - start]

    return jax.make_array_from_callback((batch_size, *array.shape[1:]), sharding, part)

  return jax.tree.map(lambda array: put(np.asarray(array)), batch)


def check_batch_size(batch_size: int, mesh: Mesh, what: str, multiple: int = 1) -> None:
  """Raises ValueError unless every device gets the same number of clips."""
  needed = mesh.size * multiple
  if batch_size < 1 or batch_size % needed:
    raise ValueError(
      f"{what} is {batch_size}; with {mesh.size} devices"
      + (f" and {multiple} accumulated parts" if multiple > 1 else "")
      + f" it must be a multiple of {needed}"
    )


def round_up(batch_size: int, mesh: Mesh) -> int:
  """The next batch size of which every device gets the same number of clips."""
  return -(-batch_size // mesh.size) * mesh.size
