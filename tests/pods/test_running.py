"""From a config to what is said of it on a machine; devices of the CPU stand in for chips."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest

from vswin_jax.models.parameters import flatten
from vswin_jax.plan import ConfigError
from vswin_jax.pods import running
from vswin_jax.pods.data_facts import data_facts
from vswin_jax.pods.program import Collective
from vswin_jax.pods.results import describe, describe_search, read_row, table
from vswin_jax.pods.targets import TargetError, parse_target
from vswin_jax.recipes import quickstart_config


def small_config(**values):
  """A model of few operations on the generated clips."""
  config = quickstart_config("video_swin_t")
  changes = {
    "model.embed_dim": 8,
    "model.depths": (1,),
    "model.num_heads": (1,),
    "model.window_size": (2, 4, 4),
    "clip.num_frames": 4,
    "train.batch_size": 16,
    "data.dir": "/no/such/folder",
  }
  config.update_from_flattened_dict(changes | values)
  return config


@pytest.fixture
def cpu_devices(monkeypatch):
  monkeypatch.setattr(running, "devices_of", lambda target: jax.devices()[: target.num_devices])


def facts_of(config):
  return data_facts(config.data.name, config.data.dir, config.data.train_split)


def test_the_step_and_its_collectives(cpu_devices, tmp_path):
  """What is compiled sums the gradients of all parameters over all devices, once."""
  said = []
  config = small_config()
  (result,) = running.run(
    config, "v5e:2x4", workdir=tmp_path / "new", search=False, say=said.append
  )
  plan = running.plan_for(config, parse_target("v5e:2x4"), facts_of(config))
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
  assert (result.batch_size, result.clips_per_device) == (16, 2)

  (line,) = (tmp_path / "new" / "compile.jsonl").read_text().splitlines()
  assert read_row(json.loads(line)) == result
  text = "\n".join(said)
  assert "video_swin_t on 8 v5e chips (one slice of 2x4): 16 clips a step, 2 a chip" in text
  assert "all-reduce over 8 chips" in text


@pytest.mark.slow
def test_fsdp_cuts_the_state(cpu_devices):
  target, config = parse_target("v5e:2x2"), small_config(**{"model.embed_dim": 64})
  whole = running.compile_for(config, target, facts_of(config))
  config.mesh.fsdp = 4
  parts = running.compile_for(config, target, facts_of(config))
  # The two kernels of the MLP with their moments, float32; all others are too small to be cut.
  cut = 3 * 4 * 2 * 64 * 256
  assert whole.arguments - parts.arguments == cut * 3 // 4
  assert "all-gather" in {one.kind for one in parts.collectives}


def test_a_batch_that_can_not_be_divided_becomes_one_that_can():
  result = fake_result(batch_size=256, wanted_batch_size=64, topology="v5e-256", num_devices=256)
  assert "--config.train.batch_size=256" in describe(result)
  assert "256* (1)" in table([result])


def test_the_plan_takes_the_next_batch(cpu_devices):
  config = small_config(**{"train.batch_size": 12, "train.accumulate": 2})
  plan = running.plan_for(config, parse_target("v5e:2x2"), facts_of(config))
  assert plan.settings.config.train.batch_size == 16
  assert plan.num_steps == 6 * 4096 // 16
  assert config.train.batch_size == 12


def test_several_machines_give_a_table(monkeypatch):
  fake_compiler(monkeypatch, lambda clips, _: clips * 2**30)
  said = []
  results = running.run(small_config(), "v5e:2x2,v6e-8", search=False, say=said.append)
  assert len(results) == 2
  rows = said[-1].split("\n\n")[0].splitlines()
  assert len(rows) == 4
  assert len({row.count("|") for row in rows}) == 1


def fake_result(**values):
  config = small_config()
  fields = {
    "model": config.model.name,
    "topology": "v5e:2x2",
    "num_devices": 4,
    "batch_size": 16,
    "wanted_batch_size": 16,
    "fsdp": 1,
    "rematerialisation": "none",
    "epochs": 30.0,
    "num_steps": 1000,
    "effort": "quick",
    "seconds": 60.0,
    "memory": 2**30,
    "needed": None,
    "arguments": 2**28,
    "flops": 197e10,
    "bytes_accessed": 819e7,
    "collectives": (),
  }
  return running.Result(**fields | values)


def fake_compiler(monkeypatch, memory):
  """`compile_for` with memory as a function of clips a device and config."""

  def compile_for(config, target, facts, *, clips_per_device=None, effort="quick"):
    clips = clips_per_device or config.train.batch_size // target.num_devices
    size = memory(clips // config.train.accumulate, config)
    fits = size <= target.chip.memory
    return fake_result(
      batch_size=clips * target.num_devices,
      fsdp=config.mesh.fsdp,
      memory=int(size) if fits else None,
      needed=None if fits else int(size),
    )

  monkeypatch.setattr(running, "compile_for", compile_for)


def test_the_largest_batch_is_searched(monkeypatch):
  fake_compiler(monkeypatch, lambda clips, _: (1 + 2 * clips) * 2**30)
  said = []
  (result,) = running.run(small_config(), "v5e:2x2", say=said.append)
  assert (result.largest, result.is_largest) == (7, True)
  assert "7 clips a chip fit, 28 in all; 8 do not" in said[1]
  assert "quick effort" not in said[1]  # as all of it


def test_what_does_not_fit_says_what_would(monkeypatch):
  def memory(clips, config):
    per_clip = 1 if config.model.rematerialisation == "block" else 6
    return (4 / config.mesh.fsdp + per_clip * clips) * 2**30

  fake_compiler(monkeypatch, memory)
  said = []
  (result,) = running.run(small_config(), "v5e:2x2", say=said.append)
  assert not result.fits
  assert result.advice == (
    "--config.train.accumulate=4 (10.00 GiB)",
    "--config.model.rematerialisation=block (8.00 GiB)",
    "--config.train.batch_size=4 (1 clips a chip; changes the recipe, whose rates go with its "
    "batch)",
  )
  assert "does not fit: needs 28.00 GiB a chip, there are 15.75" in said[0]
  assert "operations" not in said[0]
  assert "--config.model.rematerialisation=block" in said[1]
  assert "**28.00 > 15.75**" in table([result])


def test_more_parts_are_tried_where_their_sum_takes_memory(monkeypatch):
  """Of four clips two fit at once, but not beside a sum of their gradients."""

  def memory(clips, config):
    return (2 + 6 * clips + 3 * (config.train.accumulate > 1)) * 2**30

  fake_compiler(monkeypatch, memory)
  (result,) = running.run(small_config(), "v5e:2x2", say=lambda text: None)
  assert result.largest == 2
  assert result.advice[0] == "--config.train.accumulate=4 (11.00 GiB)"


def test_both_are_tried_where_neither_is_enough(monkeypatch):
  def memory(clips, config):
    less = config.model.rematerialisation == "block"
    return (20 / config.mesh.fsdp + (1 if less else 20) * clips) * 2**30

  fake_compiler(monkeypatch, memory)
  (result,) = running.run(small_config(), "v5e:2x2", say=lambda text: None)
  assert result.largest == 0
  both = "--config.model.rematerialisation=block --config.mesh.fsdp=4 (9.00 GiB)"
  assert result.advice == (both,)


def test_nothing_fits(monkeypatch):
  fake_compiler(monkeypatch, lambda clips, config: 2**40)
  said = []
  running.run(small_config(), "v5e:2x2", say=said.append)
  assert "nothing that was tried does" in said[1]
  assert "not even one clip a chip fits" in said[1]


def test_what_is_compiled_is_kept_whatever_comes_after(monkeypatch, tmp_path):
  """An error of a try is said of that try; the largest batch leaves one step at least."""
  fake_compiler(monkeypatch, lambda clips, _: clips * 2**20)
  compile_small = running.compile_for
  tried = []

  def compile_for(config, target, facts, *, clips_per_device=None, effort="quick"):
    tried.append(clips_per_device)
    if clips_per_device == 8:
      raise jax.errors.JaxRuntimeError("INTERNAL: of\nthe compiler")
    return compile_small(config, target, facts, clips_per_device=clips_per_device)

  monkeypatch.setattr(running, "compile_for", compile_for)
  said = []
  (result,) = running.run(small_config(), "v5e:2x2", workdir=tmp_path, say=said.append)
  assert (result.largest, result.is_largest) == (7, False)
  assert "8 clips a chip: INTERNAL: of the compiler" in said[1]
  first, last = (tmp_path / "compile.jsonl").read_text().splitlines()
  assert read_row(json.loads(first)).largest is None
  assert read_row(json.loads(last)) == result

  monkeypatch.setattr(running, "compile_for", compile_small)
  config = small_config(**{"train.epochs": 0.01})
  (result,) = running.run(config, "v5e:2x2", say=said.append)
  assert (result.largest, result.is_largest) == (10, False)


def test_a_folder_that_can_not_be_is_said_first(monkeypatch, tmp_path):
  monkeypatch.setattr(running, "compile_for", None)
  (tmp_path / "file").write_text("")
  with pytest.raises(OSError):
    running.run(small_config(), "v5e:2x2", workdir=tmp_path / "file" / "folder")


def test_numbers_by_hand():
  """10 ms of computing, 20 of memory; a thousand steps."""
  text = describe(fake_result(bytes_accessed=819e7 * 2))
  assert "computing at least 10 ms, memory 20 ms, links 0 ms" in text
  assert "efficiency 100.0% - 100.0%; 100.0% - 100.0% of a step that only computes" in text
  assert "1,000 steps, 30 epochs: at least 10 s, about 20 s" in text
  assert "1.00 of 15.75 GiB a chip, of which 0.25 are state and batch: fits" in text
  assert "Not measured" in text
  assert "loops" not in text


def test_loops_leave_no_times():
  sent = (Collective("all-reduce", False, 4, 1, 10**7, 15e6),)
  result = fake_result(loops=2, collectives=sent)
  text = describe(result)
  assert "2 loops count as if they ran once (their collectives count as often as they run)" in text
  assert "efficiency of" not in text and "the run" not in text
  cells = table([result]).splitlines()[-1].split(" | ")
  assert cells[-8:-5] == ["1,970+", "8.19+", "15"]
  assert [cell.strip(" |") for cell in cells[-5:]] == ["-"] * 5
  unknown = dataclasses.replace(result, unknown_loops=1)
  assert "of 1 also the collectives" in describe(unknown)
  assert "| 15+ |" in table([unknown])


def test_the_effort_of_what_is_tried_is_said():
  result = fake_result(effort="full", largest=7, is_largest=True)
  assert "full effort may need other memory" in describe_search(result)


def test_machines_without_counts_get_no_times():
  result = fake_result(topology="h100:1x1x8", num_devices=8, flops=None, bytes_accessed=None)
  assert result.estimate is None
  assert "no times are estimated" in describe(result)
  assert table([result]).splitlines()[-1].count("|") == table([result]).splitlines()[0].count("|")


def test_unknown_model_and_machine_end_in_one_line():
  config = small_config()
  with pytest.raises(TargetError, match="unknown chip 'v99'"):
    running.run(config, "v99:2x2")
  config.model.name = None
  with pytest.raises(ConfigError, match=r"give --config\.init_from=DIR") as error:
    running.run(config, "v5e:2x2")
  assert "\n" not in str(error.value)


def test_accumulated_parts_are_searched_together(monkeypatch):
  fake_compiler(monkeypatch, lambda clips, _: (1 + clips / 3) * 2**30)
  config = small_config(**{"train.accumulate": 4})
  (result,) = running.run(config, "v5e:2x2", say=lambda text: None)
  assert (result.largest, result.is_largest) == (4 * 44, True)
  assert dataclasses.replace(result, largest=None).largest is None
