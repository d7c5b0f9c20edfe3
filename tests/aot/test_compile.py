"""From a config to what is said of it on a machine; devices of the CPU stand in for chips."""

import dataclasses
import json
import math

import numpy as np
import pytest

from tests.aot.small_step import fake_result, small_config
from vswin_jax.aot import compile
from vswin_jax.aot.dataset_metadata import dataset_metadata
from vswin_jax.aot.hlo import Collective
from vswin_jax.aot.results import Result, describe, describe_search, read_row, table
from vswin_jax.aot.topologies import TargetError, parse_target
from vswin_jax.experiment.plan import ConfigError
from vswin_jax.models.parameters import flatten


def metadata_of(config):
  return dataset_metadata(config.data.name, config.data.dir, config.data.train_split)


def test_the_step_and_its_collectives(cpu_devices, tmp_path):
  """What is compiled sums the gradients of all parameters over all devices, once."""
  said = []
  config = small_config()
  (result,) = compile.run(
    config, "v5e:2x4", workdir=tmp_path / "new", search=False, say=said.append
  )
  plan = compile.plan_for(config, parse_target("v5e:2x4"), metadata_of(config))
  parameters = sum(math.prod(leaf.shape) for leaf in flatten(plan.param_shapes).values())
  assert {(one.kind, one.group) for one in result.collectives} == {("all-reduce", 8)}
  summed = sum(one.operand_bytes for one in result.collectives)
  # Besides, a few numbers: the loss, the accuracy, the clips that could not be decoded.
  assert 4 * parameters < summed <= 4 * parameters + 64
  np.testing.assert_allclose(result.sent, 2 * 7 / 8 * summed)

  # Parameters and their two moments, float32; two clips of uint8.
  clips = 2 * 4 * 32 * 32 * 3
  assert 12 * parameters + clips < result.arguments < 12 * parameters + clips + 2000
  assert result.arguments < result.memory < 2**30
  assert result.flops > 0
  assert result.num_steps == 6 * 4096 // 16
  assert (result.num_videos, result.grad_accum_steps) == (4096, 1)
  assert (result.batch_size, result.clips_per_device) == (16, 2)

  (line,) = (tmp_path / "new" / "compile.jsonl").read_text().splitlines()
  assert read_row(json.loads(line)) == result
  text = "\n".join(said)
  assert "video_swin_t on 8 v5e chips (one slice of 2x4): 16 clips a step, 2 a chip" in text
  assert "all-reduce over 8 chips" in text
  # The compiler of the CPU writes random numbers as loops.
  assert 0 < result.product_flops < result.flops
  assert "6 epochs of 4,096 videos (as the library makes it): at least" in text


@pytest.mark.slow
def test_fsdp_cuts_the_state(cpu_devices):
  target, config = parse_target("v5e:2x2"), small_config(**{"model.embed_dim": 64})
  whole = compile.compile_for(config, target, metadata_of(config))
  config.mesh.fsdp = 4
  parts = compile.compile_for(config, target, metadata_of(config))
  # The two kernels of the MLP with their moments, float32; all others are too small to be cut.
  cut = 3 * 4 * 2 * 64 * 256
  assert whole.arguments - parts.arguments == cut * 3 // 4
  assert "all-gather" in {one.kind for one in parts.collectives}


def test_a_batch_that_can_not_be_divided_becomes_one_that_can():
  result = fake_result(batch_size=256, wanted_batch_size=64, topology="v5e-256", num_devices=256)
  said = describe(result)
  assert "train.batch_size=64 can't be divided among 256 chips; the smallest that can" in said
  assert "--config.train.batch_size=256" in said
  assert "256* (1)" in table([result])
  parts = dataclasses.replace(result, num_devices=64, topology="v5e-64", grad_accum_steps=4)
  assert "can't be divided among 64 chips with 4 parts each; " in describe(parts)


def test_the_plan_takes_the_next_batch(cpu_devices):
  config = small_config(**{"train.batch_size": 12, "train.grad_accum_steps": 2})
  plan = compile.plan_for(config, parse_target("v5e:2x2"), metadata_of(config))
  assert plan.settings.train.batch_size == 16
  assert plan.num_steps == 6 * 4096 // 16
  assert config.train.batch_size == 12


