"""Where arrays live: a mesh of devices and the shardings laid over batches and states.

Models know nothing of this. Batches are cut along their first axis over all devices; parameters
are replicated along the mesh axis "data" and cut along the axis "fsdp".
"""

import math

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXES = ("data", "fsdp")

# Smaller arrays are replicated: cutting them costs more messages than it saves memory.
_SMALLEST_SHARDED_SIZE = 2**14


def make_mesh(fsdp: int = 1, devices=None) -> Mesh:
  """A mesh of all devices: groups of `fsdp` share one copy of the parameters.

  Raises:
    ValueError: the number of devices is no multiple of `fsdp`.
  """
  devices = jax.devices() if devices is None else devices
  if fsdp < 1 or len(devices) % fsdp:
    raise ValueError(f"{len(devices)} devices can't form groups of {fsdp} for fsdp")
  return jax.make_mesh(
    (len(devices) // fsdp, fsdp), AXES, axis_types=(AxisType.Auto,) * 2, devices=devices
  )


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


def with_shardings(shapes, shardings):
  """`jax.ShapeDtypeStruct`s with shardings.

  Args:
    shapes: a tree of arrays or descriptions of arrays.
    shardings: a tree like `shapes`, or one sharding for all.
  """
  if isinstance(shardings, jax.sharding.Sharding):
    shardings = jax.tree.map(lambda _: shardings, shapes)
  return jax.tree.map(
    lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
    shapes,
    shardings,
  )


def put_batch(batch: dict[str, np.ndarray], sharding: NamedSharding) -> dict[str, jax.Array]:
  """Sends this host's part of a batch to its devices, as parts of global arrays."""
  return jax.tree.map(
    lambda array: jax.make_array_from_process_local_data(sharding, np.asarray(array)), batch
  )


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
