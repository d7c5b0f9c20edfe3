"""HMDB51: a release of two classes."""

import pytest

from tests.data.annotations.trees import files_of, labels_of, touch, write
from vswin_jax.data.annotations import AnnotationError, AnnotationOptions, read_annotations

FILES = {
  "wave_test_split1.txt": "a_wave_u_0.avi 1 \nb_wave#1.avi 2 \nc_wave.avi 0 \n",
  "brush_hair_test_split1.txt": "a.avi 2 \nb.avi 1 \n",
  "wave_test_split2.txt": "a_wave_u_0.avi 2 \n",
  "brush_hair_test_split2.txt": "a.avi 1 \n",
}


def _release(folder, **changes):
  for name, text in FILES.items():
    write(folder / name, changes.get(name.removesuffix(".txt"), text))


@pytest.mark.parametrize("folder", ["hmdb", "", "testTrainMulti_7030_splits"])
def test_splits(tmp_path, folder):
  _release(tmp_path / folder)
  # Files of the same name are in several classes.
  videos = touch(tmp_path / "hmdb", "wave/a_wave_u_0.avi", "wave/a.avi", "hmdb51/brush_hair/b.avi")
  annotations = read_annotations("hmdb51", videos)
  assert annotations.class_names == ("brush_hair", "wave")
  assert labels_of(annotations) == {
    "train": {"wave/a_wave_u_0": (1,), "brush_hair/b": (0,)},
    "validation": {"wave/b_wave#1": (1,), "brush_hair/a": (0,)},
  }
  assert files_of(annotations, videos) == {
    "wave/a_wave_u_0": "wave/a_wave_u_0.avi",
    "wave/b_wave#1": None,
    "brush_hair/a": None,
    "brush_hair/b": "hmdb51/brush_hair/b.avi",
  }
  second = read_annotations("hmdb51", videos, options=AnnotationOptions(split_number=2))
  assert labels_of(second) == {
    "train": {"brush_hair/a": (0,)},
    "validation": {"wave/a_wave_u_0": (1,)},
  }


def test_another_number_of_classes_is_noted(tmp_path):
  for number in range(51):
    write(tmp_path / f"class{number:02d}_test_split1.txt", "a.avi 1\n")
  write(tmp_path / "class00_test_split2.txt", "a.avi 1\n")
  assert not any(
    "class indices differ" in one for one in read_annotations("hmdb51", tmp_path).notes
  )
  few = read_annotations("hmdb51", tmp_path, options=AnnotationOptions(split_number=2))
  assert any("files of 1 classes, not 51: class indices differ" in one for one in few.notes)


def test_a_video_listed_twice_with_different_parts_is_left_out(tmp_path):
  _release(tmp_path, wave_test_split1="a.avi 1\na.avi 2\nb.avi 1\n")
  annotations = read_annotations("hmdb51", tmp_path)
  assert labels_of(annotations)["train"] == {"wave/b": (1,), "brush_hair/b": (0,)}
  ((path, reason),) = annotations.problems
  lists = f"{tmp_path}/wave_test_split1.txt"
  assert path == f"{tmp_path}/wave/a.avi"
  assert reason == f"{lists}, line 1 and {lists}, line 2: different labels or splits of wave/a"


@pytest.mark.parametrize("line", ["a.avi 3", "a.avi", "1"])
def test_a_line_of_another_kind(tmp_path, line):
  _release(tmp_path, wave_test_split1=f"x.avi 1\n{line}\n")
  with pytest.raises(AnnotationError, match=r"wave_test_split1\.txt, line 2: expected `"):
    read_annotations("hmdb51", tmp_path)


def test_nothing_found(tmp_path):
  _release(tmp_path / "lists")
  videos = touch(tmp_path, "videos/wave/a.avi") / "videos"
  with pytest.raises(AnnotationError, match=r"expected brush_hair_test_split1\.txt"):
    read_annotations("hmdb51", videos)
  with pytest.raises(AnnotationError, match=r"'.*lists': .*no annotation files in the folder"):
    options = AnnotationOptions(split_number=3)
    read_annotations("hmdb51", videos, [str(tmp_path / "lists")], options)
  with pytest.raises(AnnotationError, match="give them without SPLIT="):
    read_annotations("hmdb51", videos, [f"train={tmp_path}/lists/wave_test_split1.txt"])
