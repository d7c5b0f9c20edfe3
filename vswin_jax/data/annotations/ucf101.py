"""UCF101: a list of classes, and lists of videos for each of three splits."""

import collections
import os
import re
from collections.abc import Iterator, Mapping, Sequence

from vswin_jax.data.annotations.assembling import assemble, locate
from vswin_jax.data.annotations.common import AnnotationError, Annotations, Options, closest
from vswin_jax.data.annotations.rows import Row, collect_rows, number_labels
from vswin_jax.data.annotations.sources import Source, describe, find_sources
from vswin_jax.data.annotations.splitting import scene
from vswin_jax.data.annotations.text_files import read_lines
from vswin_jax.data.annotations.tree import FileTree, without_suffix

_CLASSES = "classInd.txt"
_LIST = re.compile(r"(train|test)list0?(\d)\.txt", re.IGNORECASE)
_SPLITS = {"train": "train", "test": "validation"}


def find(tree: FileTree, annotations: Sequence[str]) -> tuple[Source, ...]:
  """Its annotation files, see `find_sources`."""
  folders = ("ucfTrainTestlist", "annotations")
  return find_sources(tree.root, annotations, _is_annotation_file, folders)


def read(dataset: str, tree: FileTree, sources: Sequence[Source], options: Options) -> Annotations:
  """UCF101; the test list of a split is its "validation"."""
  names = {os.path.basename(source.path).lower(): source for source in sources}
  number = options.split_number
  sources = [
    Source(source.path, source.split or _SPLITS[match[1].lower()])
    for source in sources
    if (match := _LIST.fullmatch(os.path.basename(source.path))) and int(match[2]) == number
  ]
  if _CLASSES.lower() not in names or not sources:
    raise AnnotationError(
      f"{dataset}: expected {_CLASSES}, trainlist0{number}.txt and testlist0{number}.txt in or "
      f"beside {tree.root}, or named with --annotations"
    )
  class_names = _class_names(names[_CLASSES.lower()].path)
  indices = {name: index for index, name in enumerate(class_names)}
  rows, notes = collect_rows(sources, lambda source: _rows(source, indices))
  _check_groups(rows)
  for kind, split in _SPLITS.items():
    if all(source.split != split for source in sources):
      notes.append(f"no {kind}list0{number}.txt was found: there are no videos of {split}")
  entries = [
    locate(tree, row, number_labels(row, len(class_names)), parts=2, id=without_suffix(row.path))
    for row in rows
  ]
  notes.insert(0, describe(sources))
  return assemble(tree, entries, class_names, options, notes=notes, drop_conflicts=True)


def _is_annotation_file(name: str) -> bool:
  return name.lower() == _CLASSES.lower() or _LIST.fullmatch(name) is not None


def _class_names(path: str) -> tuple[str, ...]:
  names = []
  for number, line in read_lines(path):
    index, _, name = line.partition(" ")
    if index != str(len(names) + 1) or not name.strip() or name.strip() in names:
      raise AnnotationError(
        f"{path}, line {number}: expected `{len(names) + 1} NameOfClass`, got {line!r}"
      )
    names.append(name.strip())
  if not names:
    raise AnnotationError(f"{path}: it lists no classes; expected lines such as `1 ApplyEyeMakeup`")
  return tuple(names)


def _rows(source: Source, indices: Mapping[str, int]) -> Iterator[Row]:
  for number, line in read_lines(source.path):
    where = f"{source.path}, line {number}"
    path, *label = line.split()
    name, slash, _ = path.partition("/")
    if not slash or len(label) > 1:
      raise AnnotationError(f"{where}: expected `Class/video.avi`, a number maybe, got {line!r}")
    if name not in indices:
      raise AnnotationError(f"{where}: unknown class {name!r}; {closest(name, indices)}")
    if label and label[0] != str(indices[name] + 1):
      raise AnnotationError(
        f"{where}: label {label[0]!r} of {name}; expected {indices[name] + 1} as in {_CLASSES}"
      )
    yield Row(path, (str(indices[name]),), where, source.split)


def _check_groups(rows: Sequence[Row]) -> None:
  splits = collections.defaultdict(set)
  for row in rows:
    splits[row.path].add(row.split)
  first = {}
  for row in rows:
    # Those are left out, whatever their scene.
    if len(splits[row.path]) > 1:
      continue
    name = scene(row.path) or row.path
    other = first.setdefault(name, row)
    if other.split != row.split:
      raise AnnotationError(
        f"{other.where} and {row.where}: videos of one scene, {name}, are in {other.split} and in "
        f"{row.split}; use the lists of one split"
      )
