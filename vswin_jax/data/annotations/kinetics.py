"""Kinetics: CSV files of YouTube ids and times, or lists of paths and numbers."""

import collections
import math
from collections.abc import Iterator, Sequence

from vswin_jax.data.annotations.assembling import Entry, assemble, locate, locate_by_name
from vswin_jax.data.annotations.common import (
  AnnotationError,
  Annotations,
  Options,
  closest,
  split_within,
)
from vswin_jax.data.annotations.rows import Row, collect_rows, list_rows, one_number
from vswin_jax.data.annotations.sources import (
  Source,
  all_alike,
  describe,
  find_sources,
  with_splits_of_names,
)
from vswin_jax.data.annotations.text_files import first_line, read_table, suffix
from vswin_jax.data.annotations.tree import FileTree
from vswin_jax.data.label_names import label_names

_HEADER = "label,youtube_id,time_start,time_end,split"
_EXPECTED = (
  f"expected train.csv and val.csv with the columns {_HEADER}, or lists of `path label`; name them "
  "with --annotations"
)


def find(tree: FileTree, annotations: Sequence[str]) -> tuple[Source, ...]:
  """Its annotation files, see `find_sources`."""
  return find_sources(tree.root, annotations, _is_annotation_file)


def read(dataset: str, tree: FileTree, sources: Sequence[Source], options: Options) -> Annotations:
  """Kinetics-400, 600 or 700.

  A class's index is its place among the sorted labels of the training videos, `"` removed and
  spaces replaced by `_`; that is the order of the released models.

  Args:
    dataset: such as "kinetics400".
  """
  sources = with_splits_of_names(sources)
  if not sources:
    raise AnnotationError(f"no annotation files in {tree.root} or its parent; {_EXPECTED}")
  are_tables = all_alike(sources, _is_table, "lists and CSV files")
  shipped = label_names(dataset)
  rows, notes = collect_rows(sources, _table_rows if are_tables else list_rows)
  if are_tables:
    class_names = _class_names(rows, shipped)
    if class_names != shipped:
      notes.append(f"the {len(class_names)} classes are not the {len(shipped)} of {dataset}")
    labels = _named_labels(rows, class_names)
    entries = _clips(tree, rows, labels)
  else:
    class_names = shipped
    labels = [one_number(row, len(shipped)) for row in rows]
    entries = [locate(tree, row, label, parts=1) for row, label in zip(rows, labels)]
  notes.insert(0, describe(sources))
  return assemble(tree, entries, class_names, options, notes=notes, drop_conflicts=True)


def _is_annotation_file(name: str) -> bool:
  return suffix(name) in (".csv", ".txt") and split_within(name) is not None


def _is_table(path: str) -> bool:
  line = first_line(path)
  return "youtube_id" in line.lower() or (suffix(path) == ".csv" and "," in line)


def _normal(label: str) -> str:
  return label.replace('"', "").replace(" ", "_")


def _table_rows(source: Source) -> Iterator[Row]:
  """Rows whose paths are names of files without suffix: id, start and end in seconds."""
  table = read_table(source.path)
  line, header = next(table, (1, []))
  header = [name.lower() for name in header]
  needed = ["youtube_id", "time_start", "time_end"]
  if source.split != "test":
    needed.append("label")
  if missing := [name for name in needed if name not in header]:
    raise AnnotationError(
      f"{source.path}, line {line}: no column {', '.join(missing)}; expected {_HEADER}"
    )
  for line, cells in table:
    where = f"{source.path}, line {line}"
    row = dict(zip(header, cells))
    if not row["youtube_id"]:
      raise AnnotationError(f"{where}: no youtube_id")
    start, end = (_seconds(row[name], where) for name in ("time_start", "time_end"))
    label = row.get("label", "").replace('"', "").strip()
    split = source.split_of(row.get("split", ""), where)
    name = f"{row['youtube_id']}_{start:06d}_{end:06d}"
    yield Row(name, (label,) if label else None, where, split)


def _seconds(text: str, where: str) -> int:
  try:
    seconds = float(text)
  except ValueError:
    seconds = math.nan
  if not 0 <= seconds < 1e6:
    raise AnnotationError(f"{where}: time {text!r}; expected seconds")
  return int(seconds)


def _class_names(rows: Sequence[Row], shipped: Sequence[str]) -> tuple[str, ...]:
  known = {_normal(name): name for name in shipped}
  spelled = {}
  for row in rows:
    # Without splits, all videos may become training videos.
    if row.split in ("train", None):
      spelled.setdefault(_normal(row.labels[0]), row.labels[0])
  if not spelled:
    return tuple(shipped)
  return tuple(known.get(name, spelled[name]) for name in sorted(spelled))


def _named_labels(rows: Sequence[Row], class_names: Sequence[str]) -> list[tuple[int]]:
  indices = {_normal(name): index for index, name in enumerate(class_names)}
  labels = []
  for row in rows:
    index = indices.get(_normal(row.labels[0]))
    if index is None:
      raise AnnotationError(
        f"{row.where}: no training video has the label {row.labels[0]!r}; "
        f"{closest(row.labels[0], class_names)}"
      )
    labels.append((index,))
  return labels


def _clips(tree: FileTree, rows: Sequence[Row], labels: Sequence[tuple[int]]) -> Iterator[Entry]:
  """Files are named by id and times; those named by the id alone count if one clip has it."""
  clips_of = collections.defaultdict(set)
  for row in rows:
    clips_of[_youtube_id(row)].add(row.path)
  for row, label in zip(rows, labels):
    is_only_one = len(clips_of[_youtube_id(row)]) == 1
    yield locate_by_name(tree, row, label, ".mp4", _youtube_id(row) if is_only_one else "")


def _youtube_id(row: Row) -> str:
  return row.path.rsplit("_", 2)[0]
