"""Results of worker processes: in order, few at a time, whatever a worker does."""

import functools
import os
import signal

import pytest

from vswin_jax.data.worker_processes import map_in_order


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

  results = map_in_order(square, items(), num_workers=workers, if_killed=lambda number: None)
  first = next(results)
  # However slow the reader is, only a few items are in work.
  assert len(taken) <= 4 * workers
  assert [first, *results] == [number * number for number in range(60)]


def test_an_item_that_kills_its_worker_costs_only_itself():
  function = functools.partial(square, deadly=frozenset({3, 4, 11}))
  results = map_in_order(function, range(14), num_workers=2, if_killed=lambda number: f"{number}!")
  expected = [number * number for number in range(14)]
  for number in (3, 4, 11):
    expected[number] = f"{number}!"
  assert list(results) == expected


def test_errors_reach_the_caller():
  results = map_in_order(square, [2, -1, 3], num_workers=1, if_killed=lambda number: None)
  assert next(results) == 4
  with pytest.raises(ValueError, match="minus one"):
    next(results)


def test_nothing_to_do():
  assert list(map_in_order(square, [], num_workers=2, if_killed=lambda number: None)) == []
