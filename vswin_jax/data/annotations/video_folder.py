"""A user's own videos: a folder for each class, or CSV, JSON and text files that list them."""

import dataclasses
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from vswin_jax.data.annotations.assembling import Entry, assemble, locate
from vswin_jax.data.annotations.common import (
  AnnotationError,
  Annotations,
  Options,
  closest,
  split_called,
)
from vswin_jax.data.annotations.rows import (
  Row,
  collect_rows,
  is_number,
  list_rows,
  number_labels,
)
from vswin_jax.data.annotations.sources import (
  Source,
  describe,
  find_sources,
  in_folder,
  with_splits_of_names,
)
from vswin_jax.data.annotations.text_files import (
  delimiter,
  first_line,
  read_json,
  read_table,
  suffix,
)
from vswin_jax.data.annotations.tree import FileTree, without_suffix

_PATH_NAMES = ("path", "video", "file", "filename", "file_name", "video_path")
_LABEL_NAMES = ("label", "labels")
_TABLES = (".csv", ".tsv")
_EXPECTED = "expected path,label[,split][,group]"
# Numbers beyond it are no indices of classes but dates and the like.
_MOST_CLASSES = 100_000
_EXAMPLES = 3


def find(tree: FileTree, annotations: Sequence[str]) -> tuple[Source, ...]:
  """Annotation files, see `find_sources`.

  Those beside class folders of videos may be of anything: they must be named.
  """
  if annotations:
    return find_sources(tree.root, annotations, _is_annotation_file)
  beside = not _has_class_folders(tree)
  return find_sources(tree.root, (), _is_named_for_all, beside=beside)


def read(dataset: str, tree: FileTree, sources: Sequence[Source], options: Options) -> Annotations:
  """Videos in `class/` or `split/class/`, or listed in files.

  Labels of files are indices where all of them are numbers, else names; names of classes are
  sorted if they are not given.
  """
  if not sources:
    return _read_folders(tree, options)
  sources = with_splits_of_names(sources)
  rows, notes = collect_rows(sources, lambda source: _rows(source, options.multi_label))
  multi_label = options.multi_label or any(len(set(row.labels)) > 1 for row in rows)
  for row in rows:
    if not row.labels and not multi_label:
      raise AnnotationError(f"{row.where}: no label of {row.path!r}; expected one")
  class_names, labels = _classes(rows, options.class_names)
  entries = [locate(tree, row, label) for row, label in zip(rows, labels)]
  notes.insert(0, describe(sources))
  return assemble(tree, entries, class_names, options, multi_label, notes=notes)


def _is_annotation_file(name: str) -> bool:
  return suffix(name) in (*_TABLES, ".json", ".txt")


def _is_named_for_all(name: str) -> bool:
  """Whether a file that nobody named must be an annotation file: others may lie there, too."""
  stem = os.path.splitext(name)[0].lower()
  return _is_annotation_file(name) and (stem == "annotations" or split_called(stem) is not None)


def _classes(
  rows: Sequence[Row], class_names: Sequence[str] | None
) -> tuple[Sequence[str], list[tuple[int, ...]]]:
  """Names of the classes, and the labels of rows as indices."""
  found = {label for row in rows for label in row.labels}
  if not found:
    raise AnnotationError(f"{rows[0].where}: neither this video nor any other has a label")
  if not all(map(is_number, found)):
    return _named_classes(rows, class_names)
  largest = max(map(int, found))
  class_names = class_names or [str(index) for index in range(min(largest + 1, _MOST_CLASSES))]
  return class_names, [number_labels(row, len(class_names)) for row in rows]


def _named_classes(
  rows: Sequence[Row], class_names: Sequence[str] | None
) -> tuple[Sequence[str], list[tuple[int, ...]]]:
  class_names = class_names or sorted({label for row in rows for label in row.labels})
  indices = {name: index for index, name in enumerate(class_names)}
  for row in rows:
    for label in row.labels:
      if label not in indices:
        raise AnnotationError(
          f"{row.where}: unknown class {label!r}; {closest(label, class_names)}"
        )
  return class_names, [tuple(sorted({indices[label] for label in row.labels})) for row in rows]


def _rows(source: Source, multi_label: bool) -> Iterable[Row]:
  if suffix(source.path) == ".json":
    return _json_rows(source)
  line = first_line(source.path)
  if suffix(source.path) in _TABLES and (delimiter(line) or line.lower() in _PATH_NAMES):
    return _table_rows(source, multi_label)
  return list_rows(source)


def _table_rows(source: Source, multi_label: bool) -> Iterator[Row]:
  table = list(read_table(source.path))
  line, first = table[0]
  header = [name.lower() for name in first]
  path_name = next((name for name in _PATH_NAMES if name in header), None)
  label_name = next((name for name in _LABEL_NAMES if name in header), None)
  if path_name and (label_name or source.split == "test"):
    table = table[1:]
  elif path_name or label_name or len(header) != 2:
    raise AnnotationError(
      f"{source.path}, line {line}: {_EXPECTED} in the first line, got {','.join(first)!r:.200}"
    )
  else:
    header, path_name, label_name = ["path", "label"], "path", "label"
  for line, cells in table:
    where = f"{source.path}, line {line}"
    row = dict(zip(header, cells))
    text = row.get(label_name, "")
    labels = tuple(filter(None, map(str.strip, re.split("[|;]", text) if multi_label else [text])))
    yield Row(
      _checked_path(row[path_name], where),
      labels if labels or (multi_label and label_name) else None,
      where,
      source.split_of(row.get("split", ""), where),
      row.get("group") or None,
    )


