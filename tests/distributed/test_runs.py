"""Runs of several processes on this machine: the same as one, and what is left when one is lost."""

import os
import pathlib
import re
import signal
import time

import pytest

from tests.helpers.process_runs import (
  OPTIONS,
  assert_same_numbers,
  bare_processes,
  environment,
  processes_of_run,
  run,
  start,
  wait_for,
)


@pytest.fixture(scope="module")
def alone(tiny_data_dir, tmp_path_factory):
  """A run of one process with four devices."""
  workdir = tmp_path_factory.mktemp("alone")
  run(tiny_data_dir, workdir, (1, 4))
  return workdir


@pytest.mark.slow
@pytest.mark.skipif(not pathlib.Path("/proc").exists(), reason="finds processes by /proc")
def test_whatever_happens_to_processes_a_run_ends_as_one_process_does(
  alone, tiny_data_dir, tmp_path
):
  """One of two is killed, both are started again; one is asked to stop, both save and end; one goes
  on with another layout."""
  process = start(tiny_data_dir, tmp_path, (2, 2), "--config.mesh.fsdp=2", restarts=1)
  wait_for(tmp_path / "checkpoints" / "3", process)
  os.kill(processes_of_run(tmp_path)[1], signal.SIGKILL)
  while "resuming from step" not in (tmp_path / "train.log").read_text():
    assert process.poll() is None, process.communicate()[0]
    time.sleep(0.05)
  os.kill(processes_of_run(tmp_path)[1], signal.SIGTERM)
  output, _ = process.communicate(timeout=240)
  assert process.returncode == 0, output
  assert "launch: process 1 was killed (SIGKILL)" in output
  assert "starting all 2 processes again (1 of 1)" in output
  (stopped,) = re.findall(r"asked to stop: saved step (\d+)", output)

  output = run(tiny_data_dir, tmp_path, (1, 4))
  assert f"resuming from step {stopped} of 12" in output
  # Layouts are no part of the recipe.
  assert "will differ" not in output
  assert_same_numbers(tmp_path, alone)
  # The first process alone speaks and writes.
  assert output.count("report: ") == 1 and "[1] step" not in output


@pytest.mark.slow
@pytest.mark.parametrize(
  "when, status, word",
  [
    ("midway", 1, "error: this run ends because of process 1: error: there is no more room"),
    ("at the end", 70, "error: this run ends because of process 0: RuntimeError: odd report"),
  ],
)
def test_an_error_in_one_process_ends_all_with_what_it_said(when, status, word):
  """Left alone, the others would wait for it in a collective operation, or for its end."""
  processes = bare_processes(
    3, "tests.helpers.failing_process", lambda port, number: [port, "3", number, when], os.environ
  )
  messages = [process.communicate(timeout=120)[1] for process in processes]
  assert [process.returncode for process in processes] == [status] * 3, messages
  assert sum(word in message for message in messages) == 2


@pytest.mark.slow
def test_survivors_of_a_killed_process_end_by_themselves(tiny_data_dir, tmp_path):
  def arguments(port: str, number: str) -> list[str]:
    return [
      *OPTIONS, f"--config.data.dir={tiny_data_dir}", f"--workdir={tmp_path}",
      f"--coordinator=localhost:{port}", "--num_processes=2", f"--process_id={number}",
      "--heartbeat_timeout=5",
    ]  # fmt: skip

  processes = bare_processes(2, "vswin_jax.main", arguments, environment(tiny_data_dir))
  wait_for(tmp_path / "checkpoints" / "3", processes[0])
  processes[1].kill()
  _, message = processes[0].communicate(timeout=60)
  # Its neighbor may be missed in the middle of an operation with it, or by its silence.
  assert processes[0].returncode in (-signal.SIGABRT, 70), message
