"""UCF101: a release of three classes."""

import pytest

from tests.data.annotations.trees import files_of, labels_of, touch, write
from vswin_jax.data.annotations import AnnotationError, AnnotationOptions, read_annotations

FILES = {
  "classInd.txt": "1 ApplyEyeMakeup\r\n2 Archery\r\n3 YoYo\r\n",
  "trainlist01.txt": "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1\nYoYo/v_YoYo_g01_c01.avi 3\n",
  "testlist01.txt": "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi\nArchery/v_Archery_g08_c02.avi\n",
  "trainlist02.txt": "Archery/v_Archery_g08_c02.avi 2\n",
  "testlist02.txt": "YoYo/v_YoYo_g01_c01.avi\n",
}
SPLITS = {
  1: {
    "train": {"ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01": (0,), "YoYo/v_YoYo_g01_c01": (2,)},
    "validation": {
      "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01": (0,),
      "Archery/v_Archery_g08_c02": (1,),
    },
  },
  2: {
    "train": {"Archery/v_Archery_g08_c02": (1,)},
    "validation": {"YoYo/v_YoYo_g01_c01": (2,)},
  },
}


def _release(folder, **changes):
  for name, text in FILES.items():
    write(folder / name, changes.get(name.removesuffix(".txt"), text))


@pytest.mark.parametrize("split_number", [1, 2])
@pytest.mark.parametrize("folder", ["UCF-101", "", "ucfTrainTestlist", "UCF-101/annotations"])
def test_splits(tmp_path, split_number, folder):
  _release(tmp_path / folder)
  videos = touch(tmp_path / "UCF-101", "YoYo/v_YoYo_g01_c01.avi", "Archery/v_Archery_g08_c02.mp4")
  options = AnnotationOptions(split_number=split_number)
  annotations = read_annotations("ucf101", videos, options=options)
  assert annotations.class_names == ("ApplyEyeMakeup", "Archery", "YoYo")
  assert labels_of(annotations) == SPLITS[split_number]
  found = files_of(annotations, videos)
  assert found["YoYo/v_YoYo_g01_c01"] == "YoYo/v_YoYo_g01_c01.avi"
  assert found["Archery/v_Archery_g08_c02"] == "Archery/v_Archery_g08_c02.mp4"


def test_videos_in_a_deeper_folder(tmp_path):
  _release(tmp_path / "lists")
  name = "Archery/v_Archery_g08_c02"
  videos = touch(tmp_path / "data", f"UCF-101/{name}.avi", "other/YoYo/v_YoYo_g09_c01.avi")
  annotations = read_annotations("ucf101", videos, [str(tmp_path / "lists")])
  assert labels_of(annotations) == SPLITS[1]
  found = {name: file for name, file in files_of(annotations, videos).items() if file}
  assert found == {name: f"UCF-101/{name}.avi"}


@pytest.mark.parametrize(
  ("changes", "error"),
  [
    ({"classInd": "1 A\n3 B\n"}, "classInd.txt, line 2: expected `2 NameOfClass`, got '3 B'"),
    ({"classInd": "1 A\n2 A\n"}, "classInd.txt, line 2"),
    ({"classInd": "\n"}, "trainlist01.txt, line 1: expected .* number of the class in .*classInd"),
    ({"trainlist01": "\n"}, "trainlist01.txt: it lists no videos"),
    ({"trainlist01": "v_YoYo_g01_c01.avi 3\n"}, "trainlist01.txt, line 1: expected `Class/video"),
    ({"trainlist01": "YoYo/a.avi 3 4\n"}, "trainlist01.txt, line 1: expected `Class/video"),
    (
      {"trainlist01": "YoYo/a.avi 2\n"},
      r"line 1: .* number of the class .*, got 'YoYo/a\.avi' and \(2,",
    ),
    ({"testlist01": "Archer/a.avi\n"}, "line 1: unknown label 'Archer'; did you mean 'Archery'"),
  ],
)
def test_errors(tmp_path, changes, error):
  _release(tmp_path, **changes)
  with pytest.raises(AnnotationError, match=error):
    read_annotations("ucf101", tmp_path)


def test_lists_of_different_splits_are_refused(tmp_path):
  _release(tmp_path, testlist01="YoYo/v_YoYo_g01_c02.avi\n")
  with pytest.raises(AnnotationError, match="such as 'YoYo/v_YoYo_g01'; use the files of one"):
    read_annotations("ucf101", tmp_path)


def test_a_video_in_both_lists_is_left_out(tmp_path):
  both = "YoYo/v_YoYo_g01_c01.avi\nArchery/v_Archery_g08_c02.avi\n"
  _release(tmp_path, testlist01=both)
  annotations = read_annotations("ucf101", tmp_path)
  assert labels_of(annotations) == {
    "train": {"ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01": (0,)},
    "validation": {"Archery/v_Archery_g08_c02": (1,)},
  }
  ((path, reason),) = annotations.problems
  assert path == f"{tmp_path}/YoYo/v_YoYo_g01_c01.avi"
  assert reason == (
    f"{tmp_path}/testlist01.txt, line 1 and {tmp_path}/trainlist01.txt, line 2: "
    "different labels or splits of YoYo/v_YoYo_g01_c01"
  )


@pytest.mark.parametrize(("kind", "split"), [("train", "train"), ("test", "validation")])
def test_only_one_list(tmp_path, kind, split):
  _release(tmp_path)
  (tmp_path / f"{kind}list01.txt").unlink()
  annotations = read_annotations("ucf101", tmp_path)
  assert split not in annotations.splits
  assert len(annotations.splits) == 1


def test_nothing_found(tmp_path):
  _release(tmp_path)
  with pytest.raises(AnnotationError, match=r"none of the annotation files lists videos"):
    read_annotations("ucf101", tmp_path, options=AnnotationOptions(split_number=3))
