"""Kinetics: small releases in the published layouts."""

import pytest

from tests.data.annotations.trees import files_of, labels_of, touch, write
from vswin_jax.data.annotations import AnnotationError, read_annotations
from vswin_jax.data.label_names import label_names

HEADER = "label,youtube_id,time_start,time_end,split,is_cc\n"
TRAIN = HEADER + (
  "yoga,aaaaaaaaaaa,10,20,train,0\n"
  '"abseiling",-bbbb_bbb-b,0.0,10.0,train,1\n'
  '"passing American football (in game)",ccccccccccc,183,193,train,0\n'
)
VALIDATION = HEADER + "yoga,ddddddddddd,7,17,validate,0\n"
NAMES = (
  "aaaaaaaaaaa_000010_000020",
  "-bbbb_bbb-b_000000_000010",
  "ccccccccccc_000183_000193",
  "ddddddddddd_000007_000017",
)
LABELS = {
  "train": {NAMES[0]: (2,), NAMES[1]: (0,), NAMES[2]: (1,)},
  "validation": {NAMES[3]: (2,)},
}


@pytest.mark.parametrize(
  "files",
  [
    tuple(f"{name}.mp4" for name in NAMES),
    (f"{NAMES[0]}.mkv", f"{NAMES[1]}.webm", f"{NAMES[2]}.MP4", f"{NAMES[3]}.avi"),
    (
      f"yoga/{NAMES[0]}.mp4",
      f"abseiling/{NAMES[1]}.mp4",
      f"passing American football (in game)/{NAMES[2]}.mp4",
      f"yoga/{NAMES[3]}.mp4",
    ),
    (
      f"videos_train/yoga/{NAMES[0]}.mp4",
      f"videos_train/abseiling/{NAMES[1]}.mp4",
      f"videos_train/passing_American_football_(in_game)/{NAMES[2]}.mp4",
      f"videos_val/yoga/{NAMES[3]}.mp4",
    ),
    (*(f"train/{name}.mp4" for name in NAMES[:3]), f"val/{NAMES[3]}.mp4"),
  ],
)
def test_videos_are_found_in_every_layout(tmp_path, files):
  videos = touch(tmp_path / "videos", *files)
  write(tmp_path / "train.csv", TRAIN)
  write(tmp_path / "validate.csv", VALIDATION)
  annotations = read_annotations("kinetics400", videos)
  assert labels_of(annotations) == LABELS
  assert list(annotations.splits) == ["train", "validation"]
  assert files_of(annotations, videos) == dict(zip(NAMES, files))
  assert annotations.class_names == ("abseiling", "passing American football (in game)", "yoga")
  assert not annotations.multi_label
  assert any("3 classes are not the 400" in note for note in annotations.notes)


def test_a_file_of_several_splits_is_not_found_by_itself(tmp_path):
  touch(tmp_path, *(f"{name}.mp4" for name in NAMES))
  write(tmp_path / "train.csv", TRAIN)
  write(tmp_path / "train_val.csv", TRAIN)
  annotations = read_annotations("kinetics400", tmp_path)
  assert {len(videos) for videos in annotations.splits.values()} == {3}


def test_a_clip_comes_from_the_folder_of_its_split(tmp_path):
  videos = touch(tmp_path, *(f"{split}/{NAMES[3]}.mp4" for split in ("test", "train", "val")))
  write(tmp_path / "train.csv", TRAIN)
  write(tmp_path / "val.csv", VALIDATION)
  annotations = read_annotations("kinetics600", videos)
  assert files_of(annotations, videos)[NAMES[3]] == f"val/{NAMES[3]}.mp4"


def test_a_whole_video_is_not_a_clip_of_it(tmp_path):
  write(
    tmp_path / "train.csv",
    HEADER + "yoga,aaaaaaaaaaa,10,20,train,0\nyoga,aaaaaaaaaaa,40,50,train,0\n",
  )
  videos = touch(tmp_path, "aaaaaaaaaaa.mp4", "aaaaaaaaaaa_000040_000050.mp4")
  assert files_of(read_annotations("kinetics700", videos), videos) == {
    "aaaaaaaaaaa_000010_000020": None,
    "aaaaaaaaaaa_000040_000050": "aaaaaaaaaaa_000040_000050.mp4",
  }


