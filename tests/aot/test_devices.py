"""Compilers of other machines, where they are installed."""

import math
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from tests.tables.recipes import load
from vswin_jax.aot import devices
from vswin_jax.aot.compile import compile_plan, lacks_memory, plan_for_target
from vswin_jax.aot.dataset_metadata import dataset_metadata
from vswin_jax.aot.devices import prepare_environment
from vswin_jax.aot.hlo import read_collectives, read_loops, read_operations
from vswin_jax.aot.results import describe
from vswin_jax.aot.topologies import TargetError, parse_target
from vswin_jax.attention import gpu
from vswin_jax.attention.relative_position import table_rows
from vswin_jax.attention.windows import window_layout
from vswin_jax.models.parameters import flatten


@pytest.fixture
def environment():
  """The environment of a process that compiles for other machines, for one test."""
  before = dict(os.environ)
  prepare_environment()
  yield
  os.environ.clear()
  os.environ.update(before)


def test_environment_keeps_other_flags(environment, monkeypatch):
  flags = os.environ["XLA_FLAGS"]
  prepare_environment()
  assert os.environ["XLA_FLAGS"] == flags
  assert "--xla_force_host_platform_device_count=8" in flags
  assert jax.config.jax_platforms == "cpu"


@pytest.mark.parametrize(
  "name, install",
  [
    ("v5e:2x2", "pip install -e '.[tpu]'"),
    ("h100:1x1x8", f"pip install 'jax-cuda13-plugin=={jax.__version__}'"),
  ],
)
def test_missing_compiler(name, install, monkeypatch):
  def fails(**_):
    raise RuntimeError("PJRT API\nversion mismatch")

  monkeypatch.setattr(devices.topologies, "get_topology_desc", fails)
  with pytest.raises(TargetError) as error:
    devices.devices_of(parse_target(name))
  assert install in str(error.value)
  assert f"{name!r}: PJRT API version mismatch" in str(error.value)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  "name", ["v5e-1", "v5e-8", "2*v5e-16", "v4-8", "v4-32", "v5p:4x4x4", "v6e-64"]
)
def test_topologies_are_known_to_the_compiler(environment, name):
  pytest.importorskip("libtpu")
  target = parse_target(name)
  assert len(devices.devices_of(target)) == target.num_devices


def test_collectives_in_loops_of_tpus_count_per_iteration(environment):
  pytest.importorskip("libtpu")
  devices_of_four = devices.devices_of(parse_target("v5e:2x2"))
  mesh = jax.sharding.Mesh(np.array(devices_of_four), ("a",))

  def work(x):
    def body(carry, _):
      return jax.lax.psum(carry * 0.1, "a"), None

    return jax.lax.scan(body, x, None, length=7)[0].sum()

  parts = jax.sharding.NamedSharding(mesh, P("a"))
  x = jax.ShapeDtypeStruct((8, 128), jnp.float32, sharding=parts)
  mapped = jax.shard_map(work, mesh=mesh, in_specs=P("a"), out_specs=P(), check_vma=False)
  text = jax.jit(mapped).lower(x).compile().as_text()
  assert read_loops(text) == [7]
  (found,) = read_collectives(text)
  assert (found.kind, found.group, found.count) == ("all-reduce", 4, 7)


def test_a_lack_of_core_memory_is_no_lack_of_device_memory(environment):
  """A kernel whose block of 64 MiB exceeds vmem."""
  pytest.importorskip("libtpu")
  from jax.experimental import pallas

  (device,) = devices.devices_of(parse_target("v5e-1"))
  place = jax.sharding.SingleDeviceSharding(device)
  x = jax.ShapeDtypeStruct((4096, 4096), jnp.float32, sharding=place)

  def double(source, target):
    target[...] = source[...] * 2

  kernel = jax.jit(pallas.pallas_call(double, out_shape=x))
  with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED") as error:
    kernel.lower(x).compile()
  assert "vmem" in str(error.value)
  assert not lacks_memory(str(error.value))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["h100:1x1x1", "a100:1x1x1"])
def test_window_attention_for_gpus(environment, name):
  """Windows of Video Swin, shifted: three kernels, and nothing as large as the logits."""
  pytest.importorskip("jax_plugins.xla_cuda13")
  (device,) = devices.devices_of(parse_target(name))
  place = jax.sharding.SingleDeviceSharding(device)
  heads, window, layout = 4, (8, 7, 7), window_layout((16, 14, 14), (8, 7, 7), shifted=True)
  shapes = {"qkv": ((1, 14, 14, 16, 3 * 32 * heads), "bfloat16")}
  shapes["table"] = ((table_rows(window), heads), "float32")
  arguments = [jax.ShapeDtypeStruct(*shape, sharding=place) for shape in shapes.values()]

  def loss(qkv, table):
    return gpu.attend(qkv, table, window, layout).astype(jnp.float32).sum()

  compiled = jax.jit(jax.grad(loss, (0, 1))).lower(*arguments).compile()
  names = [one.scope for one in read_operations(compiled.as_text()) if one.opcode == "custom-call"]
  for kernel in ("forward_kernel", "keys_kernel", "queries_kernel"):
    assert sum(kernel in one for one in names) == 1
  logits = layout.windows * heads * layout.tokens**2 * 4
  assert compiled.memory_analysis().temp_size_in_bytes < logits


@pytest.mark.slow
def test_quickstart_for_tpus(environment):
  """Compiled for four chips: the step fits, and sums one gradient, as many bytes as there are
  parameters. A batch of gigabytes does not fit."""
  pytest.importorskip("libtpu")
  config, target = load("quickstart"), parse_target("v5e:2x2")
  dataset, _ = dataset_metadata(config.data.name, "/no/such/folder", config.data.train_split)
  plan = plan_for_target(config, target, dataset)
  result = compile_plan(plan, target)
  parameters = sum(math.prod(leaf.shape) for leaf in flatten(plan.param_shapes).values())
  assert result.fits
  assert 12 * parameters < result.arguments < result.memory < 2**30
  assert {(one.kind, one.group) for one in result.collectives} == {("all-reduce", 4)}
  summed = sum(one.operand_bytes for one in result.collectives)
  # The sum of a bias or two is taken twice.
  assert 4 * parameters < summed < 1.001 * 4 * parameters
  assert 0 < result.estimate.efficiency[0] < result.estimate.efficiency[1] == 1

  config = config.copy_and_resolve_references()
  config.model.update({"depths": (1,), "num_heads": (1,)})
  config.train.epochs = 64
  large = compile_plan(plan_for_target(config, target, dataset, 65_536), target)
  assert not large.fits
  # 207 GiB with jax 0.10.2.
  assert large.memory > 100 * 2**30
  assert f"{large.memory / 2**30:.2f} > 15.75" in describe(large)


def test_a_gpu_that_the_compiler_has_no_description_of():
  with pytest.raises(
    TargetError, match="can't compile for 'h200:1x1x1'; GPUs to compile for: h100, a100"
  ):
    devices.devices_of(parse_target("h200:1x1x1"))
