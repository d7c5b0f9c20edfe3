"""Runs `vswin_jax.main` in several processes of this machine and starts all again after a fault.

  python launch/local.py --processes=4 -- --config=configs/quickstart.py --workdir=runs/quickstart

What comes after `--` goes to every process.
"""

import contextlib
import ctypes
import dataclasses
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

from absl import app, flags

from vswin_jax.common.cli import USER_ERRORS, parse_config_flags

PLATFORMS = ("cpu", "gpu")

_POLL_SECONDS = 0.05
_PR_SET_PDEATHSIG = 1


class LaunchError(ValueError):
  """A launch that is not possible; one line."""


@dataclasses.dataclass(frozen=True)
class Job:
  """What is started, and how often.

  Attributes:
    command: of one process; what tells it the others is appended.
    processes: how many.
    devices_per_process: virtual devices on a CPU; on a GPU machine, GPUs of each process. None:
      one, but a single process has all GPUs.
    platform: one of PLATFORMS.
    restarts: how many times all processes are started again.
    settle_seconds: when a process has aborted, how long another that gave it reason to may take to
      end.
    grace_seconds: between SIGTERM and SIGKILL for the processes left over by a fault.
  """

  command: tuple[str, ...]
  processes: int = 1
  devices_per_process: int | None = None
  platform: str = "cpu"
  restarts: int = 3
  settle_seconds: float = 1.0
  grace_seconds: float = 5.0


