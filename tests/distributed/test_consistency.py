"""Consistency checks across processes."""

import json
import os

import pytest

from tests.helpers.process_runs import start_processes


@pytest.mark.slow
def test_differences_between_two_processes_are_named_in_both(tmp_path):
  processes = start_processes(
    2,
    "tests.distributed.consistency_process",
    lambda port, process: [port, process, str(tmp_path)],
    os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "true", "VSWIN_JAX_CACHE": ""},
  )
  errors = [process.communicate(timeout=120)[1] for process in processes]
  assert [process.returncode for process in processes] == [0, 0], errors
  for process in range(2):
    results = json.loads((tmp_path / f"{process}.json").read_text())
    assert results.pop("broadcast") == 40
    assert results.pop("own caches") == "None"
    assert results.pop("shared cache").startswith(f"{tmp_path}/vswin_jax/compiled/")
    assert {name: error.partition(";")[0] for name, error in results.items()} == {
      "same": "",
      "different": f"classes is not the same in process 1 as in process 0 (here: x{process})",
      "too long to show": "files is not the same in process 1 as in process 0",
      "shared folder": "",
      "own folders": f"{tmp_path / str(process)} is not the same folder in process 1 as in "
      "process 0",
    }
  assert not list(tmp_path.rglob(".processes*"))
