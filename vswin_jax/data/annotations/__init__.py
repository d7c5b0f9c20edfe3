"""Annotation files of data sets, read into lists of videos, labels and splits."""

import functools
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence

from vswin_jax import checks
from vswin_jax.data.annotations import hmdb51, kinetics, something_something, ucf101, video_folder
from vswin_jax.data.annotations.common import AnnotationError, Annotations, Options, Video
from vswin_jax.local_files import local_path

__all__ = ["DATASETS", "AnnotationError", "Annotations", "Options", "Video", "read_annotations"]

Reader = Callable[[pathlib.Path, Sequence[str], Options], Annotations]
_MODULES = {
  "kinetics400": kinetics,
  "kinetics600": kinetics,
  "kinetics700": kinetics,
  "something_something_v2": something_something,
  "ucf101": ucf101,
  "hmdb51": hmdb51,
  "video_folder": video_folder,
}
# A data set is a file with `read` and a line above.
DATASETS: Mapping[str, Reader] = {
  name: functools.partial(module.read, name) for name, module in _MODULES.items()
}


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
      the folder of videos and its parent.
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
  path = pathlib.Path(os.path.abspath(local_path(videos)))
  if not path.is_dir():
    raise AnnotationError(f"{path}: no such folder; expected the folder that holds the videos")
  return DATASETS[dataset](path, annotations, options)