def test_missing_videos_are_counted_and_named(tmp_path):
  touch(tmp_path, f"{NAMES[0]}.mp4")
  write(tmp_path / "annotations/train.csv", TRAIN)
  annotations = read_annotations("kinetics400", tmp_path)
  missing = next(video for video in annotations.splits["train"] if video.id == NAMES[1])
  assert missing.path == f"{tmp_path}/{NAMES[1]}.mp4"
  assert not missing.exists
  assert any("2 of 3 videos of train not found" in note for note in annotations.notes)


@pytest.mark.parametrize("dataset", ["kinetics400", "kinetics600", "kinetics700"])
@pytest.mark.parametrize("spelling", [str, lambda name: name.replace(" ", "_"), '"""{}"""'.format])
def test_classes_of_a_release_have_the_indices_of_released_models(tmp_path, dataset, spelling):
  shipped = label_names(dataset)
  # As the models' authors have them: sorted after this replacement.
  assert list(shipped) == sorted(shipped, key=lambda name: name.replace(" ", "_"))
  rows = [f"{index:011d},{spelling(name)},1,2\n" for index, name in enumerate(shipped)]
  write(tmp_path / "train.csv", "youtube_id,label,time_start,time_end\n" + "".join(rows[::-1]))
  annotations = read_annotations(dataset, tmp_path)
  assert annotations.class_names == shipped
  assert labels_of(annotations)["train"] == {
    f"{index:011d}_000001_000002": (index,) for index in range(len(shipped))
  }
  assert not any("classes are not" in note for note in annotations.notes)


def test_validation_alone_has_the_classes_of_the_release(tmp_path):
  write(tmp_path / "val.csv", VALIDATION)
  annotations = read_annotations("kinetics400", tmp_path)
  assert annotations.class_names == label_names("kinetics400")
  assert labels_of(annotations) == {"validation": {NAMES[3]: (398,)}}
  assert annotations.class_names[398] == "yoga"


def test_test_videos_without_labels_are_left_out(tmp_path):
  train = write(tmp_path / "train.csv", TRAIN)
  bare = "youtube_id,time_start,time_end,split\neeeeeeeeeee,1,11,test\n"
  test = write(tmp_path / "test.csv", bare)
  annotations = read_annotations("kinetics400", tmp_path, [train, test])
  assert list(annotations.splits) == ["train"]
  assert f"{test}: 1 videos without labels are skipped" in annotations.notes
  write(tmp_path / "test.csv", HEADER + "yoga,e,1,11,test,0\n,f,1,11,test,0\n")
  annotations = read_annotations("kinetics400", tmp_path, [train, test])
  assert labels_of(annotations)["test"] == {"e_000001_000011": (2,)}
  assert f"{test}: 1 videos without labels are skipped" in annotations.notes


def test_windows_files_are_read(tmp_path):
  write(tmp_path / "train.csv", b"\xef\xbb\xbf" + TRAIN.replace("\n", "\r\n").encode())
  assert labels_of(read_annotations("kinetics400", tmp_path)) == {"train": LABELS["train"]}


def test_one_file_of_all_splits(tmp_path):
  path = write(tmp_path / "kinetics.csv", TRAIN + VALIDATION.removeprefix(HEADER))
  assert labels_of(read_annotations("kinetics400", tmp_path, [path])) == LABELS
  # What the user says counts more than what the file says.
  annotations = read_annotations("kinetics400", tmp_path, [f"test={path}"])
  assert list(annotations.splits) == ["test"]


