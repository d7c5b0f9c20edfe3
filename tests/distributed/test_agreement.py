"""What the processes of a run make sure to agree on."""

import json
import os

import pytest

from tests.helpers.process_runs import (
  bare_processes,
)


@pytest.mark.slow
def test_what_differs_between_two_processes_is_named_in_both(tmp_path):
  processes = bare_processes(
    2,
    "tests.distributed.agreeing_process",
    lambda port, number: [port, number, str(tmp_path)],
    os.environ,
  )
  messages = [process.communicate(timeout=120)[1] for process in processes]
  assert [process.returncode for process in processes] == [0, 0], messages
  for number in range(2):
    own = tmp_path / str(number)
    told = json.loads((tmp_path / f"{number}.json").read_text())
    assert told.pop("of_first") == 40
    # Without what to do.
    assert {name: error.partition(";")[0] for name, error in told.items()} == {
      "same": "",
      "different": f"classes is not the same in process 1 as in process 0 (here: x{number})",
      "too long to show": "files is not the same in process 1 as in process 0",
      "shared folder": "",
      "own folders": f"{own} is not the same folder in process 1 as in process 0",
    }
  assert not list(tmp_path.rglob(".*"))
