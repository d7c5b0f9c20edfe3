"""Something-Something V2: JSON files of ids and templates, or lists of paths and indices."""

import os
from collections.abc import Iterator, Sequence

from vswin_jax.data.annotations.common import AnnotationError, AnnotationOptions, split_within
from vswin_jax.data.annotations.file_tree import FileTree
from vswin_jax.data.annotations.rows import (
  Listing,
  Row,
  collect_rows,
  is_index,
  list_rows,
  with_class_names,
)
from vswin_jax.data.annotations.text_files import read_json, read_objects, suffix
from vswin_jax.data.label_names import label_names


def is_annotation_file(name: str) -> bool:
  if suffix(name) not in (".json", ".txt"):
    return False
  return split_within(name) is not None or _is_labels_file(name)


def read(
  dataset: str, tree: FileTree, files: Sequence[tuple[str, str | None]], options: AnnotationOptions
) -> Listing:
  """Reads Something-Something V2; without a labels file, class names are those of the release."""
  labels_files = [file for file in files if _is_labels_file(os.path.basename(file[0]))]
  files = [file for file in files if file not in labels_files]
  if not files or len(labels_files) > 1:
    raise AnnotationError(
      f"no annotation files or more than one labels file in {tree.root} or its parent; expected "
      "labels.json, train.json and validation.json, or lists of `path label`; name them with "
      "--annotations"
    )
  class_names = _class_names(labels_files[0][0]) if labels_files else label_names(dataset)

  def read_rows(path: str) -> Iterator[Row]:
    if suffix(path) == ".json":
      return _json_rows(path)
    return with_class_names(list_rows(path), class_names)

  rows, notes = collect_rows(files, read_rows)
  return Listing(rows, class_names, notes)


def _is_labels_file(name: str) -> bool:
  return "labels" in name.lower() and suffix(name) == ".json" and split_within(name) is None


def _class_name(template: str) -> str:
  return template.replace("[", "").replace("]", "")


def _class_names(path: str) -> tuple[str, ...]:
  labels = read_json(path)
  names = {}
  if isinstance(labels, dict):
    names = {int(index): name for name, index in labels.items() if is_index(str(index))}
  if not names or len(names) < len(labels) or set(names) != set(range(len(names))):
    raise AnnotationError(
      f'{path}: expected {{"template": "index"}} with indices from 0 on, each once'
    )
  return tuple(_class_name(names[index]) for index in range(len(names)))


def _json_rows(path: str) -> Iterator[Row]:
  for where, video in read_objects(path):
    id, template = video.get("id"), video.get("template")
    if not isinstance(id, str | int) or not isinstance(template, str | None):
      raise AnnotationError(f"{where}: expected text as id and template, got {video!r:.200}")
    labels = (_class_name(template),) if template else None
    yield Row(f"{id}.webm", labels, where, id=str(id))
