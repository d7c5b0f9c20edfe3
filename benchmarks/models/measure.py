"""Measurement of one case in a process of its own.

  python -m benchmarks.models.measure CASE SECONDS    # CASE: fields of `Case` as JSON

Prints the result, or an error, as one line of JSON.
"""

import ctypes
import dataclasses
import json
import pathlib
import resource
import sys
import time
import traceback
from collections.abc import Callable

from benchmarks.models.cases import AGREEMENT, DECODING, LIMITS, OURS, Case

# A first call this long counts: what a warm-up does is negligible beside it.
_LONG_CALL_SECONDS = 20.0
_LEAST_CALLS, _MOST_CALLS = 2, 300


@dataclasses.dataclass(frozen=True)
class Subject:
  """A computation that is ready to run.

  Attributes:
    run: runs it once, to its end.
    parameters: number of trained parameters.
    macs: multiply-accumulates of a forward pass; None: unknown.
    bytes_moved: operands and results of the program's operations; None: unknown.
    device_memory: returns the peak bytes of the accelerator since the start; None: computes on the
      CPU.
  """

  run: Callable[[], object]
  parameters: int
  macs: int | None = None
  bytes_moved: int | None = None
  device_memory: Callable[[], int] | None = None


def measure(case: Case, seconds: float) -> dict:
  """Returns the measurements of a case.

  Args:
    seconds: time to spend on calls; at least two are measured.
  """
  if case.mode == AGREEMENT:
    from benchmarks.models.agreement import compare

    return compare(case.model)
  if case.library == OURS:
    from benchmarks.models import ours as library
  else:
    from benchmarks.models import peers as library
  if case.mode == LIMITS:
    return library.measure_limits()
  start = time.perf_counter()
  subject = library.build_decoding(case) if case.mode == DECODING else library.build(case)
  building = time.perf_counter() - start
  idle = reset_peak_memory()
  times = timed_calls(subject.run, seconds)
  peak = subject.device_memory() if subject.device_memory else peak_memory()
  return {
    "seconds": times,
    "building": building,
    "peak_bytes": peak,
    "idle_bytes": None if subject.device_memory else idle,
    "parameters": subject.parameters,
    "macs": subject.macs,
    "bytes_moved": subject.bytes_moved,
  }


def timed_calls(run: Callable[[], object], seconds: float) -> list[float]:
  """Returns the seconds of calls, without the first one unless it takes very long."""
  first = _elapsed(run)
  if first > _LONG_CALL_SECONDS:
    return [first]
  times, end = [], time.perf_counter() + seconds
  while len(times) < _LEAST_CALLS or (time.perf_counter() < end and len(times) < _MOST_CALLS):
    times.append(_elapsed(run))
  return times


def _elapsed(run: Callable[[], object]) -> float:
  start = time.perf_counter()
  run()
  return time.perf_counter() - start


def reset_peak_memory() -> int | None:
  """Returns freed memory to the system and forgets the peak; returns the bytes in use."""
  try:
    ctypes.CDLL(None).malloc_trim(0)
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    return _status_bytes("VmRSS")
  except (OSError, AttributeError):  # not Linux with glibc
    return None


def peak_memory() -> int:
  """Returns the peak bytes of the process, if possible since `reset_peak_memory`."""
  try:
    return _status_bytes("VmHWM")
  except OSError:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _status_bytes(name: str) -> int:
  lines = pathlib.Path("/proc/self/status").read_text().splitlines()
  return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def main() -> None:
  case, seconds = Case(**json.loads(sys.argv[1])), float(sys.argv[2])
  try:
    result = measure(case, seconds)
  except Exception as error:
    traceback.print_exc()
    lines = str(error).strip().splitlines()
    result = {"error": f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]}
  print(json.dumps(result))


if __name__ == "__main__":
  main()
