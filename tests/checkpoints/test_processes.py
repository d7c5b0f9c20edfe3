"""Checkpoints of several processes: all skip what one of them can't read or write."""

import os
import pathlib
import socket
import subprocess
import sys

import pytest

_PROCESS = """
import concurrent.futures, contextlib, os, pathlib, sys
import jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
address, process, folder = sys.argv[1], int(sys.argv[2]), pathlib.Path(sys.argv[3])
jax.distributed.initialize(address, 2, process)
import jax.numpy as jnp, numpy as np, optax
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec as P
from tests.helpers.checkpoints import (
  METADATA, data_files, flip_bits, small_disk, state_at,
)

from vswin_jax.checkpoints import manager
from vswin_jax.checkpoints.selection import newest_step

mesh = jax.make_mesh((4,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))

def place(leaf):
  return NamedSharding(mesh, P("fsdp") if leaf.ndim == 2 else P())

shapes = jax.eval_shape(lambda: state_at(0))
shardings = jax.tree.map(place, shapes)
shapes = jax.tree.map(
  lambda leaf, spot: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=spot), shapes, shardings
)

def laid(step):
  return jax.jit(lambda: state_at(step), out_shardings=shardings)()

directory = folder / "checkpoints"
with manager.open_checkpoints(directory, keep=4) as checkpoints:
  for step in (10, 20, 30, 40):
    manager.save(checkpoints, laid(step), METADATA)
if process == 0:
  # What the other process alone reads: a changed file, no file, metadata that nobody can read.
  flip_bits(data_files(directory, 20, 1)[-1])
  for path in data_files(directory, 30, 1):
    path.unlink()
  (directory / "40" / "_CHECKPOINT_METADATA").write_text("{")
multihost_utils.sync_global_devices("damaged")

def assert_same(found, step):
  for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(laid(step))):
    for part, expected in zip(one.addressable_shards, other.addressable_shards):
      np.testing.assert_array_equal(part.data, expected.data)

found, params, metadata = manager.restore_params(directory, shapes.params)
assert (found, metadata) == (10, METADATA), found
with manager.open_checkpoints(directory, keep=4) as checkpoints:
  state, metadata = manager.restore(checkpoints, shapes)
  assert metadata == METADATA
  assert_same(state, 10)
  assert newest_step(directory) == 10
  manager.save(checkpoints, laid(20), METADATA)
with manager.open_checkpoints(directory, keep=4) as checkpoints:
  state, metadata = manager.restore(checkpoints, shapes)
assert_same(state, 20)

# One that can't write ends the save in both, at once.
try:
  with manager.open_checkpoints(directory, keep=4) as checkpoints:
    with small_disk(5000) if process == 1 else contextlib.nullcontext():
      manager.save(checkpoints, laid(25), METADATA)
      if process == 1:
        concurrent.futures.wait([checkpoints.saving])
    manager.save(checkpoints, laid(30), METADATA)
  raise AssertionError("nobody noticed")
except manager.CheckpointError as error:
  assert "File too large" in str(error), error
print("done", flush=True)
# As runs end after an error.
os._exit(0)
"""


@pytest.mark.slow
def test_processes_take_the_same_checkpoint_and_fail_together(tmp_path):
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{free.getsockname()[1]}"
  root = pathlib.Path(__file__).parents[2]
  processes = [
    subprocess.Popen(
      [sys.executable, "-c", _PROCESS, address, str(number), str(tmp_path)],
      cwd=root,
      env={**os.environ, "JAX_NUM_CPU_DEVICES": "2", "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for number in range(2)
  ]
  try:
    outputs = [process.communicate(timeout=200) for process in processes]
  finally:
    for process in processes:
      process.kill()
  for process, (output, errors) in zip(processes, outputs):
    assert process.returncode == 0, errors
    assert output.endswith("done\n")
  names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
  assert names == ["10", "20", "25.orbax-checkpoint-tmp", "damaged-20", "damaged-30", "damaged-40"]
