"""Runs `vswin_jax.main` in several processes of this machine and restarts all after a failure.

  python launch/local.py --processes=4 -- --config=configs/quickstart.py --workdir=runs/quickstart

Every process gets the arguments after `--`.
"""

import argparse
import contextlib
import ctypes
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

from vswin_jax.common.cli import USER_ERRORS

_POLL_SECONDS = 0.05
# After an abort, the time for the process that caused it to end.
_SETTLE_SECONDS = 1.0
# Between SIGTERM and SIGKILL for the processes that a failure leaves behind.
_GRACE_SECONDS = 5.0
_PR_SET_PDEATHSIG = 1


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument("--processes", type=int, default=1, help="number of processes (1)")
  parser.add_argument(
    "--devices_per_process",
    type=int,
    help="virtual devices on CPUs, or GPUs, of each process (1; a single process: all GPUs)",
  )
  parser.add_argument("--platform", choices=("cpu", "gpu"), default="cpu", help="(cpu)")
  parser.add_argument("--restarts", type=int, default=3, help="maximum number of restarts (3)")
  parser.add_argument("--dry_run", action="store_true", help="print the commands and run nothing")
  parser.add_argument("run_arguments", nargs="+", help="of vswin_jax.main, after --")
  options = parser.parse_args(arguments)
  for name, smallest in (("processes", 1), ("devices_per_process", 1), ("restarts", 0)):
    value = getattr(options, name)
    if value is not None and value < smallest:
      parser.error(f"--{name} must be at least {smallest}, got {value}")
  options.gpus = None
  if options.platform == "gpu" and (options.processes > 1 or options.devices_per_process):
    needed = options.processes * (options.devices_per_process or 1)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    options.gpus = list(map(str, range(needed))) if visible is None else visible.split(",")
    if len(options.gpus) < needed:
      parser.error(f"{needed} GPUs are needed, but CUDA_VISIBLE_DEVICES={visible}")
  options.command = [sys.executable, "-m", "vswin_jax.main", *options.run_arguments]
  return options


def process_commands(options: argparse.Namespace) -> list[tuple[dict[str, str], list[str]]]:
  """Returns the environment variables to set and the command of every process."""
  with socket.socket() as listener:
    listener.bind(("localhost", 0))
    port = listener.getsockname()[1]
  devices = options.devices_per_process or 1
  commands = []
  for index in range(options.processes):
    if options.platform == "cpu":
      variables = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    else:
      variables = {"JAX_PLATFORMS": "cuda,cpu"}
      if options.gpus:
        share = options.gpus[index * devices : (index + 1) * devices]
        variables["CUDA_VISIBLE_DEVICES"] = ",".join(share)
    command = [
      *options.command,
      f"--coordinator=localhost:{port}",
      f"--num_processes={options.processes}",
      f"--process_id={index}",
    ]
    commands.append((variables, command))
  return commands


def run(options: argparse.Namespace) -> int:
  """Starts all processes, restarts them after failures, and returns an exit status.

  SIGTERM or SIGINT to this process is passed on to process 0, which makes all save and end; a
  second one kills them. On Linux the processes end with this one, even if it is killed.

  Returns:
    0 if all processes ended well; otherwise the status of the process that failed first, as a shell
    gives it (128 + signal). `USER_ERRORS` are returned at once, others after all restarts.
  """
  with _stop_requests() as requests:
    for start in range(options.restarts + 1):
      if start:
        _log(f"restarting all {options.processes} processes ({start} of {options.restarts})")
      status = _run_once(options, requests)
      if status == 0 or status in USER_ERRORS or requests:
        break
  return status


@contextlib.contextmanager
def _stop_requests() -> Iterator[list[int]]:
  """Yields a list that collects the signals to stop."""
  requests: list[int] = []
  numbers = (signal.SIGTERM, signal.SIGINT)
  handlers = [signal.signal(number, lambda *_: requests.append(1)) for number in numbers]
  try:
    yield requests
  finally:
    for number, handler in zip(numbers, handlers):
      signal.signal(number, handler)


