"""Consistency checks across processes."""

import json
import os

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from tests.helpers.process_runs import start_processes
from vswin_jax.distributed import consistency


def test_runs_that_check_a_folder_at_the_same_time_do_not_disturb_each_other(tmp_path, monkeypatch):
  results = []

  def start_another_run(_):
    if len(list(tmp_path.iterdir())) == 1:
      results.append(consistency.sees_same_folder(tmp_path))

  monkeypatch.setattr(jax, "process_count", lambda: 2)
  monkeypatch.setattr(consistency, "broadcast_from_first", int)
  monkeypatch.setattr(multihost_utils, "process_allgather", np.atleast_1d)
  monkeypatch.setattr(multihost_utils, "sync_global_devices", start_another_run)
  results.append(consistency.sees_same_folder(tmp_path))
  assert np.array_equal(results, [[True], [True]])
  assert not list(tmp_path.iterdir())


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
    assert results.pop("cache of process 1") == ("/elsewhere" if process else "None")
    assert {name: error.partition(";")[0] for name, error in results.items()} == {
      "same": "",
      "different": f"classes is not the same in process 1 as in process 0 (here: x{process})",
      "too long to show": "files is not the same in process 1 as in process 0",
      "shared folder": "",
      "own folders": f"{tmp_path / str(process)} is not the same folder in process 1 as in "
      "process 0",
    }
  assert not list(tmp_path.rglob(".processes*"))
