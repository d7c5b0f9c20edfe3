"""Something-Something V2: JSON files of templates, or lists of paths and numbers."""

import os
from collections.abc import Iterator, Mapping, Sequence

from vswin_jax.data.annotations.assembling import assemble, locate, locate_by_name
from vswin_jax.data.annotations.common import (
  AnnotationError,
  Annotations,
  Options,
  closest,
  split_within,
)
from vswin_jax.data.annotations.rows import (
  Row,
  collect_rows,
  is_number,
  list_rows,
  one_number,
)
from vswin_jax.data.annotations.sources import (
  Source,
  all_alike,
  describe,
  find_sources,
  with_splits_of_names,
)
from vswin_jax.data.annotations.text_files import read_json, suffix
from vswin_jax.data.annotations.tree import FileTree
from vswin_jax.data.label_names import label_names

_EXPECTED = (
  "expected labels.json, train.json and validation.json, or lists of `path label`; name them with "
  "--annotations"
)


def find(tree: FileTree, annotations: Sequence[str]) -> tuple[Source, ...]:
  """Its annotation files, see `find_sources`."""
  return find_sources(tree.root, annotations, _is_annotation_file, ("annotations", "labels"))


def read(dataset: str, tree: FileTree, sources: Sequence[Source], options: Options) -> Annotations:
  """Something-Something V2; without a file of labels, the classes are those of the release."""
  label_files = [source for source in sources if _holds_labels(source.path)]
  sources = with_splits_of_names([source for source in sources if source not in label_files])
  if not sources:
    raise AnnotationError(f"no annotation files of videos in or for {tree.root}; {_EXPECTED}")
  if len(label_files) > 1:
    raise AnnotationError(f"more than one file of labels: {describe(label_files)}")
  are_lists = all_alike(sources, lambda path: suffix(path) != ".json", "lists and JSON files")
  class_names = _class_names(label_files[0].path) if label_files else label_names(dataset)
  rows, notes = collect_rows(sources, list_rows if are_lists else _json_rows)
  if are_lists:
    labels = [one_number(row, len(class_names)) for row in rows]
    entries = [locate(tree, row, label, parts=1) for row, label in zip(rows, labels)]
  else:
    labels = _labels(rows, {name: index for index, name in enumerate(class_names)})
    entries = [locate_by_name(tree, row, label, ".webm") for row, label in zip(rows, labels)]
  notes.insert(0, describe([*label_files, *sources]))
  return assemble(tree, entries, class_names, options, notes=notes, drop_conflicts=True)


def _holds_labels(path: str) -> bool:
  name = os.path.basename(path).lower()
  return "labels" in name and suffix(name) == ".json" and split_within(name) is None


def _is_annotation_file(name: str) -> bool:
  return suffix(name) in (".json", ".txt") and (
    _holds_labels(name) or split_within(name) is not None
  )


def _plain(template: str) -> str:
  return template.replace("[", "").replace("]", "")


def _class_names(path: str) -> tuple[str, ...]:
  labels = read_json(path)
  expected = f'{path}: expected {{"template": "index"}} with indices from 0 on, each once'
  if not isinstance(labels, dict):
    raise AnnotationError(expected)
  names = {}
  for template, index in labels.items():
    if is_number(str(index)):
      names[int(index)] = _plain(template)
  if not labels or len(names) != len(labels) or set(names) != set(range(len(labels))):
    raise AnnotationError(expected)
  return tuple(names[index] for index in range(len(names)))


def _json_rows(source: Source) -> Iterator[Row]:
  videos = read_json(source.path)
  if not isinstance(videos, list):
    raise AnnotationError(f"{source.path}: expected a list of videos with id and template")
  for number, video in enumerate(videos, 1):
    where = f"{source.path}, entry {number}"
    if not isinstance(video, dict) or not isinstance(video.get("id"), str | int):
      raise AnnotationError(f"{where}: expected an object with id and template, got {video!r:.100}")
    template = video.get("template")
    if not isinstance(template, str | None):
      raise AnnotationError(f"{where}: template {template!r:.100}; expected text")
    yield Row(str(video["id"]), (_plain(template),) if template else None, where, source.split)


def _labels(rows: Sequence[Row], indices: Mapping[str, int]) -> list[tuple[int]]:
  for row in rows:
    if row.labels[0] not in indices:
      raise AnnotationError(
        f"{row.where}: unknown template {row.labels[0]!r}; {closest(row.labels[0], indices)}"
      )
  return [(indices[row.labels[0]],) for row in rows]
