"""Search for the maximum batch size that fits into a device's memory."""

import math
from collections.abc import Callable

# Calls of the compiler, which take minutes.
_MAX_TRIES = 8


def max_fitting(
  peak_memory: Callable[[int], int | None],
  available: int,
  known: dict[int, int | None],
  limit: float = math.inf,
) -> tuple[int, bool]:
  """Searches for the largest number of clips per device that fits, with few compilations.

  Memory grows almost linearly with the number of clips, so two sizes predict the limit. The result
  was compiled itself.

  Args:
    peak_memory: returns the bytes for a number of clips per device; None: more than available.
    available: bytes of a device.
    known: results of `peak_memory` from before.
    limit: maximum number of clips to try.

  Returns:
    The number of clips (0: not even one fits), and whether one more is known not to fit.
  """
  tried = dict(known)
  for attempt in range(_MAX_TRIES + 1):
    fitting = [clips for clips, size in tried.items() if size is not None and size <= available]
    low = max(fitting, default=0)
    high = min(tried.keys() - fitting, default=None)
    if attempt == _MAX_TRIES or high == low + 1 or low >= limit:
      return low, high == low + 1
    guess = max(low + 1, _predict(tried, low, high, available))
    if high is not None and guess >= high:
      guess = (low + high) // 2
    guess = min(guess, limit)
    tried[guess] = peak_memory(guess)


def _predict(tried: dict[int, int | None], low: int, high: int | None, available: int) -> int:
  """Predicts the maximum by a line through two sizes; `low` fits, `high` does not."""
  if not low:
    return 1
  smaller = max((clips for clips in tried if clips < low), default=None)
  first, second = (smaller, low) if high is None or tried[high] is None else (low, high)
  if first is None:
    return 2 * low
  growth = (tried[second] - tried[first]) / (second - first)
  # Memory of the first few clips may hardly grow.
  most = 4 * low
  return min(low + int((available - tried[low]) / growth), most) if growth > 0 else 2 * low
