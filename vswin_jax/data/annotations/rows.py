"""Lines of annotation files, each a video as it is written there."""

import dataclasses
import os
import re
from collections.abc import Callable, Iterable, Sequence

from vswin_jax.data.annotations.common import AnnotationError
from vswin_jax.data.annotations.sources import Source
from vswin_jax.data.annotations.text_files import read_lines, suffix
from vswin_jax.data.video_files import VIDEO_SUFFIXES

_NUMBERED = re.compile(r"(?P<path>.*?)(?P<labels>(?:\s+-?[0-9]+)+)")


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
  """A video as an annotation file names it.

  Attributes:
    path: of the video, or its id in the data set, as it is written.
    labels: names or numbers; None: the file gives none.
    where: file and line, for messages.
    split: None: unknown.
    group: what must not be in two splits, if it is written there.
  """

  path: str
  labels: tuple[str, ...] | None
  where: str
  split: str | None = None
  group: str | None = None


def collect_rows(
  sources: Sequence[Source], read: Callable[[Source], Iterable[Row]]
) -> tuple[list[Row], list[str]]:
  """Rows of all files, without those of test videos that have no labels, and notes on these.

  Raises:
    AnnotationError: a file without videos, a missing label or split.
  """
  rows, notes = [], []
  for source in sources:
    found = list(read(source))
    if not found:
      raise AnnotationError(f"{source.path}: it lists no videos")
    labeled = [row for row in found if row.labels is not None]
    for row in found:
      if row.labels is None and row.split != "test":
        raise AnnotationError(
          f"{row.where}: no label of {row.path!r}; only videos of test may have none"
        )
    if len(labeled) < len(found):
      name, count = os.path.basename(source.path), len(found) - len(labeled)
      few = f"{name}: left out, without label: {count:,}"
      notes.append(few if labeled else f"{name} has no labels: left out")
    unclear = [row for row in found if row.split is None]
    if unclear and (len(sources) > 1 or len(unclear) < len(found)):
      raise AnnotationError(
        f"{unclear[0].where}: the split of {unclear[0].path!r} is unclear; give it as SPLIT=FILE"
      )
    rows.extend(labeled)
  if not rows:
    raise AnnotationError(f"{sources[0].path}: no videos with labels; give those of train too")
  return rows, notes


def list_rows(source: Source) -> Iterable[Row]:
  """Rows of a list: lines of a path and its labels, separated by spaces.

  Paths may hold spaces where labels are numbers.

  Raises:
    AnnotationError: a line of another kind.
  """
  for number, line in read_lines(source.path):
    where = f"{source.path}, line {number}"
    if match := _NUMBERED.fullmatch(line):
      path, labels = match["path"], tuple(match["labels"].split())
      if len(labels) > 1 and suffix(path) not in VIDEO_SUFFIXES:
        raise AnnotationError(
          f"{where}: {line!r} looks like a folder of frames; expected `path label` of a video file"
        )
    else:
      path, *labels = line.split()
      # A path with spaces can't be told from names of classes.
      if suffix(line) in VIDEO_SUFFIXES:
        path, labels = line, None
      elif len(labels) != 1:
        raise AnnotationError(
          f"{where}: expected `path label`, got {line!r}; where names hold spaces, labels must be "
          "numbers, or the file a CSV"
        )
    yield Row(path, labels and tuple(labels), where, source.split)


def is_number(label: str) -> bool:
  # Python refuses to read numbers of any length.
  return re.fullmatch(r"-?[0-9]{1,18}", label) is not None


def number_labels(row: Row, num_classes: int) -> tuple[int, ...]:
  """Labels of a row as indices.

  Raises:
    AnnotationError: one that is no index of a class.
  """
  for label in row.labels:
    if not is_number(label) or not 0 <= int(label) < num_classes:
      raise AnnotationError(
        f"{row.where}: label {label!r}; expected a number from 0 to {num_classes - 1}"
      )
  return tuple(sorted({int(label) for label in row.labels}))


def one_number(row: Row, num_classes: int) -> tuple[int]:
  """The index of the only class of a row.

  Raises:
    AnnotationError: several labels, or one that is no index of a class.
  """
  if len(row.labels) != 1:
    raise AnnotationError(
      f"{row.where}: expected one label of {row.path!r}, got {len(row.labels)}; with several, use "
      "the multi-label option of video_folder"
    )
  return number_labels(row, num_classes)
