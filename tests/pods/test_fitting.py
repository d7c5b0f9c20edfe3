"""The search for the largest batch finds what trying every size would."""

import pytest

from vswin_jax.pods.fitting import Largest, largest_that_fits


def search(memory, available, known=None, refuses=True):
  """The result and the sizes tried; a compiler refuses what is too large, or says how large."""
  tried = []

  def peak_memory(clips):
    tried.append(clips)
    size = memory(clips)
    return None if refuses and size > available else size

  return largest_that_fits(peak_memory, available, known), tried


@pytest.mark.parametrize("refuses", [True, False])
@pytest.mark.parametrize(
  "memory",
  [
    lambda clips: 20 + 10 * clips,
    lambda clips: 5 + 3 * clips,
    lambda clips: 20 + 10 * clips + (clips % 3),
    lambda clips: int(20 + 10 * clips**1.1),
    lambda clips: 200 + clips,
    lambda clips: 90 * clips,
    lambda clips: 10 * clips + 40 * (clips > 8),
  ],
)
@pytest.mark.parametrize("available", [20, 95, 130, 400])
def test_is_what_trying_every_size_finds(memory, available, refuses):
  largest = max((clips for clips in range(1, 300) if memory(clips) <= available), default=0)
  found, tried = search(memory, available, refuses=refuses)
  assert found == Largest(largest, True)
  assert len(tried) == len(set(tried)) <= 8


def test_memory_that_grows_evenly_takes_two_sizes_and_the_proof():
  found, tried = search(lambda clips: 100 + 7 * clips, 1000, known={1: 107})
  assert found == Largest(128, True)
  assert tried == [2, 128, 129]


def test_stops_when_nothing_tells_the_end():
  found, tried = search(lambda clips: 1, 1000)
  assert not found.is_largest
  assert found.clips == max(tried)
  assert len(tried) == 8
