"""Rows of annotation files: one video each, as the file gives it."""

import dataclasses
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeAlias

from vswin_jax.data.annotations.common import AnnotationError, split_called, split_within
from vswin_jax.data.annotations.text_files import read_lines, suffix
from vswin_jax.data.video_files import VIDEO_SUFFIXES

# Paths of annotation files, each with the split that the user gave for it.
Files: TypeAlias = Sequence[tuple[str, str | None]]

_NUMBERED = re.compile(r"(?P<path>.*?)(?P<labels>(?:\s+-?[0-9]{1,18})+)")


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
  """A video as an annotation file gives it.

  Attributes:
    path: absolute, or relative to the folder of videos.
    labels: class names and class indices; None if the file gives none.
    where: file and line, for messages.
    split: empty if the file gives none.
    group: videos of a group must not be in two splits; empty if the file gives none.
    in_any_folder: whether the path may be relative to any folder below the folder of videos.
  """

  path: str
  labels: tuple[str | int, ...] | None
  where: str
  split: str = ""
  group: str = ""
  in_any_folder: bool = False


@dataclasses.dataclass(frozen=True)
class Listing:
  """Rows of a data set, and the other fields of `Annotations`.

  Attributes:
    has_scenes: whether names of videos tell their scenes, none of which may be in two splits.
  """

  rows: Sequence[Row]
  class_names: Sequence[str]
  notes: Sequence[str]
  multi_label: bool = False
  other_files: Sequence[tuple[str, str]] = ()
  has_scenes: bool = False


def collect_rows(files: Files, read: Callable[[str], Iterable[Row]]) -> tuple[list[Row], list[str]]:
  """Returns the rows of all files, as `read` gives them, with splits, and notes for the user.

  The split that the user gave for a file has precedence, then that of a row, then that in the name
  of the file. Test videos without labels are skipped.

  Raises:
    AnnotationError: a file lists no videos, or a video has no label or no clear split.
  """
  if not files:
    raise AnnotationError("none of the annotation files lists videos")
  rows, notes = [], [f"annotations read: {len(files):,} files, such as {files[0][0]}"]
  file_of_split: dict[str, str] = {}
  for path, given in files:
    found = list(read(path))
    if not found:
      raise AnnotationError(f"{path}: it lists no videos")
    named = split_within(os.path.basename(path)) or ""
    if named and not given and not any(row.split for row in found):
      other = file_of_split.setdefault(named, path)
      if other != path:
        raise AnnotationError(
          f"two annotation files of {named}: {other} and {path}; name those to read as SPLIT=FILE"
        )
    num_before = len(rows)
    for row in found:
      split = given or (split_called(row.split) if row.split else named)
      if split is None:
        raise AnnotationError(
          f"{row.where}: unknown split {row.split!r}; expected train, validation or test"
        )
      if row.labels is not None:
        rows.append(dataclasses.replace(row, split=split))
      elif split != "test":
        raise AnnotationError(f"{row.where}: no label of {row.path!r}")
    if num_unlabeled := num_before + len(found) - len(rows):
      notes.append(f"{path}: {num_unlabeled:,} videos without labels are skipped")
  if not rows:
    raise AnnotationError(f"{files[0][0]}: no videos with labels; name the training file, too")
  unclear = [row for row in rows if not row.split]
  if unclear and (len(files) > 1 or len(unclear) < len(rows)):
    raise AnnotationError(
      f"{unclear[0].where}: the split of {unclear[0].path!r} is unclear; give it as SPLIT=FILE"
    )
  return rows, notes


def list_rows(path: str, number: Callable[[str], int | str] = int) -> Iterator[Row]:
  """Yields the rows of a list: lines of a path and a class name or indices, separated by spaces.

  Paths may contain spaces if labels are indices.

  Args:
    number: converts a label of digits; `str` if it may be a name.
  """
  for where, line in read_lines(path):
    if match := _NUMBERED.fullmatch(line):
      video, labels = match["path"], tuple(map(number, match["labels"].split()))
      if len(labels) > 1 and suffix(video) not in VIDEO_SUFFIXES:
        raise AnnotationError(
          f"{where}: {line!r} looks like a folder of frames; expected `path label` of a video file"
        )
    elif suffix(line) in VIDEO_SUFFIXES:
      video, labels = line, None
    else:
      video, *labels = line.split()
      if len(labels) != 1:
        raise AnnotationError(
          f"{where}: expected `path label`, got {line!r}; if names contain spaces, use a CSV file"
        )
      labels = tuple(labels)
    yield Row(video, labels, where)
