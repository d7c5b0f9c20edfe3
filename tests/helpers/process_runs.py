"""Runs of several processes on this machine."""

import os
import pathlib
import socket
import subprocess
import sys
import time

import numpy as np

from tests.helpers.runs import (
  TINY_RUN,
  final_arrays,
  metrics,
)

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
