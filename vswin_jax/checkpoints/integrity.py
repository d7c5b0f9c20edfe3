"""Integrity of checkpoints: checksums of arrays and metadata, saved with them and compared later.

The checksums are a part of the custom metadata, which Orbax saves in the file
`_CHECKPOINT_METADATA`. They find files that can be read but are not what was written.
"""

import dataclasses
import functools
import json
import zlib

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from vswin_jax.checkpoints.errors import CheckpointError, DamagedError, reading
from vswin_jax.checkpoints.metadata import CheckpointMetadata
from vswin_jax.checkpoints.orbax_workarounds import reading_in_one_process
from vswin_jax.models.parameters import flatten, parameter_path

_METADATA_FILE = "_CHECKPOINT_METADATA"
# Key of the checksums in the custom metadata.
_RECORD = "checkpoint"


@dataclasses.dataclass(frozen=True)
class Contents:
  """Description of a saved checkpoint.

  Attributes:
    metadata: saved with the arrays.
    arrays: descriptions with `shape` and `dtype`, by dotted path.
    checksums: of the arrays, by dotted path; {} if it was saved without.
  """

  metadata: CheckpointMetadata
  arrays: dict
  checksums: dict[str, int]


def custom_metadata(state, metadata: CheckpointMetadata) -> dict:
  """Returns the JSON to save with a state: its metadata and checksums."""
  arrays = arrays_of(state)
  checksums = array_checksums(arrays)
  values = metadata.to_json()
  record = {
    "arrays": "".join(f"{checksums[path]:08x}" for path in sorted(checksums)),
    "shapes": _json_checksum(_shapes(arrays)),
    "metadata": _json_checksum(values),
  }
  return {**values, _RECORD: record}


def read_metadata(path) -> tuple[CheckpointMetadata, dict]:
  """Returns the metadata of a checkpoint, and its checksums; {}: it was saved without.

  Raises:
    DamagedError: the file is missing or was changed.
    CheckpointError: it can't be read now, or another program wrote it.
  """
  with reading(path):
    values = json.loads((path / _METADATA_FILE).read_text())["custom_metadata"] or {}
    record = values.pop(_RECORD, {})
    if record and record["metadata"] != _json_checksum(values):
      raise DamagedError("the checksum of its metadata differs")
  try:
    return CheckpointMetadata.from_json(values), record
  except ValueError as error:
    raise CheckpointError(
      f"{path} does not say which model it holds ({error}); expected a checkpoint of "
      "vswin_jax.main or vswin_jax.convert"
    ) from error


def read_contents(path) -> Contents:
  """Returns the description of a checkpoint; raises like `read_metadata`."""
  metadata, record = read_metadata(path)
  checksums = {}
  with reading(path), reading_in_one_process():
    arrays = arrays_of(ocp.metadata(path).metadata)
    if record:
      if record["shapes"] != _json_checksum(_shapes(arrays)):
        raise DamagedError("the list of its arrays is not the one that was saved")
      words = np.frombuffer(bytes.fromhex(record["arrays"]), ">u4").tolist()
      checksums = dict(zip(sorted(arrays), words, strict=True))
  return Contents(metadata, arrays, checksums)


def load_arrays(path, contents: Contents, shapes):
  """Loads the parts of arrays that are placed on the devices of this process.

  Args:
    shapes: a tree of `jax.ShapeDtypeStruct`s with shardings, of all arrays or some.

  Returns:
    A tree of arrays like `shapes`, with the dtypes that were saved. Raises like `read_metadata`.
  """

  def as_saved(key_path, leaf):
    dtype = contents.arrays[parameter_path(key_path)].dtype
    return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf.sharding)

  with reading(path), reading_in_one_process():
    return ocp.load(path, jax.tree_util.tree_map_with_path(as_saved, shapes))


def check_arrays(contents: Contents, loaded) -> None:
  """Compares loaded arrays with the saved checksums; all processes of a run call this together.

  Raises:
    DamagedError: in all processes, if any array differs.
  """
  if not contents.checksums:
    return
  found = array_checksums(arrays_of(loaded))
  changed = [path for path in sorted(found) if found[path] != contents.checksums[path]]
  if changed:
    raise DamagedError(
      f"the checksums of {len(changed)} of {len(found)} arrays differ: {', '.join(changed[:3])}"
    )


def array_checksums(arrays: dict) -> dict[str, int]:
  """Returns a 32-bit checksum of each array, which does not depend on its sharding.

  All processes of a run call this together. The words of an array are multiplied by odd factors
  that depend on their positions, and summed modulo 2**32. Any change of one word changes the sum;
  so does nearly every permutation.
  """
  # Each process sums its own shards, so that no compiled program waits for another process.
  sums = jax.device_get([_shard_checksums(array) for array in arrays.values()])
  own = np.array([sum(map(int, of_shards)) % 2**32 for of_shards in sums], np.uint32)
  checksums = multihost_utils.process_allgather(own).sum(0, dtype=np.uint32)
  return dict(zip(arrays, checksums.tolist()))


def _shard_checksums(array: jax.Array) -> list[jax.Array]:
  """Returns the checksums of the shards in this process, counting each replica set once."""
  array, checksums = jnp.asarray(array), []
  for shard in array.addressable_shards:
    if shard.replica_id == 0:
      starts = np.array([part.start or 0 for part in shard.index], np.uint32)
      checksums.append(_checksum(shard.data, starts, array.shape))
  return checksums


@functools.partial(jax.jit, static_argnums=2)
def _checksum(shard: jax.Array, starts: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Returns the checksum of a shard that starts at `starts` in an array of a shape."""
  if shard.dtype == jnp.bool_:
    shard = shard.astype(jnp.uint8)
  word = {1: jnp.uint8, 2: jnp.uint16}.get(shard.dtype.itemsize, jnp.uint32)
  # Elements of 8 bytes become two words along a new last axis.
  words = jax.lax.bitcast_convert_type(shard, word).astype(jnp.uint32)
  sizes = (*shape, *words.shape[len(shape) :])
  position, stride = jnp.zeros((), jnp.uint32), 1
  for axis in reversed(range(words.ndim)):
    start = starts[axis] if axis < len(shape) else 0
    index = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) + start
    position += index * np.uint32(stride % 2**32)
    stride *= sizes[axis]
  # Factors of neighbors must be unrelated, or swapped words would often cancel out.
  factor = position * np.uint32(0x9E3779B1)
  factor = (factor ^ (factor >> 15)) * np.uint32(0x85EBCA6B)
  return jnp.sum(words * (factor | 1), dtype=jnp.uint32)


def arrays_of(tree) -> dict:
  """Returns the arrays, or descriptions of arrays, of a tree by dotted path."""
  return {path: leaf for path, leaf in flatten(tree).items() if hasattr(leaf, "shape")}


def _shapes(arrays: dict) -> dict:
  return {path: list(leaf.shape) for path, leaf in arrays.items()}


def _json_checksum(values: dict) -> int:
  return zlib.crc32(json.dumps(values, sort_keys=True).encode())