def processes_of(job: Job, port: int) -> list[tuple[dict[str, str], list[str]]]:
  """What is added to the environment, and the command, of every process.

  Args:
    job: what is started.
    port: free on this machine; where process 0 listens for the others.

  Raises:
    LaunchError: CUDA_VISIBLE_DEVICES names fewer GPUs than are asked for.
  """
  devices = job.devices_per_process or 1
  if job.platform == "cpu":
    environments = [{"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}] * job.processes
  elif job.processes == 1 and job.devices_per_process is None:
    environments = [{"JAX_PLATFORMS": "cuda,cpu"}]
  else:
    environments = [
      {"JAX_PLATFORMS": "cuda,cpu", "CUDA_VISIBLE_DEVICES": ",".join(share)}
      for share in _shares_of_gpus(job.processes, devices)
    ]
  return [
    (
      environment,
      [
        *job.command,
        f"--coordinator=localhost:{port}",
        f"--num_processes={job.processes}",
        f"--process_id={index}",
      ],
    )
    for index, environment in enumerate(environments)
  ]


def _shares_of_gpus(processes: int, devices: int) -> list[list[str]]:
  needed = processes * devices
  visible = os.environ.get("CUDA_VISIBLE_DEVICES")
  names = [str(gpu) for gpu in range(needed)] if visible is None else visible.split(",")
  if len(names) < needed:
    raise LaunchError(
      f"{processes} processes with {devices} GPUs each need {needed} GPUs, but "
      f"CUDA_VISIBLE_DEVICES={visible}; give fewer --processes or --devices_per_process"
    )
  return [names[start : start + devices] for start in range(0, needed, devices)]


def dry_run(job: Job) -> str:
  """The commands of one start, one a line, as a shell takes them."""
  return "\n".join(
    " ".join([f"{name}={shlex.quote(value)}" for name, value in environment.items()])
    + f" {shlex.join(command)}"
    for environment, command in processes_of(job, _free_port())
  )


def run(job: Job) -> int:
  """Starts all processes, again after a fault, and returns an exit status.

  A process that was killed, aborted or ended with an unusual status ends the others, since none of
  them can go on, and all are started on a new port. SIGTERM or SIGINT to this process is passed on
  to process 0, which makes all save and end; a second one kills. The processes end with this one,
  however it ends (on Linux).

  Returns:
    0: all processes ended well. Otherwise the status of the process that began the trouble, as a
    shell gives it (128 + signal): at once if it is one of `command_line.USER_ERRORS`, else when
    there were enough starts.

  Raises:
    LaunchError: as in `processes_of`.
  """
  with _stop_requests() as requests:
    for start in range(job.restarts + 1):
      status = _run_once(job, requests)
      if status == 0 or status in USER_ERRORS or requests:
        break
      if start == job.restarts:
        _say(f"started {start + 1} times: giving up")
      else:
        _say(f"starting all {job.processes} processes again ({start + 1} of {job.restarts})")
  return status


@contextlib.contextmanager
def _stop_requests() -> Iterator[list[int]]:
  """Yields a list to which every signal that asks to stop is added."""
  requests: list[int] = []
  before = {
    number: signal.signal(number, lambda number, frame: requests.append(number))
    for number in (signal.SIGTERM, signal.SIGINT)
  }
  try:
    yield requests
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


def _run_once(job: Job, requests: list[int]) -> int:
  processes = [
    _start(environment, command) for environment, command in processes_of(job, _free_port())
  ]
  readers = [
    threading.Thread(target=_pass_on, args=(index, process.stdout), daemon=True)
    for index, process in enumerate(processes)
  ]
  for reader in readers:
    reader.start()
  try:
    ended = _wait(processes, requests, job.settle_seconds)
    if all(process.poll() == 0 for process in processes):
      return 0
    if len(requests) > 1:
      _say("killing all processes")
      _end(processes, 0)
    else:
      _say(_fate(ended, processes[ended].returncode))
      _end(processes, job.grace_seconds)
  finally:
    _end(processes, 0)
    for reader in readers:
      reader.join(timeout=5)
  if ended is None:
    return 128 + signal.SIGKILL
  code = processes[ended].returncode
  return code if code > 0 else 128 - code


def _wait(
  processes: list[subprocess.Popen], requests: list[int], settle_seconds: float
) -> int | None:
  """Waits until all have ended well or one has not, and returns the number of that one."""
  passed_on = False
  aborted = None
  deadline = float("inf")
  while True:
    codes = [process.poll() for process in processes]
    failed = [index for index, code in enumerate(codes) if code]
    # When one dies, the distributed runtime of JAX may abort the others before the end of the first
    # is seen here.
    causes = [index for index in failed if codes[index] != -signal.SIGABRT]
    if causes:
      return min(causes, key=lambda index: codes[index] > 0)
    if failed and aborted is None:
      aborted, deadline = failed[0], time.monotonic() + settle_seconds
    if time.monotonic() > deadline or all(code is not None for code in codes):
      return aborted
    if len(requests) > 1:
      return None
    if requests and not passed_on:
      passed_on = True
      _say("asked to stop: passing it on to process 0; once more kills")
      running = next((process for process in processes if process.poll() is None), None)
      if running is not None:
        running.terminate()
    time.sleep(_POLL_SECONDS)


def _start(environment: dict[str, str], command: list[str]) -> subprocess.Popen:
  library = ctypes.CDLL(None) if sys.platform == "linux" else None
  parent = os.getpid()

  def end_with_parent():
    if library is not None:
      library.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
      if os.getppid() != parent:
        os._exit(1)

  return subprocess.Popen(
    command,
    # Line by line, so that errors stand among what was said before them.
    env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
    stdin=subprocess.DEVNULL,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    # An interrupt from the terminal is for the launcher alone.
    start_new_session=True,
    preexec_fn=end_with_parent,
  )


def _pass_on(index: int, stream) -> None:
  for line in stream:
    # A run goes on when nobody reads any more; but its pipe has to be emptied.
    with contextlib.suppress(BrokenPipeError):
      sys.stdout.buffer.write(b"[%d] %s\n" % (index, line.removesuffix(b"\n")))
      sys.stdout.buffer.flush()


def _end(processes: list[subprocess.Popen], grace_seconds: float) -> None:
  """Ends what is running, and the processes that it started."""
  if grace_seconds:
    for process in processes:
      process.terminate()
    deadline = time.monotonic() + grace_seconds
    while time.monotonic() < deadline and any(process.poll() is None for process in processes):
      time.sleep(_POLL_SECONDS)
  for process in processes:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # nothing is left of it
      os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _fate(index: int, code: int) -> str:
  if code < 0:
    return f"process {index} was killed ({signal.Signals(-code).name})"
  return f"process {index} ended with status {code}"


def _free_port() -> int:
  with socket.socket() as listener:
    listener.bind(("localhost", 0))
    return listener.getsockname()[1]


def _say(text: str) -> None:
  print(f"launch: {text}", file=sys.stderr, flush=True)


def define_flags() -> None:
  flags.DEFINE_integer("processes", 1, "How many.", lower_bound=1)
  flags.DEFINE_integer(
    "devices_per_process",
    None,
    "Virtual devices on a CPU, GPUs on a GPU machine; by default one, but a single process has all "
    "GPUs.",
    lower_bound=1,
  )
  flags.DEFINE_enum("platform", "cpu", PLATFORMS, "What computes.")
  flags.DEFINE_integer(
    "restarts", 3, "How many times all processes are started again after a fault.", lower_bound=0
  )
  flags.DEFINE_boolean("dry_run", False, "Print the commands and run nothing.")


def main(arguments: list[str]) -> None:
  if not arguments[1:]:
    sys.exit("error: give the arguments of the run after --, as in -- --config=... --workdir=...")
  options = flags.FLAGS
  job = Job(
    command=(sys.executable, "-m", "vswin_jax.main", *arguments[1:]),
    processes=options.processes,
    devices_per_process=options.devices_per_process,
    platform=options.platform,
    restarts=options.restarts,
  )
  try:
    if options.dry_run:
      print(dry_run(job))
    else:
      sys.exit(run(job))
  except LaunchError as error:
    sys.exit(f"error: {error}")


# Not defined for those who import this module: they have flags of their own.
if __name__ == "__main__":
  define_flags()
  app.run(main, flags_parser=parse_config_flags)
