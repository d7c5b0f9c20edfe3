"""HMDB51: for each class and each of three splits, a list of videos."""

import os
import re
from collections.abc import Iterator, Sequence

from vswin_jax.data.annotations.common import AnnotationError, AnnotationOptions
from vswin_jax.data.annotations.file_tree import FileTree, without_suffix
from vswin_jax.data.annotations.rows import Listing, Row, collect_rows
from vswin_jax.data.annotations.text_files import read_lines

_FILE = re.compile(r"(.+)_test_split([1-3])\.txt")
_SPLITS = {"1": "train", "2": "validation", "0": None}
_NUM_CLASSES = 51


def is_annotation_file(name: str) -> bool:
  return _FILE.fullmatch(name) is not None


def read(
  dataset: str, tree: FileTree, files: Sequence[tuple[str, str | None]], options: AnnotationOptions
) -> Listing:
  """Reads HMDB51; the test videos of a split are its validation videos, classes are sorted."""
  if any(split for _, split in files):
    raise AnnotationError(f"{dataset}: its files contain all splits; give them without SPLIT=")
  file_of_class = {
    match[1]: file
    for file in files
    if (match := _FILE.fullmatch(os.path.basename(file[0])))
    and match[2] == str(options.split_number)
  }
  if not file_of_class:
    raise AnnotationError(
      f"{dataset}: no files such as brush_hair_test_split{options.split_number}.txt in or beside "
      f"{tree.root}; name their folder with --annotations"
    )
  class_names = sorted(file_of_class)
  rows, notes = collect_rows([file_of_class[name] for name in class_names], _rows)
  if len(class_names) != _NUM_CLASSES:
    notes.append(
      f"there are files of {len(class_names)} classes, not {_NUM_CLASSES}: class indices differ "
      f"from those of the full {dataset}"
    )
  return Listing(rows, class_names, notes)


def _rows(path: str) -> Iterator[Row]:
  class_name = _FILE.fullmatch(os.path.basename(path))[1]
  for where, line in read_lines(path):
    name, _, part = line.rpartition(" ")
    if not name or part not in _SPLITS:
      raise AnnotationError(
        f"{where}: expected `name.avi` and 1 (train), 2 (test) or 0 (neither), got {line!r}"
      )
    if split := _SPLITS[part]:
      video = f"{class_name}/{name.strip()}"
      yield Row(video, (class_name,), where, split, id=without_suffix(video))
