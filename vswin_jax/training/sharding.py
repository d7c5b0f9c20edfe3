"""Device mesh, and shardings of batches and training states.

Models do not depend on it. Batches are sharded along their first axis over all devices; parameters
are replicated along the mesh axis "data" and sharded along the axis "fsdp".
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXES = ("data", "fsdp")

# Smaller arrays are replicated, because their communication would cost more than memory is saved.
_SMALLEST_SHARDED_SIZE = 2**14


def make_mesh(fsdp: int = 1, devices: Sequence[jax.Device] | None = None, slices: int = 0) -> Mesh:
  """Returns a mesh of devices, in which groups of `fsdp` share one copy of the parameters.

  A slice is a set of devices with a fast network; slices communicate over a slower one. Groups are
  within a slice, so that only sums of gradients are communicated between slices.

  Args:
    fsdp: number of devices per group.
    devices: the devices; None: those of all processes.
    slices: number of slices of equal size; 0: as the devices report.

  Raises:
    ValueError: `fsdp` or `slices` does not divide the devices.
  """
  devices = jax.devices() if devices is None else list(devices)
  found = _slices_of(devices)
  count = slices or len(found)
  if count < 1 or len(devices) % count:
    raise ValueError(
      f"mesh.slices is {slices}; it must divide the {len(devices)} devices, or be 0 for the number "
      f"that the devices report ({len(found)})"
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


def in_context(mesh: Mesh, step: Callable) -> Callable:
  """Returns a step that is traced for the devices of a mesh.

  Kernels of models need it: they run on the clips of each device, see `on_each_device`.
  """

  @functools.wraps(step)
  def traced(*arguments):
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return step(*arguments)

  return traced


def batch_sharding(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, P(AXES))


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, P())


def state_shardings(mesh: Mesh, state):
  """Returns shardings of a tree of shapes: "fsdp" shards the longest axis that it divides.

  The rule depends on shapes only, so optimizer moments and EMA are placed like their parameters.
  """
  groups = mesh.shape["fsdp"]

  def sharding(leaf) -> NamedSharding:
    divisible = [axis for axis, size in enumerate(leaf.shape) if size % groups == 0]
    if groups == 1 or not divisible or math.prod(leaf.shape) < _SMALLEST_SHARDED_SIZE:
      return replicated(mesh)
    longest = max(divisible, key=lambda axis: leaf.shape[axis])
    return NamedSharding(mesh, P(*[None] * longest, "fsdp"))

  return jax.tree.map(sharding, state)


def local_rows(sharding: NamedSharding, batch_size: int) -> list[int]:
  """Returns the rows of a global batch on the devices of this process, in ascending order."""
  parts = sharding.addressable_devices_indices_map((batch_size,)).values()
  return sorted({row for (part,) in parts for row in range(*part.indices(batch_size))})


def put_batch(batch: dict[str, np.ndarray], sharding: NamedSharding) -> dict[str, jax.Array]:
  """Returns global arrays from the rows of a batch that this process holds, its `local_rows`."""
  return jax.make_array_from_process_local_data(sharding, batch)


def check_batch_size(batch_size: int, mesh: Mesh, what: str, multiple: int = 1) -> None:
  """Checks that every device gets the same number of clips; raises ValueError if not."""
  needed = mesh.size * multiple
  if batch_size < 1 or batch_size % needed:
    raise ValueError(
      f"{what} is {batch_size}; with {mesh.size} devices"
      + (f" and {multiple} gradient accumulation steps" if multiple > 1 else "")
      + f" it must be a multiple of {needed}"
    )
