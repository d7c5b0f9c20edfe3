"""The largest number of clips a device that fits into its memory."""

import dataclasses
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class Largest:
  """Attributes:
  clips: a device; 0: not even one fits.
  is_largest: one more was seen not to fit.
  """

  clips: int
  is_largest: bool


def largest_that_fits(
  peak_memory: Callable[[int], int | None],
  available: int,
  known: dict[int, int | None] | None = None,
  max_tries: int = 8,
  most: int | None = None,
) -> Largest:
  """Searches with few tries: memory grows almost evenly with the number of clips, so two sizes tell
  about where the limit is, and what is said in the end was tried.

  Args:
    peak_memory: bytes for a number of clips a device, also if they are too many; None: more than
      the device has.
    available: bytes of a device.
    known: what is known before, as from `peak_memory`.
    max_tries: calls of `peak_memory`.
    most: clips, above which nothing is tried; None: no end.
  """
  tried = dict(known or {})

  def fits(clips: int) -> bool:
    return tried[clips] is not None and tried[clips] <= available

  for _ in range(max_tries):
    low = max((clips for clips in tried if fits(clips)), default=0)
    high = min((clips for clips in tried if not fits(clips)), default=None)
    if high == low + 1:
      return Largest(low, True)
    if most is not None and low >= most:
      break
    guess = max(low + 1, _guess(tried, low, high, available))
    if high is not None and guess >= high:
      guess = (low + high) // 2
    guess = guess if most is None else min(guess, most)
    tried[guess] = peak_memory(guess)
  low = max((clips for clips in tried if fits(clips)), default=0)
  return Largest(low, low + 1 in tried and not fits(low + 1))


def _guess(tried: dict[int, int | None], low: int, high: int | None, available: int) -> int:
  """Where memory that grows evenly would end, with `low` clips that fit and `high` that do not."""
  if not low:
    return 1
  smaller = max((clips for clips in tried if clips < low), default=None)
  first, second = (smaller, low) if high is None or tried[high] is None else (low, high)
  if first is None:
    return 2 * low
  growth = (tried[second] - tried[first]) / (second - first)
  # The first few can look as if memory did not grow.
  most = 4 * low
  return min(low + int((available - tried[low]) / growth), most) if growth > 0 else 2 * low
