"""A user's own videos: in class folders, or listed in CSV, JSON and text files."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence

from vswin_jax.data.annotations.common import AnnotationError, AnnotationOptions, split_called
from vswin_jax.data.annotations.file_tree import FileTree
from vswin_jax.data.annotations.rows import (
  Listing,
  Row,
  collect_rows,
  is_index,
  list_rows,
  with_class_names,
)
from vswin_jax.data.annotations.text_files import is_table, read_objects, read_table, suffix

# Larger numbers are dates and the like, not class indices.
_MAX_CLASSES = 100_000


def is_annotation_file(name: str) -> bool:
  """Returns whether the name is that of a split or "annotations", as other files may be there."""
  stem, suffix = os.path.splitext(name.lower())
  is_listing = suffix in (".csv", ".tsv", ".json", ".txt")
  return is_listing and (stem == "annotations" or split_called(stem) is not None)


def read(
  dataset: str, tree: FileTree, files: Sequence[tuple[str, str | None]], options: AnnotationOptions
) -> Listing:
  """Reads videos in `class/` or `split/class/`, or those that files list.

  Labels in files are class indices if all of them are numbers, else class names. Class names are
  sorted unless the options give them.
  """
  if not files:
    return _read_class_folders(tree, options)
  rows, notes = collect_rows(files, lambda path: _rows(path, options.multi_label))
  labels = {label for row in rows for label in row.labels}
  if not labels:
    raise AnnotationError(f"{rows[0].where}: neither this video nor any other has a label")
  class_names = options.class_names
  if all(map(is_index, labels)):
    largest = min(max(0, *map(int, labels)), _MAX_CLASSES - 1)
    class_names = class_names or [str(index) for index in range(largest + 1)]
    rows = list(with_class_names(rows, class_names))
  multi_label = options.multi_label or any(len(set(row.labels)) > 1 for row in rows)
  return Listing(rows, class_names or sorted(labels), notes, multi_label)


def _rows(path: str, multi_label: bool) -> Iterator[Row]:
  if suffix(path) == ".json":
    videos = read_objects(path)
  elif is_table(path):
    videos = read_table(path, ("path", "label"))
  else:
    yield from list_rows(path)
    return
  for where, video in videos:
    file, split, group = video.get("path"), video.get("split") or "", video.get("group")
    if not file or not isinstance(file, str) or not isinstance(split, str):
      raise AnnotationError(f"{where}: expected text as path and split, got {video!r:.200}")
    labels = video.get("labels", video.get("label"))
    if multi_label and is_table(path) and labels is not None:
      labels = [label for label in re.split(r"\s*[|;]\s*", labels) if label]
    yield Row(file, _labels(labels, where), where, split, "" if group is None else str(group))


def _labels(value, where: str) -> tuple[str, ...] | None:
  if value is None or value == "":
    return None
  labels = value if isinstance(value, list) else [value]
  for label in labels:
    if not isinstance(label, str | int) or isinstance(label, bool) or label == "":
      raise AnnotationError(f"{where}: label {label!r:.200}; expected a name, a number or a list")
  return tuple(str(label).strip() for label in labels)


def has_class_folders(tree: FileTree) -> bool:
  """Returns whether videos are in two or more class folders."""
  splits = _split_folders(tree)
  folders = {_class_folder(path, splits) for path in tree.videos} - {None}
  return sum(split_called(os.path.basename(folder)) is None for folder in folders) > 1


def _split_folders(tree: FileTree) -> Mapping[str, str]:
  """Returns the splits by the names of the outermost folders, if these contain class folders."""
  outermost = {path.split("/")[0] for path in tree.videos if path.count("/") > 1}
  return {name: split for name in sorted(outermost) if (split := split_called(name))}


def _class_folder(path: str, splits: Mapping[str, str]) -> str | None:
  """Returns the class folder that a file is in, at any depth, or None."""
  folders = path.split("/")[:-1]
  depth = 2 if splits else 1
  if len(folders) < depth or (splits and folders[0] not in splits):
    return None
  return "/".join(folders[:depth])


def _read_class_folders(tree: FileTree, options: AnnotationOptions) -> Listing:
  splits = _split_folders(tree)
  rows, strays = [], []
  for path in tree.videos:
    if folder := _class_folder(path, splits):
      label, split = os.path.basename(folder), splits.get(folder.split("/")[0], "")
      rows.append(Row(path, (label,), tree.absolute(path), split))
    else:
      strays.append(path)
  class_names = sorted({row.labels[0] for row in rows})
  # Folders beside those of splits, or folders of splits without class folders.
  unclear = [path for path in strays if splits and path.count("/") > 1]
  if not rows or unclear or (not splits and all(map(split_called, class_names))):
    raise AnnotationError(
      f"{tree.root}: no clear class folders, with {(unclear or tree.videos or ['no videos'])[0]}; "
      "expected class/video, or train/class/video and val/class/video, or files with --annotations"
    )
  other_files = [
    (tree.absolute(path), f"{suffix(path) or 'no suffix'}: not the name of a video file")
    for path in tree.others
  ]
  notes = [
    f"{len(paths):,} {what} are skipped, such as {', '.join(map(tree.absolute, paths[:3]))}"
    for what, paths in (
      ("videos in no class folder", strays),
      ("files without the suffix of a video", tree.others),
    )
    if paths
  ]
  class_names = options.class_names or class_names
  return Listing(rows, class_names, notes, options.multi_label, other_files)
