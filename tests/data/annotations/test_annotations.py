"""Parts shared by all data sets: options, split names, class names, the summary."""

import pytest

from tests.data.annotations.trees import touch, write
from vswin_jax.data.annotations import (
  DATASETS,
  AnnotationError,
  AnnotationOptions,
  default_name,
  read_annotations,
  read_class_names,
)
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
    ({"group_pattern": "abc"}, "group_pattern 'abc': expected"),
    ({"class_names": ("a", "b", "a")}, "class_names must be distinct"),
    ({"class_names": ("a", "")}, "class_names must be distinct, non-empty names"),
    ({"class_names": ()}, "class_names must be distinct, non-empty names"),
  ],
)
def test_invalid_options(options, error):
  with pytest.raises(ValueError, match=error):
    AnnotationOptions(**options)


def test_options_of_video_folder_only(tmp_path):
  with pytest.raises(ValueError, match="class_names can't be chosen for ucf101"):
    read_annotations("ucf101", tmp_path, options=AnnotationOptions(class_names=("a",)))
  with pytest.raises(ValueError, match="group_pattern can't be chosen for hmdb51"):
    read_annotations("hmdb51", tmp_path, options=AnnotationOptions(group_pattern="(a)"))
  with pytest.raises(ValueError, match="multi_label can't be chosen for kinetics400"):
    read_annotations("kinetics400", tmp_path, options=AnnotationOptions(multi_label=True))


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


@pytest.mark.parametrize("dataset", DATASETS)
def test_default_names(dataset):
  name = default_name(dataset, AnnotationOptions(split_number=2))
  assert name == {"ucf101": "ucf101_split2", "hmdb51": "hmdb51_split2"}.get(dataset, dataset)


def test_names_of_classes(tmp_path):
  path = write(tmp_path / "names.txt", b"\xef\xbb\xbfrun \r\nsit d\xc3\xb6wn\r\n\r\n\n")
  assert read_class_names(path) == read_class_names(tmp_path / "names.txt") == ("run", "sit döwn")


@pytest.mark.parametrize(
  ("text", "error"),
  [
    ("a\n\nb\n", "names.txt, line 2: blank; expected a class name in every line"),
    ("\na\n", "names.txt, line 1: blank"),
    ("\n", "names.txt, line 1: blank"),
    (b"a\n\xff\n", "names.txt, line 2: not UTF-8"),
    (None, "names.txt: No such file or directory; expected a text file"),
  ],
)
def test_names_of_classes_that_are_unclear(tmp_path, text, error):
  if text is not None:
    write(tmp_path / "names.txt", text)
  with pytest.raises(AnnotationError, match=error):
    read_class_names(tmp_path / "names.txt")


@pytest.mark.parametrize(
  ("dataset", "files"),
  [
    ("kinetics400", {"train.csv": "a,b\n"}),
    ("something_something_v2", {"train.json": "{}"}),
    ("ucf101", {"classInd.txt": "2 A\n", "trainlist01.txt": "A/a.avi 1\n"}),
    ("hmdb51", {"run_test_split1.txt": "a.avi\n"}),
    ("video_folder", {"train.csv": "a,b,c\n"}),
  ],
)
def test_errors_in_files_found_automatically_name_the_option(tmp_path, dataset, files):
  paths = [write(tmp_path / name, text) for name, text in files.items()]
  videos = touch(tmp_path / "videos", "a.mp4").parent / "videos"
  hint = rf"\(annotation files found in {tmp_path}; to read others, name them with --annotations\)"
  with pytest.raises(AnnotationError, match=hint) as caught:
    read_annotations(dataset, videos)
  assert "\n" not in str(caught.value)
  for given in (paths, [str(tmp_path)]):
    with pytest.raises(AnnotationError, match=paths[0]) as caught:
      read_annotations(dataset, videos, given)
    assert "found in" not in str(caught.value)


def test_a_file_for_two_splits(tmp_path):
  touch(tmp_path, "a.mp4")
  file = write(tmp_path / "list.csv", "path,label\na.mp4,run\n")
  with pytest.raises(AnnotationError, match="different labels or splits of a"):
    read_annotations("video_folder", tmp_path, [f"validation={file}", f"test={file}"])
