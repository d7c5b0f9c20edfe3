"""Compilation of a config for targets; devices of the CPU stand in for chips."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.aot.small_step import fake_result, small_config
from vswin_jax.aot import compile as aot_compile
from vswin_jax.aot.compile import (
  RESULTS_FILE,
  compile_config,
  compile_plan,
  lacks_memory,
  needed_memory,
  plan_for_target,
  product_flops,
  trace_step,
)
from vswin_jax.aot.dataset_metadata import dataset_metadata
from vswin_jax.aot.topologies import TargetError, parse_target
from vswin_jax.experiment.config import ConfigError
from vswin_jax.models.parameters import flatten

VMEM = (
  "RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem. Used 21.27M of 16.00M vmem. "
  "Exceeded vmem capacity by 5.27M."
)
HBM = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 30.5G of 15.75G hbm."


def make_plan(topology, **values):
  config = small_config(**values)
  dataset, _ = dataset_metadata(config.data.name, config.data.dir, config.data.train_split)
  return plan_for_target(config, parse_target(topology), dataset)


def num_parameters(plan):
  return sum(math.prod(leaf.shape) for leaf in flatten(plan.param_shapes).values())


def read_rows(folder):
  return [json.loads(line) for line in (folder / RESULTS_FILE).read_text().splitlines()]


def as_row(result):
  return json.loads(json.dumps(dataclasses.asdict(result)))


def test_step_and_collectives(cpu_devices, tmp_path):
  """The compiled step sums the gradients of all parameters over all devices, once."""
  texts = []
  (result,) = compile_config(
    small_config(), "v5e:2x4", workdir=tmp_path / "new", search=False, write=texts.append
  )
  parameters = num_parameters(make_plan("v5e:2x4"))
  assert {(one.kind, one.group) for one in result.collectives} == {("all-reduce", 8)}
  summed = sum(one.operand_bytes for one in result.collectives)
  # Besides, a few numbers: the loss, the accuracy, the clips that could not be decoded.
  assert 4 * parameters < summed <= 4 * parameters + 64
  sent = sum(one.wire_bytes for one in result.collectives)
  np.testing.assert_allclose(sent, 2 * 7 / 8 * summed)

  # Parameters and their two moments, float32; two clips of uint8.
  clips = 2 * 4 * 32 * 32 * 3
  assert 12 * parameters + clips < result.arguments < 12 * parameters + clips + 2000
  assert result.arguments < result.memory < 2**30
  # The compiler of the CPU writes random numbers as loops.
  assert 0 < result.product_flops < result.flops
  assert result.num_steps == 6 * 4096 // 16
  assert (result.batch_size, result.clips_per_device) == (16, 2)

  assert read_rows(tmp_path / "new") == [as_row(result)]
  text = "\n".join(texts)
  assert "motion_clips: 4,096 training videos" in text
  assert "video_swin_t on 8 v5e chips (1 slice of 2x4)" in text
  assert "all-reduce over 8 chips" in text


@pytest.mark.slow
def test_fsdp_shards_the_state(cpu_devices):
  target = parse_target("v5e:2x2")
  whole, parts = (
    compile_plan(make_plan("v5e:2x2", **{"model.embed_dim": 64, "mesh.fsdp": fsdp}), target)
    for fsdp in (1, 4)
  )
  # The two kernels of the MLP with their moments, float32; all others are too small to be sharded.
  sharded = 3 * 4 * 2 * 64 * 256
  assert whole.arguments - parts.arguments == sharded * 3 // 4
  assert "all-gather" in {one.kind for one in parts.collectives}


def test_batch_size_is_rounded_up(cpu_devices):
  plan = make_plan("v5e:2x2", **{"train.batch_size": 12, "train.grad_accum_steps": 2})
  assert plan.settings.train.batch_size == 16
  assert plan.num_steps == 6 * 4096 // 16


@pytest.fixture
def fake_compiler(monkeypatch, cpu_devices):
  """Replaces the compiler; returns `use(memory, errors={})`.

  Args of `use`:
    memory: function of the clips per device and gradient accumulation step, and of the config.
    errors: messages by (topology, batch size).
  """

  def use(memory, errors=None):
    def compile_plan(plan, target, effort="quick"):
      config = plan.settings
      batch_size = config.train.batch_size
      clips = batch_size // target.num_devices // config.train.grad_accum_steps
      error = (errors or {}).get((target.name, batch_size), "")
      return fake_result(
        topology=target.name,
        batch_size=batch_size,
        wanted_batch_size=batch_size,
        fsdp=config.mesh.fsdp,
        effort=effort,
        memory=None if error else int(memory(clips, config)),
        error=error,
      )

    monkeypatch.setattr(aot_compile, "compile_plan", compile_plan)

  return use


def run(topologies="v5e:2x2", texts=None, values=None, **options):
  """Returns the results of `compile_config` with the quick effort."""
  write = (lambda text: None) if texts is None else texts.append
  config = small_config(**(values or {}))
  return compile_config(config, topologies, effort="quick", write=write, **options)


def test_several_targets_give_a_table(fake_compiler):
  fake_compiler(lambda clips, _: clips * 2**30)
  texts = []
  results = run("v5e:2x2, v6e-8", texts, search=False)
  assert [result.topology for result in results] == ["v5e:2x2", "v6e-8"]
  rows = texts[-2].strip().splitlines()
  assert len(rows) == 4
  assert len({row.count("|") for row in rows}) == 1


def test_maximum_batch_size_is_searched(fake_compiler):
  fake_compiler(lambda clips, _: (1 + 2 * clips) * 2**30)
  (result,) = run()
  assert (result.largest, result.is_largest) == (7, True)


def test_accumulated_steps_are_searched_together(fake_compiler):
  fake_compiler(lambda clips, _: (1 + clips / 3) * 2**30)
  (result,) = run(values={"train.grad_accum_steps": 4})
  assert (result.largest, result.is_largest) == (4 * 44, True)


def test_the_maximum_leaves_one_step(fake_compiler):
  fake_compiler(lambda clips, _: clips * 2**20)
  (result,) = run(values={"train.epochs": 0.01})
  assert (result.largest, result.is_largest) == (10, False)


def test_advice_if_a_step_does_not_fit(fake_compiler):
  def memory(clips, config):
    per_clip = 1 if config.model.get("rematerialization") == "block" else 6
    return (4 / config.mesh.fsdp + per_clip * clips) * 2**30

  fake_compiler(memory)
  texts = []
  (result,) = run(texts=texts, search=False)
  assert not result.fits
  accumulate, rematerialize, batch_size = result.advice
  assert accumulate == "--config.train.grad_accum_steps=4 (10.00 GiB)"
  assert rematerialize == "--config.model.rematerialization=block (8.00 GiB)"
  assert batch_size.startswith("--config.train.batch_size=4 (1 clips per chip")
  assert "28.00 > 15.75" in texts[1]
  assert "--config.model.rematerialization=block" in texts[2]


def test_more_accumulation_steps_are_tried_where_their_sum_takes_memory(fake_compiler):
  """Of four clips two fit at once, but not beside a sum of their gradients."""

  def memory(clips, config):
    return (2 + 6 * clips + 3 * (config.train.grad_accum_steps > 1)) * 2**30

  fake_compiler(memory)
  (result,) = run()
  assert result.largest == 2
  assert result.advice[0] == "--config.train.grad_accum_steps=4 (11.00 GiB)"


def test_rematerialization_with_fsdp_is_tried_where_neither_is_enough(fake_compiler):
  def memory(clips, config):
    recomputes = config.model.get("rematerialization") == "block"
    return (20 / config.mesh.fsdp + (1 if recomputes else 20) * clips) * 2**30

  fake_compiler(memory)
  (result,) = run()
  assert result.largest == 0
  both = "--config.model.rematerialization=block --config.mesh.fsdp=4 (9.00 GiB)"
  assert result.advice == (both,)


def test_nothing_fits(fake_compiler):
  fake_compiler(lambda clips, config: 2**40)
  (result,) = run()
  assert (result.largest, result.advice) == (0, ())


def test_errors_in_the_search_are_reported(fake_compiler, tmp_path):
  """The result of the step itself is in the file already."""
  fake_compiler(lambda clips, _: clips * 2**20, {("v5e:2x2", 32): "INTERNAL: of the compiler"})
  (result,) = run(workdir=tmp_path)
  assert (result.largest, result.is_largest) == (7, False)
  assert result.failed == ("8 clips per chip: INTERNAL: of the compiler",)
  first, last = read_rows(tmp_path)
  assert first["largest"] is None
  assert last == as_row(result)


def test_settings_that_contradict_the_config_are_reported(fake_compiler):
  """Mixing needs two clips, and the search arrives at one."""
  fake_compiler(lambda clips, _: clips * 2**35)
  values = {"augmentation.mixup_alpha": 0.8, "train.batch_size": 2}
  (result,) = run("v5e:1x1", values=values)
  assert any("1 clips per chip: mixup and cutmix need" in failed for failed in result.failed)


def test_other_targets_are_compiled_after_an_error(fake_compiler, tmp_path):
  fake_compiler(lambda clips, _: clips * 2**20, {("v5e:2x2", 16): "INTERNAL: of the compiler"})
  texts = []
  failed, other = run("v5e:2x2,v5e:2x4", texts, workdir=tmp_path)
  assert not failed.fits
  assert failed.error == "INTERNAL: of the compiler"
  assert failed.largest is None
  assert "INTERNAL: of the compiler" in texts[1]
  assert other.fits
  assert other.largest
  assert read_rows(tmp_path)[0] == as_row(failed)


def test_a_bad_workdir_is_an_error_before_compiling(cpu_devices, monkeypatch, tmp_path):
  monkeypatch.setattr(aot_compile, "compile_plan", None)
  (tmp_path / "file").write_text("")
  with pytest.raises(OSError):
    run(workdir=tmp_path / "file" / "folder")


def test_an_error_of_a_later_target_comes_before_compiling(cpu_devices, monkeypatch):
  monkeypatch.setattr(aot_compile, "compile_plan", None)
  with pytest.raises(ConfigError, match="can't form groups of 4"):
    run("v5e:2x2,v5e-1", values={"mesh.fsdp": 4})


def test_unknown_model_and_target():
  with pytest.raises(TargetError, match="unknown chip 'v99'"):
    run("v99:2x2")
  with pytest.raises(ConfigError, match=r"give --config\.init_from=DIR") as error:
    run(values={"model.name": None})
  assert "\n" not in str(error.value)


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
def test_messages_about_memory(message, lacks, size):
  assert lacks_memory(message) == lacks
  assert needed_memory(message) == size


def test_only_a_lack_of_device_memory_is_a_result(cpu_devices, monkeypatch):
  plan, target = make_plan("v5e-4"), parse_target("v5e-4")

  def compile_with(message):
    def fail(*_):
      raise jax.errors.JaxRuntimeError(message)

    monkeypatch.setattr(jax.stages.Lowered, "compile", fail)
    return compile_plan(plan, target)

  result = compile_with(HBM)
  assert (result.memory, result.fits, result.error) == (61 * 2**29, False, "")
  assert result.product_flops > 0
  # The message rounds a number that is larger than the memory of the chip.
  assert not compile_with(HBM.replace("30.5G", "15.75G")).fits
  result = compile_with(VMEM)
  assert result.memory is None
  assert "vmem" in result.error and "\n" not in result.error


def test_products_are_most_of_the_compiler_count(cpu_devices):
  """The rest are sums, exponentials and the like: less, the wider the model. The loops of this
  program make random numbers."""
  result = compile_plan(make_plan("v5e-4", **{"model.embed_dim": 64}), parse_target("v5e-4"))
  assert 0.88 * result.flops < result.product_flops < result.flops


def test_products_of_all_parts_are_shared_by_all_devices(cpu_devices):
  def count(num_devices, **values):
    return product_flops(trace_step(make_plan(f"v5e-{num_devices}", **values)), num_devices)

  whole, half = count(4), count(4, **{"train.batch_size": 8})
  assert count(1) == 4 * whole
  parts = count(4, **{"train.grad_accum_steps": 2})
  assert parts == 2 * half
  # Few products are not those of clips.
  assert parts == pytest.approx(whole, rel=1e-3)
  assert count(4, **{"model.rematerialization": "block"}) > 1.1 * whole


def test_products_in_loops_of_unknown_length_are_not_counted():
  def work(x):
    return jax.lax.while_loop(lambda x: x.sum() < 1, lambda x: x @ x, x)

  assert product_flops(jax.jit(work).trace(jnp.zeros((3, 3))), 1) is None
