"""Results of worker processes: in order, few at a time, despite crashes."""

import concurrent.futures
import functools
import os
import pathlib
import signal
import time
from concurrent.futures.process import BrokenProcessPool

import pytest

from vswin_jax.data.worker_processes import WorkerError, map_in_order


def square(number: int, *, deadly: frozenset[int] = frozenset()) -> int:
  if number in deadly:
    os.kill(os.getpid(), signal.SIGKILL)
  if number == -1:
    raise ValueError("minus one")
  return number * number


@pytest.mark.parametrize("workers", [1, 3])
def test_results_come_in_order(workers):
  taken = []

  def items():
    for number in range(60):
      taken.append(number)
      yield number

  results = map_in_order(square, items(), num_workers=workers)
  first = next(results)
  # Whatever the speed of the reader, only a few items are in work.
  assert len(taken) <= 4 * workers
  assert [first, *results] == [number * number for number in range(60)]


def test_item_that_kills_its_worker_gets_the_substitute():
  function = functools.partial(square, deadly=frozenset({3, 4, 11}))
  results = map_in_order(function, range(14), num_workers=2, if_killed=lambda number: f"{number}!")
  expected = [number * number for number in range(14)]
  for number in (3, 4, 11):
    expected[number] = f"{number}!"
  assert list(results) == expected


def test_without_a_substitute_the_death_of_a_worker_is_an_error():
  function = functools.partial(square, deadly=frozenset({2}))
  with pytest.raises(WorkerError, match="died while processing 2; memory may be short"):
    list(map_in_order(function, range(4), num_workers=2))


def test_errors_reach_the_caller():
  results = map_in_order(square, [2, -1, 3], num_workers=1)
  assert next(results) == 4
  with pytest.raises(ValueError, match="minus one"):
    next(results)


def test_no_items():
  assert list(map_in_order(square, [], num_workers=2)) == []


def sleep_then_pid(seconds: float) -> int:
  time.sleep(seconds)
  return os.getpid()


def test_workers_end_at_once_with_the_generator():
  results = map_in_order(sleep_then_pid, [0, 600, 600], num_workers=2)
  worker = next(results)
  begin = time.monotonic()
  results.close()
  while alive(worker) and time.monotonic() < begin + 30:
    time.sleep(0.05)
  assert not alive(worker)


def alive(process: int) -> bool:
  try:
    return pathlib.Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
  except OSError:
    return False


def test_large_items_are_few_at_a_time():
  taken = []

  def items():
    for number in range(12):
      taken.append(number)
      yield number

  results = map_in_order(square, items(), num_workers=2, size=lambda number: 3 << 30)
  assert next(results) == 0
  assert len(taken) <= 3
  assert list(results) == [number * number for number in range(1, 12)]


def test_finished_items_are_not_repeated_after_a_crash(tmp_path):
  function = functools.partial(note_and_die, folder=tmp_path)
  results = map_in_order(function, range(8), num_workers=1, if_killed=lambda number: "killed")
  assert list(results) == [0, 1, 2, "killed", 4, 5, 6, 7]
  runs = [len(list(tmp_path.glob(f"{number}-*"))) for number in range(8)]
  assert runs == [1, 1, 1, 2, 1, 1, 1, 1]


def note_and_die(number: int, *, folder: pathlib.Path) -> int:
  (folder / f"{number}-{time.monotonic_ns()}").touch()
  if number == 3:
    os.kill(os.getpid(), signal.SIGKILL)
  return number


def test_workers_that_cannot_start_are_an_error(monkeypatch):
  def broken(*_):
    raise BrokenProcessPool

  monkeypatch.setattr(concurrent.futures.ProcessPoolExecutor, "submit", broken)
  with pytest.raises(WorkerError, match="worker processes can't start"):
    next(map_in_order(square, [1], num_workers=1))
