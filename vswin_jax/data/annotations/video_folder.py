"""A user's own videos: in class folders, or listed in CSV, JSON and text files."""

import dataclasses
import re
from collections.abc import Iterator

from vswin_jax.data.annotations.common import AnnotationError, AnnotationOptions, split_called
from vswin_jax.data.annotations.file_tree import FileTree
from vswin_jax.data.annotations.rows import Files, Listing, Row, collect_rows, list_rows
from vswin_jax.data.annotations.text_files import is_table, read_objects, read_table, suffix

# Larger numbers are dates and the like, not class indices.
_MAX_CLASSES = 100_000


def read_listing(files: Files, options: AnnotationOptions) -> Listing:
  """Reads the videos that files list.

  Labels are class indices if all of them are numbers, else class names. Class names are sorted
  unless the options give them.
  """
  rows, notes = collect_rows(files, lambda path: _rows(path, options.multi_label))
  labels = {label for row in rows for label in row.labels}
  if not labels:
    raise AnnotationError(f"{rows[0].where}: neither this video nor any other has a label")
  class_names = options.class_names or sorted(labels)
  as_label = str
  if all(re.fullmatch(r"-?[0-9]{1,18}", label) for label in labels):
    as_label = int
    num_classes = min(max(0, *map(int, labels)) + 1, _MAX_CLASSES)
    class_names = options.class_names or [str(index) for index in range(num_classes)]
  rows = [dataclasses.replace(row, labels=tuple(map(as_label, row.labels))) for row in rows]
  multi_label = options.multi_label or any(len(set(row.labels)) > 1 for row in rows)
  return Listing(rows, class_names, notes, multi_label)


def _rows(path: str, multi_label: bool) -> Iterator[Row]:
  if suffix(path) == ".json":
    videos = read_objects(path)
  elif is_table(path):
    videos = read_table(path, ("path", "label"))
  else:
    yield from list_rows(path, str)
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
  rows, _ = _class_folder_rows(tree)
  return len({(row.split, row.labels) for row in rows if not split_called(row.labels[0])}) > 1


def _class_folder_rows(tree: FileTree) -> tuple[list[Row], list[str]]:
  """Returns rows of the videos in `class/` or `split/class/`, at any depth, and other videos."""
  outermost = {path.split("/")[0] for path in tree.videos if path.count("/") > 1}
  splits = {folder: split for folder in outermost if (split := split_called(folder))}
  rows, strays = [], []
  for path in tree.videos:
    *folders, _ = path.split("/")
    split = splits.get(folders.pop(0)) if splits and folders else ""
    if folders and split is not None:
      rows.append(Row(path, (folders[0],), tree.absolute(path), split))
    else:
      strays.append(path)
  return rows, strays


def read_class_folders(tree: FileTree, options: AnnotationOptions) -> Listing:
  """Reads videos in `class/` or `split/class/`; other files are skipped, and named in notes."""
  rows, strays = _class_folder_rows(tree)
  class_names = sorted({row.labels[0] for row in rows})
  has_splits = any(row.split for row in rows)
  # Folders beside those of splits, or folders of splits without class folders.
  unclear = [path for path in strays if path.count("/") > 1]
  if not rows or unclear or (not has_splits and all(map(split_called, class_names))):
    raise AnnotationError(
      f"{tree.root}: no clear class folders, with {(unclear or tree.videos or ['no videos'])[0]}; "
      "expected class/video, or train/class/video and val/class/video, or files with --annotations"
    )
  others = list(map(tree.absolute, tree.others))
  notes = [
    f"{len(paths):,} {what} are skipped, such as {', '.join(paths[:3])}"
    for what, paths in (
      ("videos in no class folder", list(map(tree.absolute, strays))),
      ("files without the suffix of a video", others),
    )
    if paths
  ]
  other_files = [(path, "not the suffix of a video file") for path in others]
  class_names = options.class_names or class_names
  return Listing(rows, class_names, notes, options.multi_label, other_files)
