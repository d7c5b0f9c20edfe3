"""Reproducible division of videos into training and validation data."""

import collections
import hashlib
import math
import re
from collections.abc import Collection, Mapping, Sequence

# UCF101 numbers the scenes that its clips are cut from.
_SCENE = re.compile(r"_g\d+(?=_)")


def scene(name: str) -> str:
  """Returns the common prefix of the clips of a scene, such as "v_YoYo_g01", or an empty string."""
  match = _SCENE.search(name, name.rfind("/") + 1)
  return name[: match.end()] if match else ""


def digest(name: str) -> bytes:
  """Returns the SHA-256 of a name, which orders names at random but reproducibly."""
  return hashlib.sha256(name.encode()).digest()


def validation_groups(
  classes_of: Mapping[str, Collection[int]], share: float
) -> tuple[frozenset[str], tuple[int, ...]]:
  """Chooses the groups of videos that become validation data, class by class.

  Of the n groups of a class, those n * share whose names have the smallest SHA-256 are chosen: at
  least one, at most n - 1, none of a single group. The choice within a class is independent of
  other classes unless they share groups, in which case the shares are approximate.

  Args:
    classes_of: class indices of the videos of each group.
    share: fraction of groups to choose; 0 chooses none.

  Returns:
    The chosen groups, and the classes whose groups are all in one part (-1: videos without labels).
  """
  groups_of = collections.defaultdict(list)
  for group in sorted(classes_of, key=digest):
    for label in classes_of[group] or (-1,):
      groups_of[label].append(group)
  if not share:
    return frozenset(), ()
  chosen: dict[str, bool] = {}
  # Classes with few groups first: the choices of other classes would affect them most.
  for label in sorted(groups_of, key=lambda label: (len(groups_of[label]), label)):
    groups = groups_of[label]
    size = min(max(math.floor(len(groups) * share + 0.5), 1), len(groups) - 1)
    size -= sum(chosen.get(group, False) for group in groups)
    free = [group for group in groups if group not in chosen]
    chosen |= {group: place < size for place, group in enumerate(free)}
  one_sided = [label for label in sorted(groups_of) if not _in_both(groups_of[label], chosen)]
  for label in one_sided:
    _move_a_group(groups_of[label], chosen, classes_of, groups_of)
  one_sided = [label for label in one_sided if not _in_both(groups_of[label], chosen)]
  return frozenset(group for group in chosen if chosen[group]), tuple(one_sided)


def _in_both(groups: Sequence[str], chosen: Mapping[str, bool]) -> bool:
  return len({chosen[group] for group in groups}) == 2


def _move_a_group(groups, chosen, classes_of, groups_of) -> None:
  """Moves a group of a one-sided class to the other part, if no other class becomes one-sided."""
  if len(groups) < 2:
    return
  for group in groups:
    before = [label for label in classes_of[group] if _in_both(groups_of[label], chosen)]
    chosen[group] = not chosen[group]
    if all(_in_both(groups_of[label], chosen) for label in before):
      return
    chosen[group] = not chosen[group]
