"""Runs of several processes on this machine."""

import pathlib
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping

import numpy as np

from tests.helpers.runs import ROOT, TINY_RUN, environment, final_arrays, metrics

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


def start(data_dir, workdir, layout, *options, restarts=0) -> subprocess.Popen:
  """Starts the local launcher; `layout`: the numbers of processes and of devices of each."""
  processes, devices = layout
  return subprocess.Popen(
    [
      sys.executable, "launch/local.py", f"--processes={processes}",
      f"--devices_per_process={devices}", f"--restarts={restarts}", "--", *OPTIONS,
      f"--config.data.dir={data_dir}", f"--workdir={workdir}", "--heartbeat_timeout=10", *options,
    ],
    cwd=ROOT,
    env=environment(data_dir) | {"PYTHONPATH": str(ROOT)},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )  # fmt: skip


def run(data_dir, workdir, layout, *options) -> str:
  """Runs to the end and returns the output."""
  process = start(data_dir, workdir, layout, *options)
  output, _ = process.communicate(timeout=300)
  assert process.returncode == 0, output
  return output


def start_processes(
  count: int,
  module: str,
  arguments: Callable[[str, str], list[str]],
  variables: Mapping[str, str],
) -> list[subprocess.Popen]:
  """Starts processes without a launcher; `arguments` are those of a port and a process id."""
  port = str(free_port())
  return [
    subprocess.Popen(
      [sys.executable, "-m", module, *arguments(port, str(process_id))],
      cwd=ROOT,
      env={**variables, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"},
      stderr=subprocess.PIPE,
      text=True,
    )
    for process_id in range(count)
  ]


def free_port() -> int:
  with socket.create_server(("", 0)) as server:
    return server.getsockname()[1]


def wait_for(path: pathlib.Path, process: subprocess.Popen) -> None:
  deadline = time.monotonic() + 240
  while not path.exists():
    assert process.poll() is None, process.communicate()[0]
    assert time.monotonic() < deadline
    time.sleep(0.01)


def process_numbers(workdir) -> dict[int, int]:
  """Returns the operating system's number of each process of a run, by process id."""
  found = {}
  for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
    try:
      arguments = path.read_bytes().decode(errors="replace").split("\0")
    except OSError:
      continue
    ids = [a.partition("=")[2] for a in arguments if a.startswith("--process_id=")]
    if f"--workdir={workdir}" in arguments and ids:
      found[int(ids[0])] = int(path.parent.name)
  return found


def assert_same_numbers(actual, expected):
  """Compares metrics and arrays to float32 rounding: devices sum in different orders."""
  ours, theirs = metrics(actual), metrics(expected)
  assert [line.keys() for line in ours] == [line.keys() for line in theirs]
  for line, other in zip(ours, theirs):
    np.testing.assert_allclose(list(line.values()), list(other.values()), rtol=2e-5, atol=1e-6)
  ours, theirs = final_arrays(actual), final_arrays(expected)
  assert ours.keys() == theirs.keys()
  for path, array in theirs.items():
    np.testing.assert_allclose(ours[path], array, rtol=1e-3, atol=2e-5, err_msg=path)
  assert (actual / "predictions.csv").read_text().count("\n") == 1 + 21
