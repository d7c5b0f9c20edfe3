"""Readers of annotation files: the videos, labels and splits of data sets."""

import itertools
import os
import re
from collections.abc import Callable, Mapping, Sequence

from vswin_jax.common import checks
from vswin_jax.common.paths import local_path
from vswin_jax.data.annotations import published, video_folder
from vswin_jax.data.annotations.annotation_files import find_annotation_files
from vswin_jax.data.annotations.assembling import assemble
from vswin_jax.data.annotations.common import (
  SPLIT_NAMES,
  AnnotationError,
  AnnotationOptions,
  Annotations,
  split_within,
)
from vswin_jax.data.annotations.file_tree import scan
from vswin_jax.data.annotations.rows import Files, Listing
from vswin_jax.data.annotations.text_files import read_text

_SPLIT = f"({'|'.join(itertools.chain(*SPLIT_NAMES.values()))})"
_WITH_SPLIT = f"(.*[^a-z])?{_SPLIT}([^a-z].*)?"
_KINETICS = (
  "train.csv and val.csv with youtube_id,time_start,time_end,label, or lists of `path label`",
  rf"{_WITH_SPLIT}\.(csv|txt)",
  published.read_kinetics,
)
# By data set: some annotation files, for messages; a pattern of the names of all, in any case; and
# their reader. `{number}` stands for the official split.
DATASETS: Mapping[str, tuple[str, str, Callable[[Files, str], Listing] | None]] = {
  "kinetics400": _KINETICS,
  "kinetics600": _KINETICS,
  "kinetics700": _KINETICS,
  "something_something_v2": (
    "labels.json, train.json and validation.json, or lists of `path label`",
    rf".*labels.*\.json|{_WITH_SPLIT}\.(json|txt)",
    published.read_something_something,
  ),
  "ucf101": (
    "classInd.txt, trainlist0{number}.txt and testlist0{number}.txt",
    r"classind\.txt|(train|test)list0?{number}\.txt",
    published.read_ucf101,
  ),
  "hmdb51": (
    "brush_hair_test_split{number}.txt and the like",
    r".+_test_split{number}\.txt",
    published.read_hmdb51,
  ),
  "video_folder": ("", rf"(annotations|{_SPLIT})\.(csv|tsv|json|txt)", None),
}
_WITH_SPLIT_NUMBER = ("ucf101", "hmdb51")


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
  folders = [tree.root, os.path.dirname(tree.root)]
  if dataset == "video_folder" and video_folder.has_class_folders(tree):
    folders.pop()
  expected, names, read = DATASETS[dataset]
  number = str(options.split_number)
  expected, names = (text.replace("{number}", number) for text in (expected, names))

  def is_annotation_file(name: str) -> bool:
    # Files of several splits have to be named.
    unclear = re.search(rf"(?<![a-z]){_SPLIT}(?![a-z])", name, re.I) and not split_within(name)
    return bool(re.fullmatch(names, name, re.I)) and not unclear

  files = find_annotation_files(annotations, folders, is_annotation_file)
  if dataset in _WITH_SPLIT_NUMBER:
    files = [file for file in files if is_annotation_file(os.path.basename(file[0]))]
  if expected and not files:
    raise AnnotationError(
      f"{dataset}: no annotation files in {tree.root} or its parent; expected {expected}; name "
      "them with --annotations"
    )
  try:
    if read:
      listing = read(files, dataset)
    elif files:
      listing = video_folder.read_listing(files, options)
    else:
      listing = video_folder.read_class_folders(tree, options)
    return assemble(tree, listing, options)
  except AnnotationError as error:
    if annotations or not files:
      raise
    raise AnnotationError(
      f"{error} (annotation files found in {os.path.dirname(files[0][0])}; to read others, name "
      "them with --annotations)"
    ) from error


def default_name(dataset: str, options: AnnotationOptions) -> str:
  """Returns the default name of a prepared data set, such as "kinetics400" or "ucf101_split1"."""
  return f"{dataset}_split{options.split_number}" if dataset in _WITH_SPLIT_NUMBER else dataset


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