def _json_rows(source: Source) -> Iterator[Row]:
  videos = read_json(source.path)
  if isinstance(videos, dict):
    videos = [{"path": path, "label": label} for path, label in videos.items()]
  if not isinstance(videos, list):
    raise AnnotationError(f"{source.path}: expected a list of objects, or an object path: label")
  for number, video in enumerate(videos, 1):
    where = f"{source.path}, entry {number}"
    if not isinstance(video, dict):
      raise AnnotationError(f"{where}: {_EXPECTED} in an object, got {video!r:.200}")
    split, group = video.get("split") or "", video.get("group")
    if not isinstance(split, str) or not isinstance(group, str | int | None):
      raise AnnotationError(f"{where}: expected text as split and group")
    yield Row(
      _checked_path(video.get("path"), where),
      _json_labels(video.get("labels", video.get("label")), where),
      where,
      source.split_of(split, where),
      None if group in ("", None) else str(group),
    )


def _checked_path(path, where: str) -> str:
  if not isinstance(path, str) or not path or "\0" in path:
    raise AnnotationError(f"{where}: path {path!r:.200}; expected the path of a video")
  return path


def _json_labels(value, where: str) -> tuple[str, ...] | None:
  if value is None or value == "":
    return None
  labels = value if isinstance(value, list) else [value]
  for label in labels:
    if not isinstance(label, str | int) or isinstance(label, bool) or label == "":
      raise AnnotationError(f"{where}: label {label!r:.200}; expected a name, a number or a list")
  return tuple(str(label).strip() for label in labels)


@dataclasses.dataclass(frozen=True)
class _Layout:
  """Where class folders are: below the root, or below those of splits.

  Attributes:
    splits: by the names of the outermost folders that stand for them.
  """

  splits: Mapping[str, str]

  @classmethod
  def of(cls, tree: FileTree) -> "_Layout":
    nested = {path.split("/")[0] for path in tree.videos if path.count("/") > 1}
    return cls({name: split for name in nested if (split := split_called(name))})

  @property
  def depth(self) -> int:
    """Of a class folder."""
    return 2 if self.splits else 1

  def class_folder(self, path: str) -> str | None:
    """The class folder that a file is in, at any depth, or that a folder is; else None."""
    parts = path.split("/")
    if len(parts) < self.depth or (self.splits and parts[0] not in self.splits):
      return None
    return "/".join(parts[: self.depth])

  def class_folder_of(self, path: str) -> str | None:
    """Likewise, of a file alone."""
    return self.class_folder(path.rpartition("/")[0])


def _has_class_folders(tree: FileTree) -> bool:
  """Whether two or more folders, but for those of splits, are where those of classes would be."""
  layout = _Layout.of(tree)
  folders = {folder for path in tree.videos if (folder := layout.class_folder_of(path))}
  names = {folder.rpartition("/")[2] for folder in folders}
  return sum(split_called(name) is None for name in names) > 1


def _read_folders(tree: FileTree, options: Options) -> Annotations:
  layout = _Layout.of(tree)
  _check_layout(tree, layout)
  rows, strays = [], []
  for path in tree.videos:
    if folder := layout.class_folder_of(path):
      split = layout.splits.get(folder.split("/")[0])
      rows.append(Row(path, (folder.rpartition("/")[2],), tree.absolute(path), split))
    else:
      strays.append(path)
  if not rows:
    raise AnnotationError(
      f"{tree.root}: no videos in class folders; expected class/video or train/class/video, or "
      "files with --annotations"
    )
  class_names, labels = _named_classes(rows, options.class_names)
  entries = [
    Entry(row, tree.absolute(row.path), without_suffix(row.path), label, True)
    for row, label in zip(rows, labels)
  ]
  other_files = [
    (tree.absolute(path), f"{suffix(path) or 'no suffix'}: not the name of a video file")
    for path in tree.others
    if layout.class_folder_of(path)
  ]
  full = {layout.class_folder_of(row.path) for row in rows}
  empty = [name for name in tree.folders if layout.class_folder(name) == name and name not in full]
  notes = [
    *(f"{tree.absolute(name)} holds no videos: left out" for name in empty),
    *_left_out("in no class folder", [tree.absolute(path) for path in strays], 1),
    *_left_out("no videos by their suffix", [path for path, _ in other_files], _EXAMPLES),
  ]
  if unread := in_folder(os.path.dirname(tree.root), _is_named_for_all):
    notes.append(
      f"not read, since the videos are in class folders: {unread[0].path}; if it lists them, name "
      "it with --annotations"
    )
  return assemble(
    tree, entries, class_names, options, options.multi_label, other_files=other_files, notes=notes
  )


def _check_layout(tree: FileTree, layout: _Layout) -> None:
  """Raises AnnotationError if folders of splits hold no classes, or stand beside class folders."""
  outermost = {path.split("/")[0] for path in tree.videos if "/" in path}
  if not layout.splits and outermost and all(map(split_called, outermost)):
    raise AnnotationError(
      f"{tree.root}: no class folders in {', '.join(sorted(outermost))}; expected "
      "train/class/video, or files with --annotations"
    )
  beside = {path.split("/")[0] for path in tree.videos if path.count("/") > 1}
  if layout.splits and (others := sorted(beside - layout.splits.keys())):
    raise AnnotationError(
      f"{tree.root}: {', '.join(sorted(layout.splits))} hold splits, but {others[0]} holds videos, "
      "too; expected class/video in all folders, or train/class/video and val/class/video"
    )


def _left_out(what: str, paths: Sequence[str], most: int) -> list[str]:
  """A note, with some examples, if there is something to note."""
  examples = ", ".join(paths[:most])
  return [f"left out, {what}: {len(paths):,}, such as {examples}"] if paths else []
