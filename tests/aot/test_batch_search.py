"""The search for the largest batch finds what trying every size would."""

import pytest

from vswin_jax.aot.batch_search import Largest, largest_that_fits


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
    lambda clips: 20 + clips // 2 if clips < 3 else 15 + 7 * clips,
  ],
)
@pytest.mark.parametrize("available", [20, 95, 130, 400])
def test_is_what_trying_every_size_finds(memory, available, refuses):
  largest = max((clips for clips in range(1, 300) if memory(clips) <= available), default=0)
  found, tried = search(memory, available, refuses=refuses)
  assert found == Largest(largest, True)
  assert len(tried) == len(set(tried)) <= 8


def test_memory_that_grows_evenly_takes_two_sizes_and_the_proof():
  found, tried = search(lambda clips: 100 + 7 * clips, 312, known={4: 128})
  assert found == Largest(30, True)
  assert tried == [8, 30, 31]


@pytest.mark.parametrize("refuses", [True, False])
def test_memory_that_does_not_grow_at_first(refuses):
  """Its first sizes promise a thousand clips."""

  def memory(clips):
    return 6000 + clips if clips < 3 else 6002 + 350 * (clips - 2)

  found, tried = search(memory, 15350, refuses=refuses)
  assert found == Largest(28, True)
  assert max(tried) <= 64


@pytest.mark.parametrize("refuses", [True, False])
def test_twice_as_many_may_be_far_too_many(refuses):
  found, tried = search(lambda clips: 100 * clips, 1200, {10: 1000}, refuses)
  assert found == Largest(12, True)
  assert 19 not in tried


def test_nothing_is_tried_above_the_most():
  tried = []

  def peak_memory(clips):
    tried.append(clips)
    return clips

  assert largest_that_fits(peak_memory, 1000, most=5) == Largest(5, False)
  assert max(tried) == 5


def test_stops_when_nothing_tells_the_end():
  found, tried = search(lambda clips: 1, 1000)
  assert not found.is_largest
  assert found.clips == max(tried)
  assert len(tried) == 8
