"""Tables of docs/pods.md from the files of compilations."""

import dataclasses
import json

import pytest

from benchmarks import pod_scaling, pod_table
from tests.aot.small_step import fake_result
from vswin_jax.aot.compile import RESULTS_FILE
from vswin_jax.aot.hlo import Collective


def write(folder, *results):
  folder.mkdir(parents=True)
  rows = [json.dumps(dataclasses.asdict(result)) + "\n" for result in results]
  (folder / RESULTS_FILE).write_text("".join(rows))


@pytest.fixture
def folder(tmp_path):
  """Results of two configs, one of which was searched."""
  sent = (Collective("all-reduce", False, 16, 3, 1000, 1500.0),)
  step = fake_result(topology="v5e-16", collectives=sent, failed=("a",))
  write(tmp_path / "one", step, dataclasses.replace(step, largest=9), fake_result())
  write(tmp_path / "two", fake_result(topology="v5e-64", batch_size=64))
  return tmp_path


def table_of(module, folder, monkeypatch, capsys, *flags):
  monkeypatch.setattr("sys.argv", ["name", f"--results={folder}", "--table", *flags])
  module.main()
  lines = capsys.readouterr().out.splitlines()
  return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def test_last_result_of_a_topology_counts(folder):
  found = pod_table.read_results(folder / "one")
  assert [(name, result.largest) for name, result in found.items()] == [
    ("v5e-16", 9),
    ("v5e:2x2", None),
  ]
  assert isinstance(found["v5e-16"].collectives[0], Collective)
  assert found["v5e-16"].failed == ("a",)
  assert pod_table.read_results(folder / "three") == {}


def test_table(folder, monkeypatch, capsys):
  flags = ("--topologies=v5e-64,v5e:2x2", "--configs=one,two")
  _, _, *rows = table_of(pod_table, folder, monkeypatch, capsys, *flags)
  assert [row[:2] for row in rows] == [["`two`", "v5e-64"], ["`one`", "v5e:2x2"]]


def test_only_missing_results_are_compiled(folder, monkeypatch):
  commands = []
  monkeypatch.setattr("subprocess.run", lambda command, **_: commands.append(command))
  pod_table.compile_missing("one", "v5e-16", folder / "one", search=True)
  pod_table.compile_missing("one", "v5e:2x2", folder / "one")
  assert not commands
  pod_table.compile_missing("one", "v5e:2x2", folder / "one", search=True)
  pod_table.compile_missing("one", "v6e-64", folder / "one", "--config.mesh.fsdp=4")
  searched, sharded = commands
  assert {"--topology=v5e:2x2", "--search=true"} <= set(searched)
  assert {"--topology=v6e-64", "--search=false", "--config.mesh.fsdp=4"} <= set(sharded)


def test_scaling_table(tmp_path, monkeypatch, capsys):
  sent = (
    Collective("all-gather", False, 4, 1, 10**6, 3e6),
    Collective("all-to-all", True, 2, 1, 2 * 10**6, 1e6),
  )
  write(tmp_path / "replicated", fake_result())
  write(tmp_path / "fsdp", fake_result(fsdp=4, collectives=sent))
  head, _, whole, sharded = table_of(pod_scaling, tmp_path, monkeypatch, capsys)
  assert whole[:4] == ["4", "v5e:2x2", "on every chip", "1.00"]
  cells = dict(zip(head, sharded, strict=True))
  assert cells["state"] == "sharded over 4 chips"
  assert (cells["all-gather MB"], cells["other MB"]) == ("1.0", "2.0")
  assert (cells["sent within slice MB"], cells["sent between slices MB"]) == ("3.0", "1.0")
