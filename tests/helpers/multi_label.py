"""A small data set whose videos show any number of classes, for tests."""

import pathlib

import numpy as np
import tensorflow_datasets as tfds

from vswin_jax.data.motion import MOTIONS, make_record
from vswin_jax.data.records import VideoRecords, features

# Those of a data set of videos with one label, so that only the kind of labels tells them apart.
CLASSES = tuple(MOTIONS)
# Labels of the videos of each split by the number in their name: none, one or several.
LABELS = {
  split: [tuple(map(int, np.flatnonzero(row))) for row in rows]
  for split, rows in (
    ("train", np.random.default_rng(0).random((16, 6)) < 0.3),
    ("validation", np.random.default_rng(1).random((11, 6)) < 0.3),
  )
}
NAME = "several_labels"


class SeveralLabels(tfds.core.GeneratorBasedBuilder):
  """16 and 11 videos of 16 frames of 48 x 48."""

  VERSION = tfds.core.Version("1.0.0")

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(builder=self, features=features(list(CLASSES), multi_label=True))

  def _split_generators(self, dl_manager):
    del dl_manager
    return {split: self._generate_examples(split) for split in LABELS}

  def _generate_examples(self, split: str):
    for number, labels in enumerate(LABELS[split]):
      video = make_record((list(LABELS).index(split), number))
      yield number, video | {"label": list(labels)}


def labels_of(records: VideoRecords, index: int, split: str) -> tuple[int, ...]:
  """The labels that were given to a record, told by its name."""
  return LABELS[split][int(records.video_id(index)[-5:])]


def prepare(folder: pathlib.Path) -> None:
  """Makes the data set `NAME` in a folder of data sets."""
  SeveralLabels(data_dir=folder, file_format="array_record").download_and_prepare()
