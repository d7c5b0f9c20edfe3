"""The search for the maximum batch size against trying every size."""

import pytest

from vswin_jax.aot.batch_search import max_fitting


def search(memory, available, known=None, refuses=True):
  """Returns the result and the sizes tried; a compiler may refuse (None) what is too large."""
  tried = []

  def peak_memory(clips):
    tried.append(clips)
    size = memory(clips)
    return None if refuses and size > available else size

  return max_fitting(peak_memory, available, known or {}), tried


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
def test_finds_the_maximum(memory, available, refuses):
  largest = max((clips for clips in range(1, 300) if memory(clips) <= available), default=0)
  found, tried = search(memory, available, refuses=refuses)
  assert found == (largest, True)
  assert len(tried) == len(set(tried)) <= 8


def test_linear_memory_takes_two_sizes_and_the_proof():
  found, tried = search(lambda clips: 100 + 7 * clips, 312, known={4: 128})
  assert found == (30, True)
  assert tried == [8, 30, 31]


@pytest.mark.parametrize("refuses", [True, False])
def test_memory_that_does_not_grow_at_first(refuses):
  """A line through the first sizes predicts a thousand clips."""

  def memory(clips):
    return 6000 + clips if clips < 3 else 6002 + 350 * (clips - 2)

  found, tried = search(memory, 15350, refuses=refuses)
  assert found == (28, True)
  assert max(tried) <= 64


@pytest.mark.parametrize("refuses", [True, False])
def test_twice_as_many_may_be_too_many(refuses):
  found, tried = search(lambda clips: 100 * clips, 1200, {10: 1000}, refuses)
  assert found == (12, True)
  assert 19 not in tried


def test_limit():
  tried = []

  def peak_memory(clips):
    tried.append(clips)
    return clips

  assert max_fitting(peak_memory, 1000, {}, limit=5) == (5, False)
  assert max(tried) == 5


def test_stops_after_the_maximum_of_tries():
  found, tried = search(lambda clips: 1, 1000)
  assert found == (max(tried), False)
  assert len(tried) == 8