def test_lists_of_paths_and_numbers(tmp_path):
  videos = touch(
    tmp_path,
    f"videos_train/yoga/{NAMES[0]}.mp4",
    f"videos_val/{NAMES[3]}.mkv",
    f"videos_train/passing football/{NAMES[2]}.mp4",
  )
  write(
    tmp_path / "kinetics400_train_list_videos.txt",
    f"yoga/{NAMES[0]}.mp4 398\npassing football/{NAMES[2]}.mp4 209\nabseiling/{NAMES[1]}.mp4 0\n",
  )
  write(tmp_path / "kinetics400_val_list_videos.txt", f"videos_val/{NAMES[3]}.mp4 398\n")
  annotations = read_annotations("kinetics400", videos)
  assert annotations.class_names == label_names("kinetics400")
  assert labels_of(annotations) == {
    "train": {
      f"videos_train/yoga/{NAMES[0]}": (398,),
      f"videos_train/passing football/{NAMES[2]}": (209,),
      f"abseiling/{NAMES[1]}": (0,),
    },
    "validation": {f"videos_val/{NAMES[3]}": (398,)},
  }
  assert files_of(annotations, videos)[f"videos_val/{NAMES[3]}"] == f"videos_val/{NAMES[3]}.mkv"
  missing = next(video for video in annotations.splits["train"] if not video.exists)
  assert missing.path == f"{tmp_path}/abseiling/{NAMES[1]}.mp4"


@pytest.mark.parametrize(
  ("name", "text", "error"),
  [
    ("train.csv", "", "it lists no videos"),
    ("train.csv", HEADER, "it lists no videos"),
    (
      "train.csv",
      "label,id\nyoga,a\n",
      "line 1: expected the columns youtube_id,time_start",
    ),
    ("val.csv", "youtube_id,time_start,time_end\na,1,2\n", "line 2: no label of 'a_000001_000002"),
    ("train.csv", TRAIN + "yoga,e,1\n", "line 5: expected 6 columns"),
    (
      "train.csv",
      TRAIN + "yoga,e,1,x,train,0\n",
      "line 5: expected .* times .*'1' and 'x'",
    ),
    (
      "train.csv",
      TRAIN + "yoga,e,-1,2,train,0\n",
      "line 5: expected .* times .*'-1' and",
    ),
    (
      "train.csv",
      TRAIN + "yoga,e,1,nan,train,0\n",
      "line 5: expected .* times .* 'nan'",
    ),
    ("train.csv", TRAIN + "yoga,,1,2,train,0\n", "line 5: expected a youtube_id"),
    ("train.csv", TRAIN + ",e,1,2,train,0\n", "line 5: no label of"),
    ("train.csv", TRAIN + "yoga,e,1,2,hidden,0\n", "line 5: unknown split 'hidden'"),
    ("train.csv", TRAIN + '"yoga,e,1,2,train,0\n', "line 5: not valid CSV"),
    ("train.csv", TRAIN.encode() + b"\xff,e,1,2,train,0\n", "line 5: not UTF-8"),
    ("train.csv", TRAIN + "yogo,e,1,2,val,0\n", "line 5: .*'yogo'; did you mean 'yoga'"),
    ("val.csv", TRAIN + "yogo,e,1,2,val,0\n", "line 5: .*'yogo'; did you mean 'yoga'"),
    ("train.txt", "a.mp4 400\n", "line 1: label '400'; expected a number from 0 to 399"),
    ("train.txt", "a.mp4 -1\n", "line 1: label '-1'; expected a number from 0 to 399"),
    ("train.txt", "a.mp4 yogo\n", "line 1: unknown label 'yogo'; did you mean 'yoga'"),
    ("train.txt", "a.mp4 1\n\nb.mp4 1 2\n", "line 3: expected one label of 'b.mp4', got 2"),
    ("train.txt", "a.mp4 1\nb\n", "line 2: expected `path label`, got 'b'"),
    ("train.txt", "a.mp4\n", "line 1: no label of 'a.mp4'"),
    ("train.txt", "a 300 1\n", "line 1: 'a 300 1' looks like a folder of frames"),
  ],
)
def test_errors_name_file_and_line(tmp_path, name, text, error):
  path = write(tmp_path / name, text)
  with pytest.raises(AnnotationError, match=error) as caught:
    read_annotations("kinetics400", tmp_path)
  assert path in str(caught.value)
  assert "\n" not in str(caught.value)


