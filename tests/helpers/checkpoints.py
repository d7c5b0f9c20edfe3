"""Small states, and damage to their checkpoints."""

import contextlib
import resource

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from vswin_jax.checkpoints import manager
from vswin_jax.checkpoints.manager import open_checkpoints
from vswin_jax.checkpoints.metadata import CheckpointMetadata
from vswin_jax.data.preprocessing import Preprocessing

METADATA = CheckpointMetadata({"name": "x"}, Preprocessing(), ("a", "b"))


@flax.struct.dataclass
class State:
  step: jax.Array
  params: dict
  ema_params: dict
  opt_state: optax.OptState


def state_at(step, width=300):
  key = jax.random.key(step)
  params = {
    "stem": {"kernel": jax.random.normal(key, (width, 40))},
    "head": {"bias": jax.random.normal(key, (5,), jnp.bfloat16)},
  }
  ema_params = jax.tree.map(lambda leaf: leaf * 2, params)
  return State(jnp.int32(step), params, ema_params, optax.adam(1e-3).init(params))


def shapes_of(tree):
  place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree)


def assert_same(found, expected):
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
    assert one.dtype == other.dtype
    np.testing.assert_array_equal(one, other)


def save_all(directory, steps, **options):
  with open_checkpoints(directory, **options) as checkpoints:
    for step in steps:
      manager.save(checkpoints, state_at(step), METADATA)


def flip_bits(path):
  """Flips bits of every large array, so that the file can still be read."""
  data = bytearray(path.read_bytes())
  for place in range(min(len(data) // 2, 10_000), len(data) - 1000, 20_000):
    data[place] ^= 16
  path.write_bytes(data)


@contextlib.contextmanager
def small_disk(size):
  """Makes writing files beyond a size in bytes fail, as on a full disk."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def data_files(directory, step, process):
  """Returns the files of arrays that a process wrote, by size."""
  files = (directory / str(step) / "state" / f"ocdbt.process_{process}" / "d").iterdir()
  return sorted(files, key=lambda path: path.stat().st_size)
