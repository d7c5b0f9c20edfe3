"""Runs of several processes: same numbers as one process, restarts, joint exit."""

import os
import pathlib
import re
import signal
import time

import pytest

from tests.helpers.process_runs import (
  OPTIONS,
  assert_same_numbers,
  process_numbers,
  run,
  start,
  start_processes,
  wait_for,
)
from tests.helpers.runs import environment


@pytest.fixture(scope="module")
def alone(tiny_data_dir, tmp_path_factory):
  """A run of one process with four devices."""
  workdir = tmp_path_factory.mktemp("alone")
  run(tiny_data_dir, workdir, (1, 4))
  return workdir


@pytest.mark.slow
@pytest.mark.skipif(not pathlib.Path("/proc").exists(), reason="finds processes by /proc")
def test_an_interrupted_run_has_the_numbers_of_one_process(alone, tiny_data_dir, tmp_path):
  """Kills one of two processes, then stops one after the restart, then resumes as one process."""
  process = start(tiny_data_dir, tmp_path, (2, 2), "--config.mesh.fsdp=2", restarts=1)
  wait_for(tmp_path / "checkpoints" / "3", process)
  os.kill(process_numbers(tmp_path)[1], signal.SIGKILL)
  while "resuming from step" not in (tmp_path / "train.log").read_text():
    assert process.poll() is None, process.communicate()[0]
    time.sleep(0.05)
  os.kill(process_numbers(tmp_path)[1], signal.SIGTERM)
  output, _ = process.communicate(timeout=240)
  assert process.returncode == 0, output
  assert "process 1 was killed (SIGKILL)" in output
  (stopped,) = re.findall(r"asked to stop: saved step (\d+)", output)

  output = run(tiny_data_dir, tmp_path, (1, 4))
  assert f"resuming from step {stopped} of 12" in output
  # The layout is not part of the recipe.
  assert "will differ" not in output
  assert_same_numbers(tmp_path, alone)
  # Process 0 alone logs and writes.
  assert output.count("report: ") == 1 and "[1] step" not in output


@pytest.mark.slow
@pytest.mark.parametrize(
  "when, status, message",
  [
    ("midway", 1, "error: this run ends because of process 1: error: there is no more room"),
    ("at the end", 70, "error: this run ends because of process 0: RuntimeError: odd report"),
  ],
)
def test_an_error_in_one_process_ends_all_with_its_message(when, status, message):
  processes = start_processes(
    3,
    "tests.distributed.failing_process",
    lambda port, process: [port, "3", process, when],
    os.environ,
  )
  errors = [process.communicate(timeout=120)[1] for process in processes]
  assert [process.returncode for process in processes] == [status] * 3, errors
  assert sum(message in error for error in errors) == 2


@pytest.mark.slow
def test_processes_end_when_one_is_killed(tiny_data_dir, tmp_path):
  def arguments(port: str, process: str) -> list[str]:
    return [
      *OPTIONS, f"--config.data.dir={tiny_data_dir}", f"--workdir={tmp_path}",
      f"--coordinator=localhost:{port}", "--num_processes=2", f"--process_id={process}",
      "--heartbeat_timeout=5",
    ]  # fmt: skip

  processes = start_processes(2, "vswin_jax.main", arguments, environment(tiny_data_dir))
  wait_for(tmp_path / "checkpoints" / "3", processes[0])
  processes[1].kill()
  _, errors = processes[0].communicate(timeout=60)
  # Found by a collective operation that fails, or by the missing heartbeat.
  assert processes[0].returncode in (-signal.SIGABRT, 70), errors