def test_a_validation_label_must_occur_in_training(tmp_path):
  write(tmp_path / "train.csv", TRAIN)
  write(tmp_path / "val.csv", HEADER + "zumba,e,1,2,val,0\n")
  with pytest.raises(AnnotationError, match=r"val.csv, line 2: unknown label 'zumba'; known"):
    read_annotations("kinetics400", tmp_path)


def test_clips_that_contradict_each_other_are_left_out(tmp_path):
  again = TRAIN + "abseiling,aaaaaaaaaaa,10,20,train,0\nyoga,aaaaaaaaaaa,10,20,train,0\n"
  train = write(tmp_path / "train.csv", again)
  validation = write(
    tmp_path / "val.csv", VALIDATION + "abseiling,-bbbb_bbb-b,0,10,val,0\nyoga,e,1,2,val,0\n"
  )
  videos = touch(tmp_path / "videos", f"train/{NAMES[1]}.mp4", f"val/{NAMES[1]}.mp4")
  annotations = read_annotations("kinetics400", videos, [str(tmp_path)])
  assert labels_of(annotations) == {
    "train": {NAMES[2]: (1,)},
    "validation": {NAMES[3]: (2,), "e_000001_000002": (2,)},
  }
  labels = f"{train}, line 2 and {train}, line 5: different labels or splits of {NAMES[0]}"
  splits = f"{train}, line 3 and {validation}, line 3: different labels or splits of {NAMES[1]}"
  assert annotations.problems == (
    (f"{videos}/{NAMES[0]}.mp4", labels),
    (f"{videos}/train/{NAMES[1]}.mp4", splits),
  )
  note = f"2 videos with contradictory rows are skipped: {labels}"
  assert note in annotations.notes


def test_every_clip_in_two_splits(tmp_path):
  train = write(tmp_path / "train.csv", TRAIN)
  validation = write(tmp_path / "val.csv", TRAIN.replace(",train,", ",val,"))
  error = rf"{train}, line 2 and {validation}, line 2: .*{NAMES[0]}"
  with pytest.raises(AnnotationError, match=error):
    read_annotations("kinetics400", tmp_path)
  # It is one clip even where there are two copies of it.
  touch(tmp_path, *(f"{split}/{name}.mp4" for split in ("train", "val") for name in NAMES))
  with pytest.raises(AnnotationError, match=error):
    read_annotations("kinetics400", tmp_path)


def test_lists_beside_tables_have_the_classes_of_the_release(tmp_path):
  write(tmp_path / "train.csv", TRAIN)
  write(tmp_path / "val.txt", "a.mp4 1\n")
  annotations = read_annotations("kinetics400", tmp_path)
  names = annotations.class_names
  assert names == label_names("kinetics400")
  labels = ("yoga", "abseiling", "passing American football (in game)")
  assert labels_of(annotations) == {
    "train": {name: (names.index(label),) for name, label in zip(NAMES, labels)},
    "validation": {"a": (1,)},
  }


def test_two_files_of_a_split(tmp_path):
  paths = [write(tmp_path / f"{name}_train.txt", f"{name}.mp4 1\n") for name in "ab"]
  with pytest.raises(AnnotationError, match=r"two annotation files of train: .*SPLIT=FILE"):
    read_annotations("kinetics400", tmp_path)
  named = read_annotations("kinetics400", tmp_path, [f"train={path}" for path in paths])
  assert labels_of(named) == {"train": {"a": (1,), "b": (1,)}}


def test_nothing_found(tmp_path):
  with pytest.raises(AnnotationError, match=r"no annotation files in .*expected train\.csv"):
    read_annotations("kinetics400", touch(tmp_path, "a/b/x.mp4") / "a/b")
