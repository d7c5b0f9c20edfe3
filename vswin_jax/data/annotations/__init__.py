"""Readers of annotation files: the videos, labels and splits of data sets."""

import os
from collections.abc import Mapping, Sequence
from types import ModuleType

from vswin_jax.common import checks
from vswin_jax.common.paths import local_path
from vswin_jax.data.annotations import (
  hmdb51,
  kinetics,
  something_something,
  ucf101,
  video_folder,
)
from vswin_jax.data.annotations.annotation_files import find_annotation_files
from vswin_jax.data.annotations.assembling import assemble
from vswin_jax.data.annotations.common import (
  AnnotationError,
  AnnotationOptions,
  Annotations,
  Video,
)
from vswin_jax.data.annotations.file_tree import scan
from vswin_jax.data.annotations.text_files import read_text

__all__ = [
  "DATASETS",
  "AnnotationError",
  "AnnotationOptions",
  "Annotations",
  "Video",
  "default_name",
  "read_annotations",
  "read_class_names",
]

# Each module has functions `is_annotation_file` and `read`.
DATASETS: Mapping[str, ModuleType] = {
  "kinetics400": kinetics,
  "kinetics600": kinetics,
  "kinetics700": kinetics,
  "something_something_v2": something_something,
  "ucf101": ucf101,
  "hmdb51": hmdb51,
  "video_folder": video_folder,
}


def read_annotations(
  dataset: str,
  videos: str | os.PathLike,
  annotations: Sequence[str] = (),
  options: AnnotationOptions | None = None,
) -> Annotations:
  """Returns the classes and videos of a data set; opens no video.

  Args:
    dataset: a key of `DATASETS`.
    videos: the folder of videos.
    annotations: files, folders that hold them, and `SPLIT=FILE` with a SPLIT of train, validation
      or test; the split of other files follows from their names. If empty, the folder of videos
      and its parent are searched; the parent of class folders is not.
    options: None stands for the defaults.

  Raises:
    AnnotationError: files are missing or have unusable content.
    ValueError: the data set is unknown, or an option does not apply to it.
  """
  options = options or AnnotationOptions()
  checks.check_choices(DATASETS, dataset=dataset)
  if dataset != "video_folder":
    for name in ("class_names", "group_pattern", "multi_label"):
      if getattr(options, name):
        raise ValueError(f"{name} can't be chosen for {dataset}, only for video_folder")
  tree = scan(os.path.abspath(local_path(videos)))
  search_parent = dataset != "video_folder" or not video_folder.has_class_folders(tree)
  module = DATASETS[dataset]
  files = find_annotation_files(tree.root, annotations, module.is_annotation_file, search_parent)
  try:
    return assemble(tree, module.read(dataset, tree, files, options), options)
  except AnnotationError as error:
    if annotations or not files:
      raise
    raise AnnotationError(
      f"{error} (annotation files found in {os.path.dirname(files[0][0])}; to read others, name "
      "them with --annotations)"
    ) from error


def default_name(dataset: str, options: AnnotationOptions) -> str:
  """Returns the default name of a prepared data set, such as "kinetics400" or "ucf101_split1"."""
  if dataset in ("hmdb51", "ucf101"):
    return f"{dataset}_split{options.split_number}"
  return dataset


def read_class_names(path: str | os.PathLike) -> tuple[str, ...]:
  """Returns the class names in a UTF-8 text file, one per line in the order of class indices.

  Raises:
    AnnotationError: the file does not exist, is not UTF-8 or empty, or a line between names is
      blank.
  """
  path = str(local_path(path))
  names = [line.strip() for line in read_text(path).rstrip().split("\n")]
  if "" in names:
    number = names.index("") + 1
    raise AnnotationError(f"{path}, line {number}: blank; expected a class name in every line")
  return tuple(names)
