"""Splitting videos into training and validation, the same way everywhere."""

import collections
import hashlib
import math
import re
from collections.abc import Collection, Mapping, Sequence

# UCF101 numbers the scenes that its clips were cut from.
_SCENE = re.compile(r"_g\d+(?=_)")


def scene(name: str) -> str | None:
  """What the names of all clips of one scene begin with, such as "YoYo/v_YoYo_g01"."""
  match = _SCENE.search(name, name.rfind("/") + 1)
  return name[: match.end()] if match else None


def digest(name: str) -> bytes:
  """What orders names at random, but on every machine alike."""
  return hashlib.sha256(name.encode()).digest()


def validation_groups(
  classes_of: Mapping[str, Collection[int]], share: float
) -> tuple[frozenset[str], tuple[int, ...]]:
  """Chooses groups for validation, class by class, by the SHA-256 of their names.

  Of `n` groups of a class, `n * share` are chosen, rounded, at least one and at most `n - 1`; the
  only group of a class is left to training. What is chosen within a class does not depend on the
  others, unless they share groups: then shares are met as well as they can be.

  Args:
    classes_of: classes of the videos of each group.
    share: for validation; 0 chooses none.

  Returns:
    The groups, and the classes that are not in both parts.
  """
  groups_of = collections.defaultdict(list)
  for group in sorted(classes_of, key=digest):
    for label in classes_of[group] or (-1,):  # those without labels are a class, too
      groups_of[label].append(group)
  if not share:
    return frozenset(), ()
  chosen: dict[str, bool] = {}
  # Classes of few groups first: in them, the choices that others made would weigh most.
  for label in sorted(groups_of, key=lambda label: (len(groups_of[label]), label)):
    groups = groups_of[label]
    size = min(max(math.floor(len(groups) * share + 0.5), 1), len(groups) - 1)
    size -= sum(chosen.get(group, False) for group in groups)
    free = [group for group in groups if group not in chosen]
    chosen |= {group: place < size for place, group in enumerate(free)}
  one_sided = [label for label in sorted(groups_of) if not _both(groups_of[label], chosen)]
  for label in one_sided:
    _mend(groups_of[label], chosen, classes_of, groups_of)
  one_sided = [label for label in one_sided if not _both(groups_of[label], chosen)]
  return frozenset(group for group in chosen if chosen[group]), tuple(one_sided)


def _both(groups: Sequence[str], chosen: Mapping[str, bool]) -> bool:
  return len({chosen[group] for group in groups}) == 2


def _mend(groups, chosen, classes_of, groups_of) -> None:
  """Moves one group of a class to the other part, if no class loses its only group there."""
  if len(groups) < 2:
    return
  for group in groups:
    before = [label for label in classes_of[group] if _both(groups_of[label], chosen)]
    chosen[group] = not chosen[group]
    if all(_both(groups_of[label], chosen) for label in before):
      return
    chosen[group] = not chosen[group]
