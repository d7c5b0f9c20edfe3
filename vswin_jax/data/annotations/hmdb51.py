"""HMDB51: for each class and each of three splits a list of videos and of their parts."""

import os
import re
from collections.abc import Iterator, Sequence

from vswin_jax.data.annotations.assembling import assemble, locate
from vswin_jax.data.annotations.common import AnnotationError, Annotations, Options
from vswin_jax.data.annotations.rows import Row, collect_rows, number_labels
from vswin_jax.data.annotations.sources import Source, find_sources
from vswin_jax.data.annotations.text_files import read_lines
from vswin_jax.data.annotations.tree import FileTree, without_suffix

_FILE = re.compile(r"(.+)_test_split([1-3])\.txt")
_SPLITS = {"1": "train", "2": "validation", "0": None}
_FOLDERS = ("testTrainMulti_7030_splits", "test_train_splits", "annotations")
_NUM_CLASSES = 51


def find(tree: FileTree, annotations: Sequence[str]) -> tuple[Source, ...]:
  """Its annotation files, see `find_sources`."""
  return find_sources(
    tree.root, annotations, lambda name: _FILE.fullmatch(name) is not None, _FOLDERS
  )


def read(dataset: str, tree: FileTree, sources: Sequence[Source], options: Options) -> Annotations:
  """HMDB51; the test videos of a split are its "validation", classes are in order of name."""
  files = {
    match[1]: source
    for source in sources
    if (match := _FILE.fullmatch(os.path.basename(source.path)))
    and int(match[2]) == options.split_number
  }
  if not files:
    raise AnnotationError(
      f"{dataset}: no files such as brush_hair_test_split{options.split_number}.txt in or beside "
      f"{tree.root}; name their folder with --annotations"
    )
  if any(source.given for source in sources):
    raise AnnotationError(f"{dataset}: its files hold all splits; give them without SPLIT=")
  class_names = sorted(files)
  unused = []

  def read_rows(source: Source) -> Iterator[Row]:
    name = _FILE.fullmatch(os.path.basename(source.path))[1]
    return _rows(source, name, class_names.index(name), unused)

  rows, notes = collect_rows([files[name] for name in class_names], read_rows)
  if unused:
    notes.append(f"left out, in no part of split {options.split_number}: {len(unused):,}")
  if len(files) != _NUM_CLASSES:
    notes.append(
      f"the classes are {len(files)}, not the {_NUM_CLASSES} of {dataset}: their indices are not "
      "those of the full data set"
    )
  entries = [
    locate(tree, row, number_labels(row, len(files)), parts=2, id=without_suffix(row.path))
    for row in rows
  ]
  folder = os.path.dirname(files[class_names[0]].path)
  notes.insert(0, f"annotations read: {len(files)} files in {folder}")
  return assemble(tree, entries, class_names, options, notes=notes, drop_conflicts=True)


def _rows(source: Source, name: str, index: int, unused: list[str]) -> Iterator[Row]:
  for number, line in read_lines(source.path):
    where = f"{source.path}, line {number}"
    path, _, part = line.rpartition(" ")
    if not path or part not in _SPLITS:
      raise AnnotationError(
        f"{where}: expected `name.avi` and 1 (train), 2 (test) or 0 (neither), got {line!r}"
      )
    if split := _SPLITS[part]:
      yield Row(f"{name}/{path.strip()}", (str(index),), where, split)
    else:
      unused.append(path)
