"""What all data sets have in common: choices, names of splits, the summary."""

import pytest

from tests.data.annotations.trees import touch, write
from vswin_jax.data.annotations import DATASETS, AnnotationError, Options, read_annotations
from vswin_jax.data.annotations.common import split_called, split_within


def test_data_sets():
  assert set(DATASETS) == {
    "kinetics400",
    "kinetics600",
    "kinetics700",
    "something_something_v2",
    "ucf101",
    "hmdb51",
    "video_folder",
  }


@pytest.mark.parametrize(
  ("options", "error"),
  [
    ({"split_number": 4}, "unknown split_number '4'; choose one of 1, 2, 3"),
    ({"validation_share": 1.0}, "validation_share must be at least 0 and below 1"),
    ({"group_pattern": "("}, r"group_pattern '\(':"),
    ({"group_pattern": "abc"}, "group_pattern 'abc' has no group"),
    ({"class_names": ("a", "b", "a")}, "class_names hold 'a' twice"),
    ({"class_names": ("a", "")}, "class_names hold no class, or an empty name"),
    ({"class_names": ()}, "class_names hold no class, or an empty name"),
  ],
)
def test_choices_that_make_no_sense(options, error):
  with pytest.raises(ValueError, match=error):
    Options(**options)


def test_data_sets_with_classes_of_their_own(tmp_path):
  with pytest.raises(ValueError, match="class_names can't be chosen for ucf101"):
    read_annotations("ucf101", tmp_path, options=Options(class_names=("a",)))
  with pytest.raises(ValueError, match="multi_label can't be chosen for kinetics400"):
    read_annotations("kinetics400", tmp_path, options=Options(multi_label=True))


@pytest.mark.parametrize("dataset", DATASETS)
def test_no_folder_of_videos(tmp_path, dataset):
  with pytest.raises(AnnotationError, match="no such folder; expected the folder that holds"):
    read_annotations(dataset, tmp_path / "x")
  with pytest.raises(AnnotationError, match=r"'x\.csv': no such file"):
    read_annotations(dataset, tmp_path, ["x.csv"])


def test_unknown_data_set(tmp_path):
  with pytest.raises(ValueError, match="unknown dataset 'kinetics'; choose one of hmdb51"):
    read_annotations("kinetics", tmp_path)


@pytest.mark.parametrize(
  ("name", "split"),
  [
    ("train", "train"),
    ("kinetics400_train_list_videos", "train"),
    ("something-something-v2-validation", "validation"),
    ("validate", "validation"),
    ("K400 Val 2", "validation"),
    ("test1", "test"),
    ("train_val", None),
    ("training_train", "train"),
    ("constraint", None),
    ("vals", None),
    ("", None),
  ],
)
def test_splits_in_names(name, split):
  assert split_within(name) == split
  assert split_called(name) == (split if name in ("train", "validate") else None)


def test_summary(tmp_path):
  touch(tmp_path, *(f"train/{name}.mp4" for name in ("a/1", "b/1", "b/2")), "val/a/1.mp4")
  annotations = read_annotations("video_folder", tmp_path)
  assert annotations.describe() == "2 classes, 3 videos of train, 1 videos of validation"
  path = write(tmp_path / "test.txt", "a.mp4 1 2\n")
  annotations = read_annotations("video_folder", tmp_path, [path])
  assert annotations.describe() == "3 multi-label classes, 1 videos of test"
