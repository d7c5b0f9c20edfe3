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
) -> Largest:
  """Searches with few tries: memory grows almost evenly with the number of clips, so two sizes tell
  about where the limit is, and what is said in the end was tried.

  Args:
    peak_memory: bytes for a number of clips a device; None: more than the device has.
    available: bytes of a device.
    known: what is known before, as from `peak_memory`.
    max_tries: calls of `peak_memory`.
  """
  tried = dict(known or {})

  def fits(clips: int) -> bool:
    return tried[clips] is not None and tried[clips] <= available

  for _ in range(max_tries):
    fitting = sorted(clips for clips in tried if fits(clips))
    too_large = [clips for clips in tried if not fits(clips)]
    low, high = max(fitting, default=0), min(too_large, default=None)
    if high == low + 1:
      return Largest(low, True)
    guess = _guess(tried, fitting, available)
    if high is not None and guess >= high:
      # Memory grows faster than it did: one less, then halves.
      guess = high - 1 if len(too_large) == 1 else (low + high) // 2
    guess = max(guess, low + 1)
    tried[guess] = peak_memory(guess)
  low = max((clips for clips in tried if fits(clips)), default=0)
  return Largest(low, low + 1 in tried and not fits(low + 1))


def _guess(tried: dict[int, int | None], fitting: list[int], available: int) -> int:
  """Where memory that grows evenly would end; without two sizes that fit, the next of a few."""
  if not fitting:
    return 1
  if len(fitting) == 1:
    return 2 * fitting[0]
  first, second = fitting[-2:]
  growth = (tried[second] - tried[first]) / (second - first)
  if growth <= 0:
    return 2 * second
  return second + int((available - tried[second]) / growth)
