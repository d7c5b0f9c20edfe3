"""Breaks runs of two processes in all ways and prints what came of it.

After each fault the same command runs again, and its numbers are compared with those of a run that
nothing happened to.

python -m tests.tables.faults
"""

import contextlib
import dataclasses
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

from tests.helpers.process_runs import (
  OPTIONS,
  ROOT,
  assert_same_numbers,
  run,
  wait_for,
)
from tests.helpers.tiny_motion import prepare


class Run:
  """Two processes of one run, their messages and ends."""

  def __init__(self, data_dir, workdir, *options, own_options=((), ()), processes=(0, 1)):
    self.workdir = workdir
    with socket.create_server(("localhost", 0)) as server:
      port = server.getsockname()[1]
    variables = os.environ | {
      "JAX_PLATFORMS": "cpu",
      "JAX_NUM_CPU_DEVICES": "2",
      "XLA_FLAGS": "--xla_backend_optimization_level=0",
      "JAX_COMPILATION_CACHE_DIR": str(data_dir / "compiled"),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    self.logs = {number: workdir.with_suffix(f".{number}.txt") for number in processes}
    self.processes = {}
    for number in processes:
      arguments = [
        sys.executable, "-m", "vswin_jax.main", *OPTIONS, f"--config.data.dir={data_dir}",
        f"--workdir={workdir}", f"--coordinator=localhost:{port}", "--num_processes=2",
        f"--process_id={number}", *options, *own_options[number],
      ]  # fmt: skip
      with self.logs[number].open("w") as log:
        self.processes[number] = subprocess.Popen(
          arguments, cwd=ROOT, env=variables, stdout=log, stderr=log
        )
    self.since = time.monotonic()

  def wait_for_file(self, name: str) -> None:
    wait_for(self.workdir / name, next(iter(self.processes.values())))
    self.since = time.monotonic()

  def wait_for_words(self, words: str) -> None:
    while words not in self.logs[0].read_text():
      assert self.processes[0].poll() is None, self.logs[0].read_text()
      time.sleep(0.01)
    self.since = time.monotonic()

  def signal(self, number: int, what: signal.Signals) -> None:
    self.since = time.monotonic()
    self.processes[number].send_signal(what)

  def end(self) -> float:
    """Waits for the end of all processes; seconds since the last call that waited or signaled."""
    ends = {}
    while len(ends) < len(self.processes):
      for number, process in self.processes.items():
        if number not in ends and process.poll() is not None:
          ends[number] = time.monotonic() - self.since
      time.sleep(0.02)
    return max(ends.values())

  def statuses(self) -> str:
    return ", ".join(
      signal.Signals(-process.returncode).name
      if process.returncode < 0
      else f"{process.returncode}"
      for process in self.processes.values()
    )

  def said(self, pattern: str) -> str:
    """The first line of any process with these words."""
    for log in self.logs.values():
      for line in log.read_text().splitlines():
        if re.search(pattern, line):
          # Without the date and place that C++ puts before it.
          return re.sub(r"^[EFIW]\d{4} .*?\] ", "", line.strip())
    return "-"


@dataclasses.dataclass(frozen=True)
class Fault:
  """A run to which something has happened.

  Attributes:
    title: what.
    run: which is about to end.
    words: pattern of what it says.
    repair: makes the next run possible.
  """

  title: str
  run: Run
  words: str
  repair: Callable[[], object] = lambda: None


def requested_to_stop(data_dir, workdir, stack) -> Fault:
  run = Run(data_dir, workdir)
  run.wait_for_file("checkpoints/3")
  run.signal(1, signal.SIGTERM)
  return Fault("SIGTERM to process 1 while training", run, "asked to stop")


def requested_to_stop_in_evaluation(data_dir, workdir, stack) -> Fault:
  views = ("--config.test.num_clips=10", "--config.test.crops=three", "--config.test.short_side=32")
  run = Run(data_dir, workdir, *views)
  run.wait_for_words("evaluating step 12")
  run.signal(1, signal.SIGTERM)
  return Fault("SIGTERM to process 1 in the last evaluation", run, "asked to stop")


def killed(number: int, *options: str):
  def kill(data_dir, workdir, stack) -> Fault:
    run = Run(data_dir, workdir, *options)
    run.wait_for_file("checkpoints/6")
    run.signal(number, signal.SIGKILL)
    title = " ".join([f"SIGKILL of process {number}", *(f"`{option}`" for option in options)])
    return Fault(title, run, "Terminating process because|this run ends")

  return kill


def never_started(data_dir, workdir, stack) -> Fault:
  run = Run(data_dir, workdir, "--start_timeout=10", processes=(0,))
  return Fault("process 1 is never started `--start_timeout=10`", run, "^error")


def without_data(data_dir, workdir, stack) -> Fault:
  nothing = f"--config.data.dir={workdir}/nothing"
  run = Run(data_dir, workdir, own_options=((), (nothing,)))
  return Fault("process 1 does not find the data", run, "^error: no data set")


def other_options(data_dir, workdir, stack) -> Fault:
  run = Run(data_dir, workdir, own_options=((), ("--config.train.batch_size=16",)))
  return Fault("process 1 has another batch size", run, "^error")


def damaged_checkpoint(data_dir, workdir, stack) -> Fault:
  run = Run(data_dir, workdir)
  run.wait_for_file("checkpoints/6")
  run.signal(1, signal.SIGTERM)
  run.end()
  newest = max((workdir / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.name))
  largest = max(newest.rglob("*"), key=lambda path: path.stat().st_size)
  largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
  return Fault("the newest checkpoint lost half of a file", Run(data_dir, workdir), "damaged")


def lost_checkpoints(data_dir, workdir, stack) -> Fault:
  run = Run(data_dir, workdir)
  run.wait_for_file("checkpoints/3")
  shutil.rmtree(workdir / "checkpoints", ignore_errors=True)
  return Fault("`checkpoints/` is removed while training", run, "checkpoints? of|^error")


def lost_workdir(data_dir, workdir, stack) -> Fault:
  run = Run(data_dir, workdir)
  run.wait_for_file("checkpoints/3")
  shutil.rmtree(workdir, ignore_errors=True)
  return Fault("the whole workdir is removed while training", run, "^error")


def full_disk(data_dir, workdir, stack) -> Fault:
  workdir.mkdir()
  subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", workdir], check=True)
  stack.callback(subprocess.run, ["umount", "-l", workdir], check=True)
  run = Run(data_dir, workdir)
  run.wait_for_file("checkpoints/3")
  filler = workdir / "filler"
  with contextlib.suppress(OSError), filler.open("wb") as file:
    while True:
      file.write(bytes(2**16))
  return Fault("the disk is full after step 3", run, "^error", filler.unlink)


FAULTS = (
  requested_to_stop,
  requested_to_stop_in_evaluation,
  killed(1),
  killed(1, "--heartbeat_timeout=10"),
  killed(0),
  never_started,
  without_data,
  other_options,
  damaged_checkpoint,
  lost_checkpoints,
  lost_workdir,
  full_disk,
)


def _shorten(line: str) -> str:
  return line if len(line) <= 240 else f"{line[:240]} ..."


def main():
  print("| fault | statuses | what is said | seconds until all ended | the same command again |")
  print("|---|---|---|---|---|")
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    prepare(folder)
    expected = folder / "expected"
    run(folder, expected, (2, 2))
    for number, bring_about in enumerate(FAULTS):
      with contextlib.ExitStack() as stack:
        workdir = folder / f"run{number}"
        fault = bring_about(folder, workdir, stack)
        seconds = fault.run.end()
        line = fault.run.said(fault.words)
        fault.repair()
        again = Run(folder, workdir)
        again.end()
        assert again.statuses() == "0, 0", again.logs[0].read_text()
        assert_same_numbers(workdir, expected)
        start = again.said("resuming from|training is complete|from random weights")
        start = start.split(f", {folder}")[0].split(f" of {folder}")[0]
        line = line.replace(str(workdir), "WORKDIR").replace(str(folder), "DATA")
        columns = (
          fault.title,
          fault.run.statuses(),
          _shorten(line),
          f"{seconds:.1f}",
          f"{start}; same numbers",
        )
        print(f"| {' | '.join(columns)} |", flush=True)


if __name__ == "__main__":
  main()
