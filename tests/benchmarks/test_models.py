"""Benchmark of the models: which cases run, tables, pictures."""

import dataclasses
import importlib.util
import json

import jax
import jax.numpy as jnp
import pytest

from benchmarks.models import __main__ as command
from benchmarks.models import cases, cost, measure, pictures, tables
from benchmarks.models.cases import INFERENCE, MACHINE, OURS, TORCH, TRAINING, Case
from benchmarks.models.ours import bytes_moved
from benchmarks.traffic import traffic
from vswin_jax.aot.hlo import read_operations

SWIN = {"model": "video_swin_t", "mode": INFERENCE}
RATES = {"float32": 200e9, "bfloat16": 100e9, "bytes": 20e9}


def measured(seconds, gib=1.0, **known):
  known = {"macs": None, "bytes_moved": None, "parameters": 7} | known
  return [{"seconds": seconds, "peak_bytes": gib * 2**30, "idle_bytes": 0.5 * 2**30, **known}]


@pytest.fixture
def measurements():
  """Results of a machine with round numbers."""
  ours = Case(library=OURS, variant="xla", **SWIN)
  peer = Case(library=TORCH, variant="eager", **SWIN)
  found = {
    MACHINE: [{"rates": RATES, "device": "cpu", "platform": "cpu", "software": "jax"}],
    ours: measured([1.0, 0.5, 0.6], macs=60e9, bytes_moved=6e9),
    peer: measured([1.2, 1.1, 1.3], gib=2.0),
    dataclasses.replace(peer, variant="compiled"): [{"error": "out of memory"}],
    dataclasses.replace(ours, mode=TRAINING): measured([2.0], macs=60e9, bytes_moved=30e9),
    Case("video_swin_t", OURS, "", cases.AGREEMENT): [
      {"parameters": 7, "peer_parameters": 7, "difference": 1e-6}
    ],
  }
  for frames in (8, 64):
    for case in (ours, peer):
      found[dataclasses.replace(case, frames=frames)] = measured([frames / 32])
  for frames in (250, 1000):
    for library in (OURS, TORCH):
      found[Case("temporal_encoder", library, "auto", frames=frames)] = measured([frames / 1e4])
  vtn = Case("vtn_vit_b", OURS, "auto", frames=cases.LONG_VIDEO)
  found[vtn] = measured([4.0], macs=4e12)
  found[dataclasses.replace(vtn, mode=cases.DECODING)] = measured([0.2])
  return found


def test_speed_and_shares(measurements):
  table = tables.speed_table(measurements)
  # 120 GFLOP and 6 GB in 0.6 s.
  assert "| vswin_jax xla | 600 (500-1,000) | 2.00 | 1.00 | 200 | 1.00 | 0.500 |" in table
  assert "| torchvision eager | 1,200 (1,100-1,300) | 1.00 | 2.00 | 100 | 0.500 | - |" in table
  assert "out of memory" in table
  # A training step counts as three forward passes.
  assert "| vswin_jax xla | 2,000 (2,000-2,000) | - | 1.00 | 180 | 0.900 | 0.750 |" in table


def test_curves(measurements):
  table = tables.curve_table(measurements)
  assert "| `video_swin_t`, 1 x 8 x 224², float32 | 250 | 250 | 1.00 |" in table
  assert "| `video_swin_t`, 1 x 32 x 224², float32 | 600 | 1,200 | 2.00 |" in table
  assert "x 250" not in table


def test_all_tables(measurements):
  text = tables.all_tables(measurements)
  assert "200 GFLOP/s in float32, 100 GFLOP/s in bfloat16, 20 GB/s" in text
  assert "7 parameters, peer 7; logits for the same weights agree to 1e-06" in text
  assert "| VTN ViT-B | 1 x 1 of 250 x 224² | 4,000 | 4.00 | 1.00 | 0.200 |" in text
  # 12 views of 0.6 s.
  assert "| Video Swin-T | 4 x 3 of 32 x 224² | 720 | 7.20 | 1.80 | - | 2.00 | 30 | 60.0 |" in text
  assert "| 1,000 | 100 | 100 | 1.00 | 512 | 512 | 1.00 |" in text


def test_pictures(measurements, tmp_path):
  paths = pictures.draw_all(measurements, tmp_path)
  assert len(paths) == 4
  for path in paths:
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size < 1e5
  assert pictures.draw_all({MACHINE: measurements[MACHINE]}, tmp_path) == []


def flags_for(results, *more):
  return command.parse_flags([f"--results={results}", "--rounds=2", *more])


