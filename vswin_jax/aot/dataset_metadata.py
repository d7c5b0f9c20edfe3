"""What a plan needs to know of a data set, also of those that are not at hand."""

import dataclasses
import os
import pathlib

from vswin_jax.data import generated
from vswin_jax.data.label_names import label_names
from vswin_jax.data.motion import MOTIONS, MotionClips
from vswin_jax.data.records import DatasetError, open_records

# Training videos: of Kinetics-400 in the copy that mmaction2's model zoo trains on, smaller than
# the authors' list (246,534) since videos vanish; of the others in their authors' lists (arXiv
# 1808.01340, 1907.06987), of Something-Something V2 on its own page.
_TRAINING_VIDEOS = {
  "kinetics400": 240_436,
  "kinetics600": 392_622,
  "kinetics700": 545_317,
  "something_something_v2": 168_913,
}


@dataclasses.dataclass(frozen=True)
class DatasetMetadata:
  """Attributes:
  source: where the numbers are from, in words.
  """

  num_classes: int
  num_videos: int
  multi_label: bool
  source: str


def dataset_metadata(name: str, data_dir: str, split: str) -> DatasetMetadata:
  """The metadata of a prepared data set or, where it has no folder, the published ones.

  Raises:
    DatasetError: the data set is neither at hand nor known, or can't be read.
  """
  is_here = pathlib.Path(os.path.expanduser(data_dir), name.partition(":")[0]).is_dir()
  known = _known(name)
  if known and not is_here:
    return known
  try:
    records = open_records(name, data_dir, split)
  except DatasetError as error:
    if is_here:
      raise
    raise DatasetError(
      f"{error}; compiling needs to know its classes and videos, and knows without the data only "
      f"{', '.join(sorted([*_TRAINING_VIDEOS, *generated.BUILDERS]))}"
    ) from error
  return DatasetMetadata(
    len(records.class_names), len(records), records.multi_label, f"the data set in {data_dir}"
  )


def _known(name: str) -> DatasetMetadata | None:
  if name == MotionClips.name:
    videos = MotionClips.NUM_CLIPS["train"]
    return DatasetMetadata(len(MOTIONS), videos, False, "as the library makes it")
  if name not in _TRAINING_VIDEOS:
    return None
  return DatasetMetadata(len(label_names(name)), _TRAINING_VIDEOS[name], False, "published numbers")
