"""Readers of the annotation files of Kinetics, Something-Something V2, UCF101 and HMDB51."""

import os
import re
from collections.abc import Iterator, Mapping

from vswin_jax.data.annotations.common import AnnotationError, split_within
from vswin_jax.data.annotations.rows import Files, Listing, Row, collect_rows, list_rows
from vswin_jax.data.annotations.text_files import (
  is_table,
  read_json,
  read_lines,
  read_objects,
  read_table,
  suffix,
)
from vswin_jax.data.label_names import label_names

_KINETICS_COLUMNS = ("youtube_id", "time_start", "time_end", "label")
# Official test videos are for validation; those of part 0 are in neither split.
_HMDB51_SPLITS = {(1,): "train", (2,): "validation", (0,): None}


def read_kinetics(files: Files, dataset: str) -> Listing:
  """Reads Kinetics: CSV files, or lists of paths and indices of the released models' classes.

  The classes of CSV files are the labels of the training videos, sorted with `_` for spaces.
  """
  released = label_names(dataset)
  spellings = {_sort_key(name): name for name in released}
  rows, notes = collect_rows(
    files, lambda path: _kinetics_rows(path, spellings) if is_table(path) else list_rows(path)
  )
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


def _kinetics_rows(path: str, spellings: Mapping[str, str]) -> Iterator[Row]:
  for where, cells in read_table(path, _KINETICS_COLUMNS):
    times = [re.fullmatch(r"(\d{1,6})(\.\d*)?", cells[name]) for name in _KINETICS_COLUMNS[1:3]]
    if not cells["youtube_id"] or not all(times):
      raise AnnotationError(
        f"{where}: expected a youtube_id and times in seconds, got {cells['youtube_id']!r}, "
        f"{cells['time_start']!r} and {cells['time_end']!r}"
      )
    clip = "_".join([cells["youtube_id"], *(f"{int(time[1]):06d}" for time in times)])
    label = cells.get("label", "").replace('"', "").strip()
    labels = (spellings.get(_sort_key(label), label),) if label else None
    yield Row(f"{clip}.mp4", labels, where, cells.get("split", ""), in_any_folder=True)


def read_something_something(files: Files, dataset: str) -> Listing:
  """Reads Something-Something V2: JSON files, or lists of paths and class indices.

  Without a labels file, class names are those of the release.
  """
  labels_files = [path for path, _ in files if _is_labels_file(os.path.basename(path))]
  if len(labels_files) > 1:
    raise AnnotationError(f"expected one labels file, got {' and '.join(labels_files)}")
  class_names = _templates(labels_files[0]) if labels_files else label_names(dataset)
  rows, notes = collect_rows(
    [file for file in files if file[0] not in labels_files],
    lambda path: _template_rows(path) if suffix(path) == ".json" else list_rows(path),
  )
  return Listing(rows, class_names, notes)


def _is_labels_file(name: str) -> bool:
  return "labels" in name.lower() and suffix(name) == ".json" and split_within(name) is None


def _templates(path: str) -> list[str]:
  """Returns the class names in a labels file, by class index."""
  labels = read_json(path)
  names = {str(index): name for name, index in labels.items()} if isinstance(labels, dict) else {}
  indices = [str(index) for index in range(len(names))]
  if not names or len(names) < len(labels) or set(names) != set(indices):
    raise AnnotationError(
      f'{path}: expected {{"template": "index"}} with indices from 0 on, each once'
    )
  return [_class_name(names[index]) for index in indices]


def _class_name(template: str) -> str:
  return template.replace("[", "").replace("]", "")


def _template_rows(path: str) -> Iterator[Row]:
  for where, video in read_objects(path):
    id, template = video.get("id"), video.get("template")
    if not isinstance(id, str | int) or not isinstance(template, str | None):
      raise AnnotationError(f"{where}: expected text as id and template, got {video!r:.200}")
    labels = (_class_name(template),) if template else None
    yield Row(f"{id}.webm", labels, where, in_any_folder=True)


def read_ucf101(files: Files, dataset: str) -> Listing:
  """Reads UCF101: a list of classes, and lists of training and test videos of a split."""
  classes = next((path for path, _ in files if path.lower().endswith("classind.txt")), None)
  if not classes:
    raise AnnotationError(f"{dataset}: no classInd.txt among {[path for path, _ in files]}")
  numbers = {}
  for where, line in read_lines(classes):
    number = len(numbers) + 1
    match = re.fullmatch(rf"{number}\s+(\S+)", line)
    if not match or match[1] in numbers:
      raise AnnotationError(f"{where}: expected `{number} NameOfClass`, got {line!r}")
    numbers[match[1]] = number

  def read(path: str) -> Iterator[Row]:
    is_train = os.path.basename(path).lower().startswith("train")
    for row in list_rows(path):
      name, slash, _ = row.path.partition("/")
      if not slash or row.labels not in (None, (numbers.get(name),)):
        raise AnnotationError(
          f"{row.where}: expected `Class/video.avi`, alone or with the number of the class in "
          f"{classes}, got {row.path!r} and {row.labels}"
        )
      split = "train" if is_train else "validation"
      yield Row(row.path, (name,), row.where, split, in_any_folder=True)

  rows, notes = collect_rows([file for file in files if file[0] != classes], read)
  return Listing(rows, tuple(numbers), notes, has_scenes=True)


def read_hmdb51(files: Files, dataset: str) -> Listing:
  """Reads HMDB51: for each class, a list of videos with their splits. Classes are sorted."""
  if any(split for _, split in files):
    raise AnnotationError(f"{dataset}: its files contain all splits; give them without SPLIT=")
  classes = {path: os.path.basename(path).partition("_test_split")[0] for path, _ in files}

  def read(path: str) -> Iterator[Row]:
    for row in list_rows(path):
      if row.labels not in _HMDB51_SPLITS:
        raise AnnotationError(
          f"{row.where}: expected `name.avi` and 1 (train), 2 (test) or 0 (neither), got "
          f"{row.path!r} and {row.labels}"
        )
      if split := _HMDB51_SPLITS[row.labels]:
        name = classes[path]
        yield Row(f"{name}/{row.path}", (name,), row.where, split, in_any_folder=True)

  rows, notes = collect_rows(files, read)
  class_names = sorted(set(classes.values()))
  if len(class_names) != 51:
    notes.append(f"there are files of {len(class_names)} classes, not 51: class indices differ")
  return Listing(rows, class_names, notes)
