"""The table of machines: which rows it shows, and what one of them tells of another slice."""

import dataclasses
import json

import jax
import pytest

from benchmarks import pod_table
from benchmarks.pod_table import Job, on_other_slice, read_rows, same_program, table_rows
from tests.aot.small_step import fake_result, small_config
from vswin_jax.aot import compile
from vswin_jax.aot.dataset_metadata import DatasetMetadata
from vswin_jax.aot.hlo import Collective
from vswin_jax.aot.results import read_row, write_row
from vswin_jax.aot.topologies import parse_target


def result_on(topology, **values):
  target = parse_target(topology)
  own = {
    "topology": topology,
    "num_devices": target.num_devices,
    "batch_size": target.num_devices,
    "wanted_batch_size": target.num_devices,
    "collectives": (Collective("all-reduce", False, target.num_devices, 3, 1000, 1500.0),),
  }
  return fake_result(**own | values)


def row_of(result, program="abc", same_as=None, **job):
  job = Job(**{"config": "one", "topology": result.topology} | job)
  more = {"job": dataclasses.asdict(job), "program": program, "same_as": same_as}
  return job, dataclasses.asdict(result) | more


@pytest.fixture
def results(tmp_path):
  """A file with a plain row, its search, a search alone and a plain row of another machine."""
  path = tmp_path / "rows.jsonl"
  rows = (
    row_of(result_on("v5e-16")),
    row_of(result_on("v5e-16", largest=9, is_largest=True), search=True),
    row_of(result_on("v5e-64", largest=7), search=True, config="two", same_as=["one", "v5e-16"]),
    row_of(result_on("v5e:2x2")),
    row_of(result_on("v5e-16", largest=3), clips=1),
  )
  for _, row in rows:
    result = read_row(row)
    more = {name: row[name] for name in ("job", "program", "same_as")}
    write_row(path, result, **more)
  return path


def test_a_search_takes_the_place_of_its_plain_row(results):
  found = table_rows(read_rows(results), ["v5e-16", "v5e-64", "v5e:2x2"], ["one", "two"])
  assert [(job.config, job.topology, row["largest"]) for job, row in found] == [
    ("one", "v5e-16", 9),
    ("two", "v5e-64", 7),
    ("one", "v5e:2x2", None),
  ]
  assert [job for job, _ in table_rows(read_rows(results), ["v5e:2x2"], ["two"])] == []


def test_the_table_shows_what_is_asked_for(results, monkeypatch, capsys):
  asked = ["--table", "--topologies=v5e-64,v5e:2x2", "--configs=one,two"]
  monkeypatch.setattr("sys.argv", ["pod_table", f"--results={results}", *asked])
  pod_table.main()
  lines = capsys.readouterr().out.splitlines()
  assert [line.split(" | ")[:2] for line in lines[2:4]] == [
    ["| `two`", "v5e-64"],
    ["| `one`", "v5e:2x2"],
  ]
  assert lines[-1] == "A chip runs what it runs of `one` on v5e-16: `two` on v5e-64."


def test_rows_without_newer_numbers_are_read(results):
  row = json.loads(results.read_text().splitlines()[0])
  for name in ("product_flops", "grad_accum_steps", "num_videos", "videos_source", "error"):
    del row[name]
  assert read_row(row) == result_on("v5e-16")


@pytest.mark.parametrize(
  "program, chip, fsdp, row_fsdp, topology, found",
  [
    ("abc", "v5e", 1, 1, "v5e-16", True),
    ("other", "v5e", 1, 1, "v5e-16", False),
    ("abc", "v6e", 1, 1, "v5e-16", False),
    ("abc", "v5e", 4, 1, "v5e-16", False),
    ("abc", "v5e", 1, 16, "v5e-16", False),
    ("abc", "v5e", 1, 1, "2*v5e:4x4", False),
  ],
)
def test_only_whole_states_on_one_slice_of_the_chip_are_the_same(
  program, chip, fsdp, row_fsdp, topology, found
):
  job, row = row_of(result_on(topology, fsdp=row_fsdp))
  assert same_program({job: row}, program, chip, fsdp) == (row if found else None)


def test_what_depends_on_other_chips_is_shared_with_nothing():
  job, row = row_of(result_on("v5e-16"), program=None)
  assert same_program({job: row}, None, "v5e", 1) is None


def test_a_failure_is_not_shared():
  job, row = row_of(result_on("v5e-16", memory=None, error="INTERNAL: of the compiler"))
  assert same_program({job: row}, "abc", "v5e", 1) is None


def test_another_slice_sums_over_other_groups_and_was_not_searched(monkeypatch):
  monkeypatch.setattr(compile, "devices_of", lambda target: jax.devices()[: target.num_devices])
  target, metadata = parse_target("v5e-8"), DatasetMetadata(6, 4096, False, "some list")
  plan = compile.plan_for(small_config(), target, metadata)
  searched = {"largest": 9, "is_largest": True, "advice": ("a",), "failed": ("b",)}
  found = result_on("v5e-4", num_videos=5, videos_source="another", **searched)
  result = on_other_slice(found, target, metadata, plan, 12)
  changed = {
    "batch_size": 16,
    "wanted_batch_size": 12,
    "epochs": 6,
    "num_steps": 6 * 4096 // 16,
    "num_videos": 4096,
    "videos_source": "some list",
    "seconds": 0.0,
    # Of a ring of eight: 2 * 7/8 of 1000 bytes.
    "collectives": (Collective("all-reduce", False, 8, 3, 1000, 1750.0),),
  }
  assert result == result_on("v5e-8", **changed)
