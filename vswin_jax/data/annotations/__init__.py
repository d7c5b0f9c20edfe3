"""Annotation files of data sets, read into lists of videos, labels and splits."""

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
from vswin_jax.data.annotations.common import AnnotationError, Annotations, Options, Video
from vswin_jax.data.annotations.sources import telling_origin
from vswin_jax.data.annotations.text_files import read_lines
from vswin_jax.data.annotations.tree import scan

__all__ = [
  "DATASETS",
  "AnnotationError",
  "Annotations",
  "Options",
  "Video",
  "default_name",
  "read_annotations",
  "read_class_names",
]

# A data set is a module with `find` and `read`, and a line here.
DATASETS: Mapping[str, ModuleType] = {
  "kinetics400": kinetics,
  "kinetics600": kinetics,
  "kinetics700": kinetics,
  "something_something_v2": something_something,
  "ucf101": ucf101,
  "hmdb51": hmdb51,
  "video_folder": video_folder,
}
_WITH_SPLIT_NUMBERS = ("hmdb51", "ucf101")


def read_annotations(
  dataset: str,
  videos: str | os.PathLike,
  annotations: Sequence[str] = (),
  options: Options | None = None,
) -> Annotations:
  """Which videos a data set has, with their labels and splits; no video is opened.

  Args:
    dataset: a key of `DATASETS`.
    videos: the folder of videos.
    annotations: files, folders that hold them, and `SPLIT=FILE` with a SPLIT of train, validation
      or test; the split of other files follows from their names. None: the files are looked for in
      the folder of videos and its parent; in the parent of class folders they are not.
    options: None: the defaults.

  Raises:
    AnnotationError: no such folder or files, or something in them that can't be used.
    ValueError: an unknown data set, a choice that does not fit it.
  """
  options = options or Options()
  checks.check_choices(DATASETS, dataset=dataset)
  if dataset != "video_folder":
    for name in ("class_names", "multi_label"):
      if getattr(options, name):
        raise ValueError(f"{name} can't be chosen for {dataset}, only for video_folder")
  tree = scan(os.path.abspath(local_path(videos)))
  sources = DATASETS[dataset].find(tree, annotations)
  with telling_origin(sources):
    return DATASETS[dataset].read(dataset, tree, sources, options)


def default_name(dataset: str, options: Options) -> str:
  """What a prepared data set is called if nobody chooses: "ucf101_split1", "kinetics400"."""
  if dataset in _WITH_SPLIT_NUMBERS:
    return f"{dataset}_split{options.split_number}"
  return dataset


def read_class_names(path: str | os.PathLike) -> tuple[str, ...]:
  """Names of classes by index, from a UTF-8 text file of one a line.

  Raises:
    AnnotationError: no such file, no UTF-8, no names, a blank line between names.
  """
  path = str(local_path(path))
  names = []
  for number, name in read_lines(path):
    if number != len(names) + 1:
      raise AnnotationError(
        f"{path}, line {len(names) + 1}: blank; expected the name of a class in every line"
      )
    names.append(name)
  if not names:
    raise AnnotationError(f"{path}: it is empty; expected the name of a class in every line")
  return tuple(names)