def _run_once(options: argparse.Namespace, requests: list[int]) -> int:
  processes = [_start(variables, command) for variables, command in process_commands(options)]
  readers = [
    threading.Thread(target=_copy_output, args=(index, process.stdout), daemon=True)
    for index, process in enumerate(processes)
  ]
  for reader in readers:
    reader.start()
  try:
    _wait(processes, requests)
    if len(requests) > 1:
      _log("killing all processes")
      return 128 + signal.SIGKILL
    # A process that dies makes the distributed runtime abort the others.
    failures = _failures(processes)
    deadline = time.monotonic() + _SETTLE_SECONDS
    while set(failures.values()) == {-signal.SIGABRT} and time.monotonic() < deadline:
      time.sleep(_POLL_SECONDS)
      failures = _failures(processes)
    if not failures:
      return 0
    # Signals are causes before statuses; aborts come last.
    index, code = min(failures.items(), key=lambda item: (item[1] == -signal.SIGABRT, item[1] > 0))
    if code < 0:
      _log(f"process {index} was killed ({signal.Signals(-code).name})")
    else:
      _log(f"process {index} ended with status {code}")
    for process in processes:
      process.terminate()
    deadline = time.monotonic() + _GRACE_SECONDS
    while time.monotonic() < deadline and any(process.poll() is None for process in processes):
      time.sleep(_POLL_SECONDS)
    return code if code > 0 else 128 - code
  finally:
    for process in processes:
      # Includes the workers that a process has started.
      with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
      process.wait()
    for reader in readers:
      reader.join(timeout=5)


def _failures(processes: list[subprocess.Popen]) -> dict[int, int]:
  """Returns the exit codes of the processes that have failed, by index."""
  codes = [process.poll() for process in processes]
  return {index: code for index, code in enumerate(codes) if code}


def _wait(processes: list[subprocess.Popen], requests: list[int]) -> None:
  """Waits until all processes have ended, one has failed, or the second request to stop."""
  passed_on = False
  while any(process.poll() is None for process in processes):
    if _failures(processes) or len(requests) > 1:
      return
    if requests and not passed_on:
      passed_on = True
      _log("asked to stop: all processes save and end; a second signal kills them")
      running = [process for process in processes if process.poll() is None]
      for process in running[:1]:
        process.terminate()
    time.sleep(_POLL_SECONDS)


def _start(variables: dict[str, str], command: list[str]) -> subprocess.Popen:
  library = ctypes.CDLL(None) if sys.platform == "linux" else None
  parent = os.getpid()

  def end_with_parent():
    if library is not None:
      library.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
      if os.getppid() != parent:
        os._exit(1)

  return subprocess.Popen(
    command,
    # Unbuffered, so that errors appear in order with other output.
    env={**os.environ, "PYTHONUNBUFFERED": "1", **variables},
    stdin=subprocess.DEVNULL,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    # Ctrl-C in the terminal reaches the launcher alone.
    start_new_session=True,
    preexec_fn=end_with_parent,
  )


def _copy_output(index: int, stream) -> None:
  for line in stream:
    # The pipe must be emptied even if nobody reads the output.
    with contextlib.suppress(BrokenPipeError):
      sys.stdout.buffer.write(b"[%d] %s\n" % (index, line.removesuffix(b"\n")))
      sys.stdout.buffer.flush()


def _log(text: str) -> None:
  print(f"launch: {text}", file=sys.stderr, flush=True)


def main() -> int:
  options = parse_arguments(sys.argv[1:])
  if not options.dry_run:
    return run(options)
  for variables, command in process_commands(options):
    print(*(f"{name}={value}" for name, value in variables.items()), shlex.join(command))
  return 0


if __name__ == "__main__":
  sys.exit(main())
