"""What annotation files say: videos with their labels and splits."""

import dataclasses
import re
import textwrap
from collections.abc import Iterable, Mapping

from vswin_jax.common import checks

SPLITS = ("train", "validation", "test")
# What people call them, in names of files and folders and in columns.
_SPLIT_NAMES = {
  "train": "train",
  "training": "train",
  "val": "validation",
  "valid": "validation",
  "validate": "validation",
  "validation": "validation",
  "test": "test",
  "testing": "test",
}
_LONGEST_HINT = 300


class AnnotationError(ValueError):
  """Annotations that can't be used; one line that says where, what was expected, what to do."""


@dataclasses.dataclass(frozen=True, slots=True)
class Video:
  """One video of a data set.

  Attributes:
    path: absolute; where the file should be if it is missing.
    id: unique within the data set: the data set's own, or the path relative to the folder of
      videos, without its suffix.
    labels: indices of classes, ascending; one of them unless the data set is multi-label.
    exists: the file was found.
  """

  path: str
  id: str
  labels: tuple[int, ...]
  exists: bool


@dataclasses.dataclass(frozen=True)
class Annotations:
  """A data set as its annotation files describe it.

  Attributes:
    class_names: of all classes, by index.
    splits: videos by split: "train", "validation" and "test", in that order, those there are. The
      order of the videos of one is that of the SHA-256 of their ids: random, and the same
      everywhere.
    multi_label: a video can have any number of labels.
    problems: (path, reason) of what may be videos of the data set but can't be used: links to
      nothing, folders that can't be listed, names that are no UTF-8, videos whose lines contradict
      each other. They count as videos with a problem.
    other_files: (path, reason) of files beside videos that are none by their suffix, such as
      subtitles. They should be listed, but do not count.
    notes: lines worth telling the user.
  """

  class_names: tuple[str, ...]
  splits: Mapping[str, tuple[Video, ...]]
  multi_label: bool = False
  problems: tuple[tuple[str, str], ...] = ()
  other_files: tuple[tuple[str, str], ...] = ()
  notes: tuple[str, ...] = ()

  def describe(self) -> str:
    """One line: how many classes there are, and videos of each split."""
    counts = [f"{len(videos):,} videos of {split}" for split, videos in self.splits.items()]
    kind = "multi-label classes" if self.multi_label else "classes"
    return f"{len(self.class_names):,} {kind}, {', '.join(counts)}"


@dataclasses.dataclass(frozen=True)
class Options:
  """How annotations are read.

  Attributes:
    split_number: which of the published splits of UCF101 and HMDB51, 1 to 3.
    validation_share: of the groups of each class where annotations name no splits, at least 0 and
      below 1.
    group_pattern: a regular expression, searched in the path relative to the folder of videos. Its
      first group names what must not be in two splits. Empty: `_gNN_` in a file's name as in
      UCF101, else each file for itself.
    class_names: by index; None: those of the data set, or those that occur.
    multi_label: a video can have any number of labels, separated by "|" or ";" in CSV files.
  """

  split_number: int = 1
  validation_share: float = 0.1
  group_pattern: str = ""
  class_names: tuple[str, ...] | None = None
  multi_label: bool = False

  def __post_init__(self):
    checks.check_choices(("1", "2", "3"), split_number=str(self.split_number))
    checks.check_rates(validation_share=self.validation_share)
    try:
      groups = re.compile(self.group_pattern).groups
    except re.error as error:
      raise ValueError(f"group_pattern {self.group_pattern!r}: {error}") from error
    if self.group_pattern and not groups:
      raise ValueError(
        f"group_pattern {self.group_pattern!r} has no group; put what names a group in parentheses"
      )
    if self.class_names is not None:
      repeated = {name for name in self.class_names if self.class_names.count(name) > 1}
      if repeated or not self.class_names or not all(self.class_names):
        what = f"{min(repeated)!r} twice" if repeated else "no class, or an empty name"
        raise ValueError(f"class_names hold {what}; expected distinct names")


def split_called(name: str) -> str | None:
  """The split with exactly this name, in any of its spellings."""
  return _SPLIT_NAMES.get(name.strip().lower())


def split_within(name: str) -> str | None:
  """The split that is a word of a name such as "kinetics400_val_list"; None if unclear."""
  found = {
    _SPLIT_NAMES[word] for word in re.split(r"[^a-z]+", name.lower()) if word in _SPLIT_NAMES
  }
  return found.pop() if len(found) == 1 else None


def closest(name: str, known: Iterable[str]) -> str:
  """The end of an error line about an unknown name, however many are known."""
  return textwrap.shorten(checks.closest(name, known), _LONGEST_HINT, placeholder=" ...")