def test_cases_alternate_and_continue(tmp_path, monkeypatch):
  visited = []

  def visit(case, seconds, results):
    visited.append(case.variant)
    row = {"error": "no memory"} if case.variant == "c" else measured([1.0])[0]
    with open(results / command.MEASUREMENTS, "a") as file:
      file.write(json.dumps(dataclasses.asdict(case) | row) + "\n")
    return row

  monkeypatch.setattr(command, "visit", visit)
  group = [Case(library=OURS, variant=name, **SWIN) for name in "abc"]
  flags = flags_for(tmp_path)
  command.run_groups([group[:1]], flags_for(tmp_path, "--rounds=1"), float("inf"))
  assert visited == ["a"]
  command.run_groups([group], flags, float("inf"))
  # Case "a" has had its first turn; a case with an error has no second one.
  assert visited == ["a", "b", "c", "a", "b"]
  command.run_groups([group], flags, float("inf"))
  assert len(visited) == 5
  found = command.read_measurements(tmp_path)
  assert [len(found[case]) for case in group] == [2, 2, 1]
  command.run_groups([[Case("new", OURS, "")]], flags, float("-inf"))
  assert len(visited) == 5


def test_peers_that_are_not_installed_are_skipped(monkeypatch, capsys):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  choice = command.choose(flags_for("x"), "cpu")
  groups = list(cases.main_table(choice))
  assert {case.library for group in groups for case in group} == {OURS, TORCH}
  kept = command.available([case for group in groups for case in group])
  assert {case.library for case in kept} == {OURS}
  assert "pip install timm torch torchvision transformers" in capsys.readouterr().err


def test_peers_on_another_platform_are_skipped(tmp_path, monkeypatch, capsys):
  rows = {OURS: "tpu", TORCH: "cpu"}
  visited = []

  def visit(case, seconds, results):
    visited.append(case)
    row = {"platform": rows[case.library]} if case.mode == cases.LIMITS else measured([1.0])[0]
    with open(results / command.MEASUREMENTS, "a") as file:
      file.write(json.dumps(dataclasses.asdict(case) | row) + "\n")
    return row

  monkeypatch.setattr(command, "visit", visit)
  monkeypatch.setattr(command, "available", list)
  command.measure_all(flags_for(tmp_path, "--rounds=1"))
  libraries = {case.library for case in visited if case.mode != cases.LIMITS}
  assert libraries == {OURS}
  assert "PyTorch is not measured beside JAX on tpu" in capsys.readouterr().err


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_implementations_fit_the_platform(platform):
  choice = command.choose(flags_for("x"), platform)
  implementations = choice.implementations["video_swin_t"]
  assert implementations[:2] == ["auto", "xla"]
  assert not any("interpret" in name for name in implementations)
  assert ("pallas_tpu" in implementations) == (platform == "tpu")
  groups = [*cases.main_table(choice), *cases.headlines(choice), *cases.curves(choice)]
  assert {case.library for group in groups for case in group} == {OURS, TORCH}
  for group in groups:
    assert len({case.group for case in group}) == 1


def test_a_case_runs_in_a_process_of_its_own(tmp_path):
  case = Case(cases.BLOCK, OURS, "xla", frames=4, size=28, mode=TRAINING)
  result = command.visit(case, 0.0, tmp_path)
  assert "error" not in result, result
  assert len(result["seconds"]) == 2
  # Queries, keys and values, projection, MLP; logits and values; 2 x 7 x 7 tokens.
  assert result["macs"] == 98 * (12 * 96**2 + 2 * 98 * 96)
  assert result["peak_bytes"] >= result["idle_bytes"] > 0
  assert command.read_measurements(tmp_path) == {case: [result]}
  result = command.visit(dataclasses.replace(case, variant="none"), 0.0, tmp_path)
  assert "unknown attention" in result["error"]


def test_arrays_that_a_loop_goes_through_count_once():
  def program(x):
    return jax.lax.map(lambda row: jnp.tanh(row @ row), x)

  x = jax.ShapeDtypeStruct((5, 64, 64), jnp.float32)
  operations = read_operations(jax.jit(program).lower(x).compile().as_text())
  array = 5 * 64 * 64 * 4
  assert sum(map(bytes_moved, operations)) < 9 * array
  assert sum(map(traffic, operations)) > 18 * array


def test_long_first_calls_count(monkeypatch):
  monkeypatch.setattr(measure, "_LONG_CALL_SECONDS", 0.0)
  assert len(measure.timed_calls(lambda: None, 0.0)) == 1


@pytest.mark.parametrize("name", ["video_swin_t", "vtn_vit_b"])
def test_costs_are_those_of_the_papers(name):
  parameters, macs, _ = cost.count(name)
  published = cost.PUBLISHED[name]
  assert macs / 1e9 == pytest.approx(published[0], rel=4e-3)
  assert parameters / 1e6 == pytest.approx(published[1], rel=5e-3)
