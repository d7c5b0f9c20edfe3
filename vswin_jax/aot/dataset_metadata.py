"""Data set metadata that a training plan needs, also for data sets that are not prepared."""

import dataclasses
import os
import pathlib

from vswin_jax.data import generated
from vswin_jax.data.label_names import label_names
from vswin_jax.data.motion import MOTIONS, MotionClips
from vswin_jax.data.records import DatasetError, open_records

# Training videos. Kinetics-400: the copy that mmaction2's model zoo trains on, smaller than the
# authors' list (246,534) since videos vanish. Others: the authors' lists (arXiv 1808.01340,
# 1907.06987; Something-Something V2: its web page).
_TRAINING_VIDEOS = {
  "kinetics400": 240_436,
  "kinetics600": 392_622,
  "kinetics700": 545_317,
  "something_something_v2": 168_913,
}


@dataclasses.dataclass(frozen=True)
class DatasetMetadata:
  """Metadata of the training split of a data set; `source` says where the numbers are from."""

  num_classes: int
  num_videos: int
  multi_label: bool
  source: str


def dataset_metadata(name: str, data_dir: str, split: str) -> DatasetMetadata:
  """Returns the metadata of a prepared data set or, if it has no folder, the published numbers.

  Raises:
    DatasetError: the data set is neither prepared nor known, or can't be read.
  """
  is_prepared = pathlib.Path(os.path.expanduser(data_dir), name.partition(":")[0]).is_dir()
  if not is_prepared and name in _TRAINING_VIDEOS:
    num_classes = len(label_names(name))
    return DatasetMetadata(num_classes, _TRAINING_VIDEOS[name], False, "published number")
  if not is_prepared and name == MotionClips.name:
    return DatasetMetadata(len(MOTIONS), MotionClips.NUM_CLIPS["train"], False, "generated clips")
  try:
    records = open_records(name, data_dir, split)
  except DatasetError as error:
    if is_prepared:
      raise
    known = ", ".join(sorted([*_TRAINING_VIDEOS, *generated.BUILDERS]))
    raise DatasetError(
      f"{error}; compiling needs the number of classes and videos, and knows them without the data "
      f"only for {known}"
    ) from error
  return DatasetMetadata(
    len(records.class_names), len(records), records.multi_label, f"prepared in {data_dir}"
  )
