"""Data set metadata that a training plan needs, also for data sets that are not prepared."""

import os
import pathlib

from vswin_jax.data.generated import BUILDERS
from vswin_jax.data.label_names import label_names
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


def dataset_metadata(name: str, data_dir: str, split: str) -> tuple[dict, str]:
  """Returns the metadata of a prepared data set or, if it has no folder, the published numbers.

  Returns:
    `num_classes`, `num_videos` and `multi_label` of the training split, and where they are from.

  Raises:
    DatasetError: the data set is neither prepared nor known, or can't be read.
  """
  is_prepared = pathlib.Path(os.path.expanduser(data_dir), name.partition(":")[0]).is_dir()
  multi_label = False
  if not is_prepared and name in _TRAINING_VIDEOS:
    source = "published number"
    num_classes, num_videos = len(label_names(name)), _TRAINING_VIDEOS[name]
  elif not is_prepared and name in BUILDERS:
    source = "generated clips"
    builder = BUILDERS[name](data_dir=data_dir)
    num_classes, num_videos = builder.info.features["label"].num_classes, builder.NUM_CLIPS["train"]
  else:
    source = f"prepared in {data_dir}"
    try:
      records = open_records(name, data_dir, split)
    except DatasetError as error:
      known = ", ".join([*_TRAINING_VIDEOS, *BUILDERS])
      raise DatasetError(f"{error}; without data, the sizes are known of {known}") from error
    num_classes, num_videos = len(records.class_names), len(records)
    multi_label = records.multi_label
  return {"num_classes": num_classes, "num_videos": num_videos, "multi_label": multi_label}, source
