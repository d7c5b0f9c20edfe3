"""What is told and drawn of a data set: numbers, and a page of what training is fed."""

import collections
import subprocess
import sys

import cv2
import numpy as np
import pytest

from tests.helpers import multi_label
from vswin_jax.data import pipeline
from vswin_jax.data.clips import ClipSpec, Views
from vswin_jax.data.motion import make_record
from vswin_jax.data.records import VideoRecords
from vswin_jax.experiment import contact_sheet
from vswin_jax.experiment.config import Settings

SETTINGS = Settings(
  model={},
  clip=ClipSpec(num_frames=4, frame_interval=2, size=24, train_short_side=32, flip_probability=0.0),
  test=Views(num_clips=1, crops="center", short_side=28),
)


def _records(labels, class_names=("a", "b", "c"), multi_label=False) -> VideoRecords:
  """Records of the same video, made of what a data set gives."""
  video = make_record((0, 0))
  source = [
    video | {"id": f"v{number}".encode(), "label": label} for number, label in enumerate(labels)
  ]
  return VideoRecords(source, class_names, multi_label)


def test_videos_without_labels_are_counted_in_no_class():
  records = _records([np.array([0, 2]), [], np.array([2])], multi_label=True)
  found = contact_sheet.read_statistics(records)
  np.testing.assert_array_equal(found.class_counts, [1, 0, 2])
  assert len(found.seconds) == 3


@pytest.mark.parametrize(
  ("most", "read"), [(0, range(9)), (3, (0, 4, 8)), (9, range(9)), (20, range(9))]
)
def test_videos_that_are_read_are_spread_evenly(most, read):
  class_names = tuple("abcdefghi")
  records = _records(range(9), class_names)
  found = contact_sheet.read_statistics(records, most)
  np.testing.assert_array_equal(np.flatnonzero(found.class_counts), list(read))
  text = contact_sheet.describe("train", 9, found, class_names)
  assert text.startswith("train: 9 videos, 9 classes\n")
  assert ("only 3 of the videos were read" in text) == (most == 3)


def test_by_default_not_all_videos_of_a_large_split_are_read():
  help_text = subprocess.run(
    [sys.executable, "-m", "vswin_jax.inspect", "--help"], capture_output=True, text=True
  ).stdout
  lines = help_text[help_text.index("--max_videos") :].split("--output")[0]
  assert "(default: '5000')" in lines and "0: all" in " ".join(lines.split())


def test_a_clip_in_the_place_of_another_is_told():
  records = _records([0, 0, 1, 1])
  records.source[2]["video"] = b"no video"
  examples = contact_sheet.make_examples(records, SETTINGS, 4)
  order = [pipeline.epoch_and_record(place, 4, 0)[1] for place in range(4)]
  assert sorted(order) == [0, 1, 2, 3]
  for index, example in zip(order, examples):
    name = "ab"[records.source[index]["label"]]
    if index == 2:
      assert example.title.startswith("v2: can't be decoded; another video in its place: ")
      # The evaluation has nothing to show instead.
      assert example.training.std() > 0 and example.evaluation.max() == 0
    else:
      assert example.title == f"v{index}: {name}"
      assert example.training.std() > 0 and example.evaluation.std() > 0


@pytest.mark.parametrize("num_classes", [3, 30])
def test_names_are_drawn_as_they_are(tmp_path, num_classes):
  # A formula that can't be understood, if it is taken for one.
  name = r"cost $5 to \undefined{ $10"
  class_names = (name, *map(str, range(1, num_classes)))
  statistics = contact_sheet.Statistics(
    np.array([1.0, 2.0]),
    np.array([10, 20]),
    collections.Counter(),
    collections.Counter(),
    np.array([2] + (num_classes - 1) * [0]),
  )
  pictures = np.full((8, 24, 24, 3), 100, np.uint8)
  examples = [contact_sheet.Example(f"{name}: {name}", pictures, pictures[:6])]
  path = tmp_path / "page.png"
  contact_sheet.draw_contact_sheet(path, name, examples, statistics, class_names)
  drawn = cv2.imread(str(path))
  assert drawn.shape[1] > 1000
  assert (drawn == 100).all(axis=2).sum() > 1000


def test_examples_of_several_labels():
  labels = [np.array(one, int) for one in multi_label.LABELS["train"][:4]]
  records = _records(labels, multi_label.CLASSES, multi_label=True)
  order = [pipeline.epoch_and_record(place, 4, 0)[1] for place in range(4)]
  for index, example in zip(order, contact_sheet.make_examples(records, SETTINGS, 4)):
    names = [multi_label.CLASSES[label] for label in labels[index]][:3]
    assert example.title == f"v{index}: {' + '.join(names) or 'no label'}"
