"""Runs of several processes on this machine: the same as one, and what is left when one is lost."""

import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.experiment.test_run import TINY_RUN, final_arrays, metrics

ROOT = pathlib.Path(__file__).parents[2]
# Two stages, wide enough for arrays that fsdp cuts; 12 steps, of which the sixth and the last are
# evaluated and saved.
OPTIONS = (
  *TINY_RUN,
  "--config.model.depths=(2,1)",
  "--config.model.num_heads=(1,2)",
  "--config.model.embed_dim=32",
  "--config.train.epochs=2.0",
  "--config.train.log_every=1",
  "--config.train.eval_every=6",
  "--config.train.save_every=3",
  "--config.loader.num_workers=0",
)


def command(data_dir, workdir, layout, *options, restarts=0) -> list[str]:
  processes, devices = layout
  return [
    sys.executable,
    "launch/local.py",
    f"--processes={processes}",
    f"--devices_per_process={devices}",
    f"--restarts={restarts}",
    "--",
    *OPTIONS,
    f"--config.data.dir={data_dir}",
    f"--workdir={workdir}",
    "--heartbeat_timeout=10",
    *options,
  ]


def environment(data_dir) -> dict[str, str]:
  """Programs are compiled once for all runs."""
  return os.environ | {
    "XLA_FLAGS": "--xla_backend_optimization_level=0",
    "JAX_COMPILATION_CACHE_DIR": str(data_dir / "compiled"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "PYTHONPATH": str(ROOT),
  }


def start(data_dir, workdir, layout, *options, **launch) -> subprocess.Popen:
  return subprocess.Popen(
    command(data_dir, workdir, layout, *options, **launch),
    cwd=ROOT,
    env=environment(data_dir),
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def run(data_dir, workdir, layout, *options, **launch) -> str:
  process = start(data_dir, workdir, layout, *options, **launch)
  output, _ = process.communicate(timeout=300)
  assert process.returncode == 0, output
  return output


def wait_for(path: pathlib.Path, process: subprocess.Popen) -> None:
  deadline = time.monotonic() + 240
  while not path.exists():
    assert process.poll() is None, process.communicate()[0]
    assert time.monotonic() < deadline
    time.sleep(0.01)


def processes_of_run(workdir) -> dict[int, int]:
  """Numbers of the processes of a run -> their process ids."""
  found = {}
  for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
    try:
      arguments = path.read_bytes().decode(errors="replace").split("\0")
    except OSError:
      continue
    number = [a.partition("=")[2] for a in arguments if a.startswith("--process_id=")]
    if f"--workdir={workdir}" in arguments and number:
      found[int(number[0])] = int(path.parent.name)
  return found


def assert_same_numbers(actual, expected):
  """Metrics and arrays to float32 rounding: devices sum in different orders."""
  ours, theirs = metrics(actual), metrics(expected)
  assert [line.keys() for line in ours] == [line.keys() for line in theirs]
  for line, other in zip(ours, theirs):
    np.testing.assert_allclose(list(line.values()), list(other.values()), rtol=2e-5, atol=1e-6)
  ours, theirs = final_arrays(actual), final_arrays(expected)
  assert ours.keys() == theirs.keys()
  for path, array in theirs.items():
    np.testing.assert_allclose(ours[path], array, rtol=1e-3, atol=2e-5, err_msg=path)
  assert (actual / "predictions.csv").read_text().count("\n") == 1 + 21


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
  # Its neighbour may be missed in the middle of an operation with it, or by its silence.
  assert processes[0].returncode in (-signal.SIGABRT, 70), message


def bare_processes(count: int, module: str, arguments, variables) -> list[subprocess.Popen]:
  """Processes that nobody watches; `arguments` are those of a port and a number."""
  with socket.create_server(("localhost", 0)) as server:
    port = str(server.getsockname()[1])
  return [
    subprocess.Popen(
      [sys.executable, "-m", module, *arguments(port, str(number))],
      cwd=ROOT,
      env={**variables, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"},
      stderr=subprocess.PIPE,
      text=True,
    )
    for number in range(count)
  ]
