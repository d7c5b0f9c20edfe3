"""Kinetics-400, 600 and 700: CSV files of YouTube ids and times, or lists of paths and indices."""

import math
from collections.abc import Iterator, Mapping, Sequence

from vswin_jax.data.annotations.common import AnnotationError, AnnotationOptions, split_within
from vswin_jax.data.annotations.file_tree import FileTree
from vswin_jax.data.annotations.rows import Listing, Row, collect_rows, list_rows, with_class_names
from vswin_jax.data.annotations.text_files import is_table, read_table, suffix
from vswin_jax.data.label_names import label_names

_COLUMNS = ("youtube_id", "time_start", "time_end", "label")


def is_annotation_file(name: str) -> bool:
  return suffix(name) in (".csv", ".txt") and split_within(name) is not None


def read(
  dataset: str, tree: FileTree, files: Sequence[tuple[str, str | None]], options: AnnotationOptions
) -> Listing:
  """Reads Kinetics; class indices are those of the released models.

  Their classes are the labels of the training CSV, sorted without `"` and with `_` for spaces.
  """
  if not files:
    raise AnnotationError(
      f"no annotation files in {tree.root} or its parent; expected train.csv and val.csv with the "
      f"columns {','.join(_COLUMNS)}, or lists of `path label`; name them with --annotations"
    )
  released = label_names(dataset)
  spellings = {_sort_key(name): name for name in released}

  def read_rows(path: str) -> Iterator[Row]:
    if is_table(path):
      return _table_rows(path, spellings)
    return with_class_names(list_rows(path), released)

  rows, notes = collect_rows(files, read_rows)
  class_names = released
  if all(is_table(path) for path, _ in files):
    # Without splits, every video may become a training video.
    labels = {row.labels[0] for row in rows if row.split in ("train", "")}
    class_names = tuple(sorted(labels, key=_sort_key)) or released
  if class_names != released:
    notes.append(f"the {len(class_names)} classes are not the {len(released)} of {dataset}")
  return Listing(rows, class_names, notes)


def _sort_key(label: str) -> str:
  return label.replace(" ", "_")


def _table_rows(path: str, spellings: Mapping[str, str]) -> Iterator[Row]:
  for where, cells in read_table(path, _COLUMNS):
    if not cells["youtube_id"]:
      raise AnnotationError(f"{where}: no youtube_id")
    start, end = (_seconds(cells[name], where) for name in ("time_start", "time_end"))
    clip = f"{cells['youtube_id']}_{start:06d}_{end:06d}"
    label = cells.get("label", "").replace('"', "").strip()
    labels = (spellings.get(_sort_key(label), label),) if label else None
    yield Row(f"{clip}.mp4", labels, where, cells.get("split", ""), id=clip)


def _seconds(text: str, where: str) -> int:
  try:
    seconds = float(text)
  except ValueError:
    seconds = math.nan
  if not 0 <= seconds < 1e6:
    raise AnnotationError(f"{where}: time {text!r}; expected seconds")
  return int(seconds)
