"""Videos, labels and splits of a data set, and the options for reading them."""

import dataclasses
import re
from collections.abc import Mapping

from vswin_jax.common import checks

SPLIT_NAMES = {
  "train": ("train", "training"),
  "validation": ("val", "valid", "validate", "validation"),
  "test": ("test", "testing"),
}
SPLITS = tuple(SPLIT_NAMES)


class AnnotationError(ValueError):
  """Raised for annotations that can't be used; the message is one line."""


@dataclasses.dataclass(frozen=True, slots=True)
class Video:
  """One video of a data set.

  Attributes:
    path: absolute; the expected path if the file is missing.
    id: unique within the data set: the data set's own id, or the path relative to the folder of
      videos, without its suffix.
    labels: class indices, ascending; exactly one unless the data set is multi-label.
    exists: whether the file was found.
  """

  path: str
  id: str
  labels: tuple[int, ...]
  exists: bool


@dataclasses.dataclass(frozen=True)
class Annotations:
  """Classes and videos of a data set.

  Attributes:
    class_names: by class index.
    splits: videos by split, in the order "train", "validation", "test", without empty splits. The
      videos of a split are ordered by the SHA-256 of their ids: random, but always the same.
    multi_label: whether a video can have any number of labels.
    problems: (path, reason) of entries that count as videos with a problem: broken links,
      unreadable folders, names that are not UTF-8, contradictory annotations.
    other_files: (path, reason) of files in class folders without the suffix of a video. They are
      reported, but do not count as problems.
    notes: lines to show to the user.
  """

  class_names: tuple[str, ...]
  splits: Mapping[str, tuple[Video, ...]]
  multi_label: bool = False
  problems: tuple[tuple[str, str], ...] = ()
  other_files: tuple[tuple[str, str], ...] = ()
  notes: tuple[str, ...] = ()

  def describe(self) -> str:
    """Returns a line with the number of classes and of videos per split."""
    counts = [f"{len(videos):,} videos of {split}" for split, videos in self.splits.items()]
    kind = "multi-label classes" if self.multi_label else "classes"
    return f"{len(self.class_names):,} {kind}, {', '.join(counts)}"


@dataclasses.dataclass(frozen=True)
class AnnotationOptions:
  """Options for reading annotations.

  The last three are only for `video_folder`.

  Attributes:
    split_number: official split of UCF101 or HMDB51, 1 to 3.
    validation_share: fraction of the groups of each class that become validation data if the
      annotations give no splits, in [0, 1).
    group_pattern: regular expression, searched in the path relative to the folder of videos. Videos
      with the same text in its first group stay in one split; if empty, those with the same
      `_gNN_` in their names, as in UCF101.
    class_names: by class index; None: the class names that occur, sorted.
    multi_label: whether a video can have any number of labels; "|" or ";" separate them in CSV.
  """

  split_number: int = 1
  validation_share: float = 0.1
  group_pattern: str = ""
  class_names: tuple[str, ...] | None = None
  multi_label: bool = False

  def __post_init__(self):
    checks.check_choices(("1", "2", "3"), split_number=str(self.split_number))
    checks.check_rates(validation_share=self.validation_share)
    names = self.class_names
    if names is not None and (not names or "" in names or len(set(names)) < len(names)):
      raise ValueError("class_names must be distinct, non-empty names")
    try:
      num_groups = re.compile(self.group_pattern or "()").groups
    except re.error:
      num_groups = 0
    if not num_groups:
      raise ValueError(
        f"group_pattern {self.group_pattern!r}: expected a regular expression with a group in ()"
      )


def split_called(name: str) -> str | None:
  """Returns the split with exactly this name, such as "validation" for "val"; None if unknown."""
  name = name.strip().lower()
  return next((split for split, names in SPLIT_NAMES.items() if name in names), None)


def split_within(name: str) -> str | None:
  """Returns the split that is a word of a name such as "k400_val_list"; None if unclear."""
  found = set(map(split_called, re.split(r"[^a-zA-Z]+", name))) - {None}
  return found.pop() if len(found) == 1 else None
