"""What is read of a compiler's failures, and the operations that are counted without one."""

import jax
import jax.numpy as jnp
import pytest

from tests.aot.small_step import small_config
from vswin_jax.aot import compile
from vswin_jax.aot.compiler import (
  compile_step,
  lacks_memory,
  needed_memory,
  product_flops,
  trace_step,
)
from vswin_jax.aot.dataset_metadata import dataset_metadata
from vswin_jax.aot.topologies import parse_target

VMEM = (
  "RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem. Used 21.27M of 16.00M vmem. "
  "Exceeded vmem capacity by 5.27M."
)
HBM = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 30.5G of 15.75G hbm."


@pytest.mark.parametrize(
  "message, lacks, size",
  [
    (
      "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries "
      "(1.00T) exceeds available HBM (15.75G).",
      True,
      2**40,
    ),
    (HBM, True, 61 * 2**29),
    ("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 2147483648 bytes.", True, None),
    (VMEM, False, None),
    (
      "RESOURCE_EXHAUSTED: E1001: CompileTimeScopedVmemOom:\nRan out of memory in memory space "
      "vmem while allocating on stack for %x. Scoped allocation with size 128.00M and limit 16.00M",
      False,
      None,
    ),
    ("RESOURCE_EXHAUSTED: Shared memory size limit exceeded: requested 262160", False, None),
    ("RESOURCE_EXHAUSTED: something else", False, None),
    ("INTERNAL: out of memory", False, None),
  ],
)
def test_failures_for_want_of_memory(message, lacks, size):
  assert lacks_memory(message) == lacks
  assert needed_memory(message) == size


def small_plan(num_devices, **values):
  config = small_config(**values)
  metadata = dataset_metadata(config.data.name, config.data.dir, config.data.train_split)
  target = parse_target({1: "v5e-1", 4: "v5e-4"}[num_devices])
  return compile.plan_for(config, target, metadata)


def test_only_want_of_device_memory_is_a_result(cpu_devices, monkeypatch):
  plan = small_plan(4)

  def fail_with(message):
    def compile_program(*_):
      raise jax.errors.JaxRuntimeError(message)

    monkeypatch.setattr(jax.stages.Lowered, "compile", compile_program)

  fail_with(HBM)
  found = compile_step(plan)
  assert (found.memory, found.needed) == (None, 61 * 2**29)
  assert found.product_flops > 0
  assert not found.error
  fail_with(VMEM)
  found = compile_step(plan)
  assert (found.memory, found.needed) == (None, None)
  assert "vmem" in found.error and "\n" not in found.error


def test_products_are_most_of_what_the_compiler_counts(cpu_devices):
  """The rest are sums, exponentials and the like: less, the wider the model. The loops of this
  program make random numbers."""
  compiled = compile_step(small_plan(4, **{"model.embed_dim": 64}))
  assert 0.88 * compiled.flops < compiled.product_flops < compiled.flops


def test_products_are_those_of_all_parts_shared_by_all_devices(cpu_devices):
  def count(num_devices, **values):
    return product_flops(trace_step(small_plan(num_devices, **values)), num_devices)

  whole, half = count(4), count(4, **{"train.batch_size": 8})
  assert count(1) == 4 * whole
  parts = count(4, **{"train.grad_accum_steps": 2})
  assert parts == 2 * half
  # Few products are not those of clips.
  assert parts == pytest.approx(whole, rel=1e-3)
  assert count(4, **{"model.rematerialization": "block"}) > 1.1 * whole


def test_products_of_loops_that_end_by_values_are_not_counted():
  def work(x):
    return jax.lax.while_loop(lambda x: x.sum() < 1, lambda x: x @ x, x)

  assert product_flops(jax.jit(work).trace(jnp.zeros((3, 3))), 1) is None
