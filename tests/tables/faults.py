"""Prints how runs of two processes end after a fault: `python -m tests.tables.faults`.

After each fault the same command runs again; its numbers are compared with those of an undisturbed
run.
"""

import contextlib
import dataclasses
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

from tests.helpers.process_runs import (
  OPTIONS,
  assert_same_numbers,
  free_port,
  run,
  wait_for,
)
from tests.helpers.runs import ROOT, environment
from tests.helpers.tiny_motion import prepare


class Run:
  """The processes of one run, their logs and exit statuses."""

  def __init__(self, data_dir, workdir, *options, own_options=((), ()), processes=(0, 1)):
    self.workdir = workdir
    port = free_port()
    variables = environment(data_dir) | {"JAX_NUM_CPU_DEVICES": "2"}
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

  def wait_for_text(self, text: str) -> None:
    while text not in self.logs[0].read_text():
      assert self.processes[0].poll() is None, self.logs[0].read_text()
      time.sleep(0.01)
    self.since = time.monotonic()

  def signal(self, number: int, what: signal.Signals) -> None:
    self.since = time.monotonic()
    self.processes[number].send_signal(what)

  def end(self) -> float:
    """Waits until all processes have ended; returns the seconds since the fault."""
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

  def message(self, pattern: str) -> str:
    """Returns the first line of any process that matches."""
    for log in self.logs.values():
      for line in log.read_text().splitlines():
        if re.search(pattern, line):
          # Without the date and source line that C++ code logs.
          return re.sub(r"^[EFIW]\d{4} .*?\] ", "", line.strip())
    return "-"


@dataclasses.dataclass(frozen=True)
class Fault:
  """A fault of a run.

  Attributes:
    title: the fault.
    run: the run, which is about to end.
    pattern: of its message.
    repair: makes the next run possible.
  """

  title: str
  run: Run
  pattern: str
  repair: Callable[[], object] = lambda: None


def requested_to_stop(data_dir, workdir, stack) -> Fault:
  run = Run(data_dir, workdir)
  run.wait_for_file("checkpoints/3")
  run.signal(1, signal.SIGTERM)
  return Fault("SIGTERM to process 1 while training", run, "asked to stop")


def requested_to_stop_in_evaluation(data_dir, workdir, stack) -> Fault:
  views = ("--config.test.num_clips=10", "--config.test.crops=three", "--config.test.short_side=32")
  run = Run(data_dir, workdir, *views)
  run.wait_for_text("evaluating step 12")
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


def main():
  print("| fault | exit statuses | message | seconds until all ended | the same command again |")
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
        line = fault.run.message(fault.pattern)
        fault.repair()
        again = Run(folder, workdir)
        again.end()
        assert again.statuses() == "0, 0", again.logs[0].read_text()
        assert_same_numbers(workdir, expected)
        start = again.message("resuming from|training is complete|from random weights")
        start = start.split(f", {folder}")[0].split(f" of {folder}")[0]
        line = line.replace(str(workdir), "WORKDIR").replace(str(folder), "DATA")
        columns = (
          fault.title,
          fault.run.statuses(),
          line if len(line) <= 240 else f"{line[:240]} ...",
          f"{seconds:.1f}",
          f"{start}; same numbers",
        )
        print(f"| {' | '.join(columns)} |", flush=True)


if __name__ == "__main__":
  main()