def test_several_machines_give_a_table(fake_compiler):
  fake_compiler(lambda clips, _: clips * 2**30)
  said = []
  results = compile.run(small_config(), "v5e:2x2,v6e-8", search=False, say=said.append)
  assert len(results) == 2
  rows = said[-1].split("\n\n")[0].splitlines()
  assert len(rows) == 4
  assert len({row.count("|") for row in rows}) == 1


@pytest.fixture
def fake_compiler(monkeypatch, cpu_devices):
  """Takes the place of compiling: memory as a function of clips a device and at once, and config.

  Returns `use(memory)`.
  """

  def use(memory):
    def result_for(config, target) -> Result:
      clips = config.train.batch_size // target.num_devices
      size = memory(clips // config.train.grad_accum_steps, config)
      fits = size <= target.chip.memory
      return fake_result(
        topology=target.name,
        num_devices=target.num_devices,
        batch_size=config.train.batch_size,
        fsdp=config.mesh.fsdp,
        memory=int(size) if fits else None,
        needed=None if fits else int(size),
      )

    def compile_plan(plan, target, *_):
      return result_for(plan.settings, target)

    def compile_for(config, target, metadata, *, clips_per_device=None):
      config = config.copy_and_resolve_references()
      if clips_per_device is not None:
        config.train.batch_size = clips_per_device * target.num_devices
      return result_for(config, target)

    monkeypatch.setattr(compile, "compile_plan", compile_plan)
    monkeypatch.setattr(compile, "compile_for", compile_for)

  return use


def test_the_largest_batch_is_searched(fake_compiler):
  fake_compiler(lambda clips, _: (1 + 2 * clips) * 2**30)
  said = []
  (result,) = compile.run(small_config(), "v5e:2x2", say=said.append)
  assert (result.largest, result.is_largest) == (7, True)
  assert "7 clips a chip fit, 28 in all; 8 do not" in said[1]
  assert "quick effort" not in said[1]  # as all of it


def test_what_does_not_fit_says_what_would(fake_compiler):
  def memory(clips, config):
    per_clip = 1 if config.model.rematerialization == "block" else 6
    return (4 / config.mesh.fsdp + per_clip * clips) * 2**30

  fake_compiler(memory)
  said = []
  (result,) = compile.run(small_config(), "v5e:2x2", say=said.append)
  assert not result.fits
  assert result.advice == (
    "--config.train.grad_accum_steps=4 (10.00 GiB)",
    "--config.model.rematerialization=block (8.00 GiB)",
    "--config.train.batch_size=4 (1 clips a chip; changes the recipe, whose rates go with its "
    "batch)",
  )
  assert "does not fit: needs 28.00 GiB a chip, there are 15.75" in said[0]
  assert "operations" not in said[0]
  assert "--config.model.rematerialization=block" in said[1]
  assert "**28.00 > 15.75**" in table([result])


def test_more_parts_are_tried_where_their_sum_takes_memory(fake_compiler):
  """Of four clips two fit at once, but not beside a sum of their gradients."""

  def memory(clips, config):
    return (2 + 6 * clips + 3 * (config.train.grad_accum_steps > 1)) * 2**30

  fake_compiler(memory)
  (result,) = compile.run(small_config(), "v5e:2x2", say=lambda text: None)
  assert result.largest == 2
  assert result.advice[0] == "--config.train.grad_accum_steps=4 (11.00 GiB)"


def test_both_are_tried_where_neither_is_enough(fake_compiler):
  def memory(clips, config):
    less = config.model.rematerialization == "block"
    return (20 / config.mesh.fsdp + (1 if less else 20) * clips) * 2**30

  fake_compiler(memory)
  (result,) = compile.run(small_config(), "v5e:2x2", say=lambda text: None)
  assert result.largest == 0
  both = "--config.model.rematerialization=block --config.mesh.fsdp=4 (9.00 GiB)"
  assert result.advice == (both,)


def test_nothing_fits(fake_compiler):
  fake_compiler(lambda clips, config: 2**40)
  said = []
  compile.run(small_config(), "v5e:2x2", say=said.append)
  assert "nothing that was tried does" in said[1]
  assert "not even one clip a chip fits" in said[1]


def test_what_is_compiled_is_kept_whatever_comes_after(fake_compiler, monkeypatch, tmp_path):
  """An error of a try is said of that try; the largest batch leaves one step at least."""
  fake_compiler(lambda clips, _: clips * 2**20)
  compile_small = compile.compile_for

  def compile_for(config, target, metadata, *, clips_per_device=None):
    if clips_per_device == 8:
      return fake_result(memory=None, error="INTERNAL: of the compiler")
    return compile_small(config, target, metadata, clips_per_device=clips_per_device)

  monkeypatch.setattr(compile, "compile_for", compile_for)
  said = []
  (result,) = compile.run(small_config(), "v5e:2x2", workdir=tmp_path, say=said.append)
  assert (result.largest, result.is_largest) == (7, False)
  assert "8 clips a chip: INTERNAL: of the compiler" in said[1]
  first, last = (tmp_path / "compile.jsonl").read_text().splitlines()
  assert read_row(json.loads(first)).largest is None
  assert read_row(json.loads(last)) == result

  monkeypatch.setattr(compile, "compile_for", compile_small)
  config = small_config(**{"train.epochs": 0.01})
  (result,) = compile.run(config, "v5e:2x2", say=said.append)
  assert (result.largest, result.is_largest) == (10, False)


def test_a_folder_that_can_not_be_is_said_first(cpu_devices, monkeypatch, tmp_path):
  monkeypatch.setattr(compile, "compile_plan", None)
  (tmp_path / "file").write_text("")
  with pytest.raises(OSError):
    compile.run(small_config(), "v5e:2x2", workdir=tmp_path / "file" / "folder")


def test_numbers_by_hand():
  """10 ms of computing, 20 of memory; a thousand steps."""
  text = describe(fake_result(bytes_accessed=819e7 * 2))
  assert "computing at least 10 ms, memory 20 ms, links 0 ms" in text
  assert "efficiency 100.0% - 100.0%; 100.0% - 100.0% of a step that only computes" in text
  assert "1,000 steps, 30 epochs: at least 10 s, about 20 s" in text
  assert "1.00 of 15.75 GiB a chip, of which 0.25 are state and batch: fits" in text
  assert "Not measured" in text
  assert "loops" not in text


SENT = (Collective("all-reduce", False, 4, 1, 10**7, 15e6),)


def last_cells(result):
  """Those of the row of a result after its memory; no largest batch was searched."""
  return [cell.strip(" |") for cell in table([result]).splitlines()[-1].split(" | ")[4:]]


def test_loops_leave_what_products_and_collectives_tell():
  """20 ms of products; 15 MB over half of a corner's 100 GB/s, 0.15 ms. A thousand steps."""
  result = fake_result(loops=2, collectives=SENT, product_flops=394e10)
  text = describe(result)
  assert "work         more than 3,940 GFLOP a chip and step, more than 8.19 GB" in text
  assert "the compiler counts one run of each loop (2 in all): operations are those of" in text
  assert "; collectives count as often as they run" in text
  assert "computing at least 20 ms, links 0.15 ms, network between slices 0 ms" in text
  assert "a step  " not in text
  assert "efficiency 99.3% - 100.0% of a step that only computes" in text
  assert "the run      1,000 steps, 30 epochs: at least 20 s\n" in text
  assert "Not measured" in text
  efficiency = "99.3% - 100.0%"
  assert last_cells(result) == ["3,940+", "8.19+", "15", "20", "-", "-", efficiency, "30: 20 s, -"]


def test_collectives_that_no_one_counts_leave_the_bound():
  result = fake_result(loops=2, unknown_loops=1, collectives=SENT, product_flops=394e10)
  text = describe(result)
  assert "how often 1 of them run is not known: collectives count once" in text
  assert "computing at least 20 ms\n" in text
  assert "efficiency" not in text
  assert "the run      1,000 steps, 30 epochs: at least 20 s\n" in text
  assert last_cells(result) == ["3,940+", "8.19+", "15+", "20", "-", "-", "-", "30: 20 s, -"]


def test_loops_without_products_leave_no_times():
  """As in rows that were written before products were counted."""
  result = fake_result(loops=2, collectives=SENT)
  row = dataclasses.asdict(result)
  for name in ("product_flops", "grad_accum_steps", "num_videos", "videos_source", "error"):
    del row[name]
  assert read_row(json.loads(json.dumps(row))) == result
  text = describe(result)
  assert "(2 in all): no times follow; collectives count as often as they run" in text
  assert "efficiency" not in text and "the run" not in text
  assert last_cells(result) == ["1,970+", "8.19+", "15", *["-"] * 5]


def test_columns_in_which_nothing_stands_are_left_out():
  searched = fake_result(largest=7, is_largest=True)
  assert "largest a chip" not in table([fake_result()])
  assert table([fake_result(), searched]).splitlines()[-1].split(" | ")[4] == "7"


def test_the_effort_of_what_is_tried_is_said():
  result = fake_result(effort="full", largest=7, is_largest=True)
  assert "full effort may need other memory" in describe_search(result)


def test_machines_without_counts():
  """Ten times the products of a second at the peak of an H100, in a thousand steps."""
  nothing = {"topology": "h100:1x1x8", "num_devices": 8, "flops": None, "bytes_accessed": None}
  result = fake_result(**nothing)
  assert result.estimate is None
  assert "no times are estimated" in describe(result)
  assert last_cells(result) == ["-", "-", "0", *["-"] * 5]

  result = dataclasses.replace(result, product_flops=989e10)
  text = describe(result)
  assert "work         more than 9,890 GFLOP a chip and step\n" in text
  assert "the compiler counts nothing: operations are those of products before compilation" in text
  assert "computing at least 10 ms, links 0 ms" in text
  efficiency = "100.0% - 100.0%"
  assert last_cells(result) == ["9,890+", "-", "0", "10", "-", "-", efficiency, "30: 10 s, -"]


def test_counts_of_whole_steps_are_the_compilers():
  result = fake_result(product_flops=100e10)
  assert describe(result) == describe(fake_result())
  assert result.estimate == fake_result().estimate


def test_a_compiler_that_fails_is_said_and_the_others_go_on(fake_compiler, monkeypatch, tmp_path):
  fake_compiler(lambda clips, _: clips * 2**20)
  compile_small = compile.compile_plan

  def compile_plan(plan, target, *more):
    if target.name == "v5e:2x2":
      return fake_result(memory=None, error="INTERNAL: of the compiler")
    return compile_small(plan, target, *more)

  monkeypatch.setattr(compile, "compile_plan", compile_plan)
  said = []
  failed, other = compile.run(small_config(), "v5e:2x2,v5e:2x4", workdir=tmp_path, say=said.append)
  assert not failed.fits
  assert failed.error == "INTERNAL: of the compiler"
  assert failed.largest is None
  head = "video_swin_t on 4 v5e chips (one slice of 2x2): 16 clips a step, 4 a chip"
  assert said[0] == f"{head}\nnot compiled: INTERNAL: of the compiler"
  assert other.fits
  assert other.largest
  first, second = said[-1].splitlines()[2:4]
  assert "| v5e:2x2 | 16 (4) | **not compiled** |" in first
  assert first.count("|") == second.count("|")
  line = (tmp_path / "compile.jsonl").read_text().splitlines()[0]
  assert read_row(json.loads(line)) == failed


def test_what_does_not_fit_a_later_machine_is_said_first(cpu_devices, monkeypatch):
  monkeypatch.setattr(compile, "compile_plan", None)
  config = small_config(**{"mesh.fsdp": 4})
  with pytest.raises(ConfigError, match="can't form groups of 4"):
    compile.run(config, "v5e:2x2,v5e-1")


def test_unknown_model_and_machine_end_in_one_line():
  config = small_config()
  with pytest.raises(TargetError, match="unknown chip 'v99'"):
    compile.run(config, "v99:2x2")
  config.model.name = None
  with pytest.raises(ConfigError, match=r"give --config\.init_from=DIR") as error:
    compile.run(config, "v5e:2x2")
  assert "\n" not in str(error.value)


def test_accumulated_parts_are_searched_together(fake_compiler):
  fake_compiler(lambda clips, _: (1 + clips / 3) * 2**30)
  config = small_config(**{"train.grad_accum_steps": 4})
  (result,) = compile.run(config, "v5e:2x2", say=lambda text: None)
  assert (result.largest, result.is_largest) == (4 * 44, True)
