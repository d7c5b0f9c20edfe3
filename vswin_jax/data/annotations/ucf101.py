"""UCF101: a list of classes, and lists of training and test videos for each of three splits."""

import os
import re
from collections.abc import Iterator, Sequence

from vswin_jax.data.annotations.common import AnnotationError, AnnotationOptions
from vswin_jax.data.annotations.file_tree import FileTree, without_suffix
from vswin_jax.data.annotations.rows import Listing, Row, collect_rows
from vswin_jax.data.annotations.splitting import scene
from vswin_jax.data.annotations.text_files import read_lines

_CLASSES = "classInd.txt"
_LIST = re.compile(r"(train|test)list0?(\d)\.txt", re.IGNORECASE)
_SPLITS = {"train": "train", "test": "validation"}


def is_annotation_file(name: str) -> bool:
  return name.lower() == _CLASSES.lower() or _LIST.fullmatch(name) is not None


def read(
  dataset: str, tree: FileTree, files: Sequence[tuple[str, str | None]], options: AnnotationOptions
) -> Listing:
  """Reads UCF101; the test videos of a split are its validation videos."""
  number = options.split_number
  names = {path: os.path.basename(path) for path, _ in files}
  classes = [path for path, name in names.items() if name.lower() == _CLASSES.lower()]
  lists = [
    file for file in files if (match := _LIST.fullmatch(names[file[0]])) and match[2] == str(number)
  ]
  if not classes or not lists:
    raise AnnotationError(
      f"{dataset}: expected {_CLASSES}, trainlist0{number}.txt and testlist0{number}.txt in or "
      f"beside {tree.root}, or named with --annotations"
    )
  class_names = _class_names(classes[0])
  rows, notes = collect_rows(lists, lambda path: _rows(path, class_names))
  return Listing(rows, class_names, notes)


def _class_names(path: str) -> tuple[str, ...]:
  names = []
  for where, line in read_lines(path):
    index, _, name = line.partition(" ")
    if index != str(len(names) + 1) or not name.strip() or name.strip() in names:
      raise AnnotationError(f"{where}: expected `{len(names) + 1} NameOfClass`, got {line!r}")
    names.append(name.strip())
  if not names:
    raise AnnotationError(f"{path}: it lists no classes; expected lines such as `1 ApplyEyeMakeup`")
  return tuple(names)


def _rows(path: str, class_names: Sequence[str]) -> Iterator[Row]:
  numbers = {name: str(number) for number, name in enumerate(class_names, 1)}
  split = _SPLITS[_LIST.fullmatch(os.path.basename(path))[1].lower()]
  for where, line in read_lines(path):
    video, *number = line.split()
    name, slash, _ = video.partition("/")
    if not slash or len(number) > 1:
      raise AnnotationError(f"{where}: expected `Class/video.avi` or `... number`, got {line!r}")
    if number and numbers.get(name, number[0]) != number[0]:
      raise AnnotationError(f"{where}: class {number[0]!r} of {name}; expected {numbers[name]}")
    yield Row(video, (name,), where, split, scene(video), without_suffix(video))
