"""A user's own videos, in class folders and in lists."""

import json

import pytest

from tests.data.annotations.trees import files_of, labels_of, touch, write
from vswin_jax.data.annotations import AnnotationError, AnnotationOptions, read_annotations


def _read(root, *annotations, **options):
  return read_annotations("video_folder", root, annotations, AnnotationOptions(**options))


def _all_labels(annotations):
  return {id: label for videos in labels_of(annotations).values() for id, label in videos.items()}


def test_folders_of_classes(tmp_path):
  videos = touch(
    tmp_path, "b/1.mp4", "b/2.MOV", "b/deeper/3.mp4", "a b/1.webm", "a b/.x.mp4", ".c/1.mp4"
  )
  touch(tmp_path, "b/Thumbs.db", "a b/1.txt", "a b/.DS_Store", "README.txt", "stray.mp4", "d/x.rm")
  annotations = _read(videos)
  assert annotations.class_names == ("a b", "b")
  assert _all_labels(annotations) == {
    "b/1": (1,),
    "b/2": (1,),
    "b/deeper/3": (1,),
    "a b/1": (0,),
  }
  assert all(video.exists for found in annotations.splits.values() for video in found)
  assert annotations.problems == ()
  assert annotations.other_files == (
    (f"{tmp_path}/README.txt", "not the suffix of a video file"),
    (f"{tmp_path}/a b/1.txt", "not the suffix of a video file"),
    (f"{tmp_path}/b/Thumbs.db", "not the suffix of a video file"),
    (f"{tmp_path}/d/x.rm", "not the suffix of a video file"),
  )
  others = f"{tmp_path}/README.txt, {tmp_path}/a b/1.txt, {tmp_path}/b/Thumbs.db"
  note = f"4 files without the suffix of a video are skipped, such as {others}"
  assert note in annotations.notes
  stray = f"1 videos in no class folder are skipped, such as {tmp_path}/stray.mp4"
  assert stray in annotations.notes


@pytest.mark.parametrize(
  "names",
  [("train", "val", "test"), ("training", "validation", "test"), ("Train", "valid", "Test")],
)
def test_folders_of_splits(tmp_path, names):
  train, validation, test = names
  touch(
    tmp_path,
    f"{train}/b/1.mp4",
    f"{train}/a/1.mp4",
    f"{validation}/a/1.mp4",
    f"{test}/c/2.mp4",
    f"{test}/loose.mp4",
    "lists/other.csv",
  )
  annotations = _read(tmp_path)
  assert annotations.class_names == ("a", "b", "c")
  assert list(annotations.splits) == ["train", "validation", "test"]
  assert labels_of(annotations) == {
    "train": {f"{train}/b/1": (1,), f"{train}/a/1": (0,)},
    "validation": {f"{validation}/a/1": (0,)},
    "test": {f"{test}/c/2": (2,)},
  }
  assert annotations.problems == ()
  assert any("1 videos in no class folder" in note for note in annotations.notes)


def test_notes_name_three_of_many_other_files(tmp_path):
  touch(tmp_path, "b/1.mp4", "a/1.mp4", *(f"a/{number}.srt" for number in range(5)))
  (tmp_path / "a/gone.mp4").symlink_to(tmp_path / "nothing")
  annotations = _read(tmp_path)
  # What may be a video stays a problem.
  assert annotations.problems == ((f"{tmp_path}/a/gone.mp4", "a broken link"),)
  assert len(annotations.other_files) == 5
  (note,) = [note for note in annotations.notes if "suffix" in note]
  assert note.startswith("5 files") and note.endswith(
    f"such as {', '.join(f'{tmp_path}/a/{one}.srt' for one in range(3))}"
  )


@pytest.mark.parametrize("names", [("a", "b"), ("train/a", "train/b", "val/a")])
@pytest.mark.parametrize("stray", ["test.txt", "train.csv", "annotations/val.json"])
def test_files_beside_class_folders_are_not_read(tmp_path, names, stray):
  videos = touch(tmp_path / "videos", *(f"{name}/1.mp4" for name in names), "stray.mp4")
  path = write(tmp_path / stray, "of something else")
  annotations = _read(videos)
  assert annotations.class_names == ("a", "b")
  assert path not in " ".join(annotations.notes)
  # In the folder of videos they are meant.
  write(videos / "train.csv", "a/1.mp4,x\n")
  assert _read(videos).class_names == ("x",)


@pytest.mark.parametrize(
  "names", [("1.mp4", "2.mp4"), ("a/1.mp4", "2.mp4"), ("train/1.mp4", "val/2.mp4")]
)
def test_files_beside_other_folders_are_read(tmp_path, names):
  videos = touch(tmp_path / "videos", *names)
  write(tmp_path / "train.csv", "".join(f"{name},x\n" for name in names))
  annotations = _read(videos)
  assert files_of(annotations, videos) == {name.removesuffix(".mp4"): name for name in names}


def test_a_class_can_be_called_train(tmp_path):
  touch(tmp_path, "car/1.mp4", "train/1.mp4", "bus/1.mp4")
  assert _read(tmp_path).class_names == ("bus", "car", "train")


def test_given_classes_of_folders(tmp_path):
  touch(tmp_path, "run/1.mp4", "walk/1.mp4")
  annotations = _read(tmp_path, class_names=("walk", "sit", "run"))
  assert annotations.class_names == ("walk", "sit", "run")
  assert _all_labels(annotations) == {"run/1": (2,), "walk/1": (0,)}
  with pytest.raises(AnnotationError, match="unknown label 'run'; did you mean 'runs'"):
    _read(tmp_path, class_names=("walk", "runs"))


def test_names_that_differ_in_the_suffix_alone(tmp_path):
  annotations = _read(touch(tmp_path, "a/1.mp4", "a/1.webm", "a/2.mp4"))
  assert _all_labels(annotations) == {"a/1.mp4": (0,), "a/1.webm": (0,), "a/2": (0,)}
  # Very likely one video, so that it must not be in two splits.
  assert len({("a/1.mp4" in found) for found in labels_of(annotations).values()}) == 2
  split = next(found for found in labels_of(annotations).values() if "a/1.mp4" in found)
  assert "a/1.webm" in split


@pytest.mark.parametrize(
  ("files", "error"),
  [
    ((), "no clear class folders, with no videos; expected class/video"),
    (("1.mp4",), "no clear class folders, with 1.mp4"),
    (("train/1.mp4", "val/2.mp4"), "no clear class folders, with train/1.mp4"),
    (("train/a/1.mp4", "other/b/2.mp4"), "no clear class folders, with other/b/2.mp4"),
  ],
)
def test_folders_that_are_unclear(tmp_path, files, error):
  with pytest.raises(AnnotationError, match=error):
    _read(touch(tmp_path, *files))


TRAIN = [{"path": "a/x 1.mp4", "label": "run"}, {"path": "b.mp4", "label": "sit"}]
VALIDATION = [{"path": "c.mp4", "label": "run"}]
EXPECTED = {"train": {"a/x 1": (0,), "b": (1,)}, "validation": {"c": (0,)}}


@pytest.mark.parametrize(
  "files",
  [
    {"train.csv": "path,label\na/x 1.mp4,run\nb.mp4,sit\n", "val.csv": "c.mp4,run\n"},
    {"train.csv": '"a/x 1.mp4",run\r\nb.mp4, sit\r\n', "val.csv": "label,path\nrun,c.mp4\n"},
    {"annotations.csv": "Split,Path,Label\ntrain,a/x 1.mp4,run\ntraining,b.mp4,sit\nval,c.mp4,run"},
    {"train.json": json.dumps(TRAIN), "validation.json": json.dumps(VALIDATION)},
    {"train.csv": 'path;label\na/x 1.mp4;run\n"b.mp4"; sit\n', "val.csv": "c.mp4;run\n"},
    {"train.tsv": "label\tpath\nrun\ta/x 1.mp4\nsit\tb.mp4\n", "val.csv": "c.mp4\trun\n"},
    {
      "annotations.json": json.dumps(
        [
          {"path": "a/x 1.mp4", "label": "run", "split": "train"},
          {"path": "b.mp4", "labels": ["sit"], "split": "train"},
          {"path": "c.mp4", "label": "run", "split": "validation"},
        ]
      )
    },
  ],
)
@pytest.mark.parametrize("place", [".", "..", "../annotations"])
def test_named_classes_in_files(tmp_path, files, place):
  videos = touch(tmp_path / "videos", "a/x 1.mp4", "b.avi")
  for name, text in files.items():
    write(videos / place / name, text)
  annotations = _read(videos)
  assert annotations.class_names == ("run", "sit")
  assert labels_of(annotations) == EXPECTED
  # Under another suffix than written.
  assert files_of(annotations, videos) == {"a/x 1": "a/x 1.mp4", "b": "b.avi", "c": None}
  assert annotations.splits["validation"][0].path == f"{videos}/c.mp4"
  assert annotations.notes[0].startswith("annotations read: ")


def test_numbers_are_indices(tmp_path):
  touch(tmp_path, "my video 1.mp4", "b.mp4")
  path = write(tmp_path / "list.txt", "my video 1.mp4 2\n\n  b.mp4\t0  \n")
  annotations = _read(tmp_path, path)
  assert annotations.class_names == ("0", "1", "2")
  assert _all_labels(annotations) == {"my video 1": (2,), "b": (0,)}
  annotations = _read(tmp_path, path, class_names=("x", "y", "z", "w"))
  assert annotations.class_names == ("x", "y", "z", "w")
  assert _all_labels(annotations) == {"my video 1": (2,), "b": (0,)}
  with pytest.raises(AnnotationError, match=r"list\.txt, line 1: label '2'; .* from 0 to 1"):
    _read(tmp_path, path, class_names=("x", "y"))
  # One that is no number makes names of all.
  path = write(tmp_path / "list.csv", "a.mp4,10\nb.mp4,9\nc.mp4,x\n")
  assert _read(tmp_path, path).class_names == ("10", "9", "x")


def test_no_video_has_a_label(tmp_path):
  path = write(tmp_path / "x.csv", "path,label\na.mp4,\n")
  with pytest.raises(AnnotationError, match="line 2: neither this video nor any other has a label"):
    _read(tmp_path, path, multi_label=True)


def test_several_labels(tmp_path):
  expected = {"a": (0, 3), "b": (2,)}
  listed = write(tmp_path / "list.txt", "a.mp4 3 0\nb.mp4 2\n")
  listing = write(
    tmp_path / "list.json", '[{"path":"a.mp4","labels":[0,3]},{"path":"b","label":2}]'
  )
  table = write(tmp_path / "list.csv", "path,label\na.mp4,0|3\nb.mp4,2;2\n")
  rows = write(tmp_path / "rows.csv", "path,label\na.mp4,3\na.mp4,0\nb.mp4,2\n")
  for path, options in (
    (listed, {}),
    (listing, {}),
    (table, {"multi_label": True}),
    (rows, {"multi_label": True}),
  ):
    annotations = _read(tmp_path, path, **options)
    assert annotations.multi_label
    assert _all_labels(annotations) == expected
    assert annotations.class_names == ("0", "1", "2", "3")
  assert _read(tmp_path, table).class_names == ("0|3", "2;2")


def test_videos_without_labels_in_multi_label_sets(tmp_path):
  path = write(tmp_path / "list.csv", "path,label,split\na.mp4,x|y,train\nb.mp4,,train\n")
  annotations = _read(tmp_path, path, multi_label=True)
  assert labels_of(annotations) == {"train": {"a": (0, 1), "b": ()}}
  with pytest.raises(AnnotationError, match=r"line 3: no label of 'b\.mp4'"):
    _read(tmp_path, path)


def test_splits_given_with_files(tmp_path):
  one = write(tmp_path / "one.txt", "a.mp4 0\n")
  two = write(tmp_path / "two.txt", "b.mp4 1\n")
  annotations = _read(tmp_path, f"train={one}", f"val={two}")
  assert labels_of(annotations) == {"train": {"a": (0,)}, "validation": {"b": (1,)}}
  assert labels_of(_read(tmp_path, f"test={one}", f"test={two}")) == {
    "test": {"a": (0,), "b": (1,)}
  }
  with pytest.raises(AnnotationError, match=r"split of 'a\.mp4' is unclear; give it as SPLIT="):
    _read(tmp_path, one, two)
  with pytest.raises(AnnotationError, match=r"split of 'a\.mp4' is unclear"):
    _read(tmp_path, one, f"train={two}")
  with pytest.raises(AnnotationError, match=r"two annotation files of train: .*train\.csv "):
    write(tmp_path / "x/train.csv", "a.mp4,1\n")
    write(tmp_path / "x/train.txt", "a.mp4 1\n")
    _read(tmp_path, str(tmp_path / "x"))


@pytest.mark.parametrize("argument", ["missing.csv", "train={}", "tain={}/x.csv", "{}/empty"])
def test_arguments_that_stand_for_nothing(tmp_path, argument):
  touch(tmp_path, "x.csv", "empty/x.rst")
  with pytest.raises(AnnotationError, match=r"expected a file, a folder, or SPLIT=FILE"):
    _read(tmp_path, argument.format(tmp_path))


def test_paths_outside_the_folder(tmp_path):
  videos = touch(tmp_path / "videos", "in.mp4")
  touch(tmp_path / "elsewhere", "a.mp4", "b.mkv")
  path = write(
    tmp_path / "list.csv",
    f"../elsewhere/a.mp4,x\n{tmp_path}/elsewhere/b.mkv,x\n{videos}/in.mp4,y\n/no/c.mp4,y\n",
  )
  annotations = _read(videos, path)
  assert _all_labels(annotations) == {
    "../elsewhere/a": (0,),
    f"{tmp_path}/elsewhere/b": (0,),
    "in": (1,),
    "/no/c": (1,),
  }
  found = {video.id: video for part in annotations.splits.values() for video in part}
  assert found["../elsewhere/a"].path == f"{tmp_path}/elsewhere/a.mp4"
  assert found[f"{tmp_path}/elsewhere/b"].path == f"{tmp_path}/elsewhere/b.mkv"
  assert [video.id for video in found.values() if not video.exists] == ["/no/c"]
  path = write(tmp_path / "list.csv", "in.mp4,x\n../elsewhere/none.mp4,x\n")
  annotations = _read(videos, path)
  found = {video.id: video for part in annotations.splits.values() for video in part}
  assert not found["../elsewhere/none"].exists
  assert found["../elsewhere/none"].path == f"{tmp_path}/elsewhere/none.mp4"


def test_repeated_lines(tmp_path):
  path = write(tmp_path / "list.csv", "a.mp4,x\n./a.mp4,x\nb.mp4,y\nb.mp4,y\n")
  annotations = _read(tmp_path, path)
  assert _all_labels(annotations) == {"a": (0,), "b": (1,)}
  # Both are the same file if only one is there.
  touch(tmp_path, "a.mp4")
  path = write(tmp_path / "list.csv", "a.mp4,x\na.avi,y\n")
  with pytest.raises(AnnotationError, match=r"line 1 and .*line 2: different labels"):
    _read(tmp_path, path)
  touch(tmp_path, "a.avi")
  assert _all_labels(_read(tmp_path, path)) == {"a.mp4": (0,), "a.avi": (1,)}


@pytest.mark.parametrize(
  ("name", "text", "error"),
  [
    ("x.csv", "", "it lists no videos"),
    ("x.csv", "path,label\n", "it lists no videos"),
    ("x.json", "[]", "it lists no videos"),
    ("x.json", "3", "expected a list of objects"),
    ("x.json", '["a"]', "entry 1: expected an object, got 'a'"),
    ("x.json", '[{"label": 1}]', "entry 1: expected text as path"),
    ("x.json", '[{"path": "a.mp4"}]', "entry 1: no label of 'a.mp4'"),
    ("x.json", '[{"path": "a.mp4", "labels": []}]', "neither this video nor any other has a label"),
    ("x.json", '[{"path": "a.mp4", "label": true}]', "entry 1: label True; expected a name"),
    ("x.json", '[{"path": "a.mp4", "label": 1.5}]', "entry 1: label 1.5; expected a name"),
    (
      "x.json",
      '[{"path": "a", "label": 1, "split": 1}]',
      "entry 1: expected text as path",
    ),
    ("x.json", '[{"path": "x", "path": "y"}]', "key occurs twice in an object with the keys path"),
    ("x.json", '{"a.mp4":\n "x"', "not valid JSON: .*line 2"),
    ("x.json", '[{"path": "\\ud800"}]', "not valid JSON: .*surrogates not allowed"),
    ("x.json", '{"a.mp4": ' + 5000 * "1" + "}", "not valid JSON: "),
    ("test.csv", "path,label,split\na.mp4,,test\nb.mp4,,train\n", "line 3: no label of 'b.mp4'"),
    ("x.csv", "a,b,c\n1,2,3\n", "line 1: expected the columns path,label"),
    ("x.csv", "path,class\na.mp4,x\n", "line 2: no label of 'a.mp4'"),
    ("x.csv", "name,label\na.mp4,x\n", "line 1: expected the columns path,label"),
    ("x.csv", "a.mp4,x\nb.mp4\n", "line 2: expected 2 columns"),
    (
      "x.csv",
      "a.mp4,x\nb, c.mp4,x\n",
      "line 2: expected 2 columns as in the first line, .*quote .* contain ','",
    ),
    (
      "x.csv",
      "a.mp4;x\nb; c.mp4;x\n",
      "line 2: expected 2 columns as in the first line, .*quote .* contain ';'",
    ),
    ("x.csv", "a.mp4;x\nb.mp4,x\n", "line 2: expected 2 columns as in the first line, .*got 1"),
    (
      "x.csv",
      "a.mp4\tx\nb\t.mp4\tx\n",
      "line 2: expected 2 columns as in the first line, .*quote .* contain '.*t'",
    ),
    ("x.csv", "path,label\n,x\n", "line 2: expected text as path"),
    ("x.csv", "path,label,split\na.mp4,x,train\nb.mp4,x,\n", "line 3: the split of 'b.mp4' is un"),
    ("x.csv", "path,label,split\na.mp4,x,\nb.mp4,x,val\n", "line 2: the split of 'a.mp4' is un"),
    ("x.csv", "path,label,split\na.mp4,x,foo\n", "line 2: unknown split 'foo'"),
    ("x.csv", "path,label,split\na.mp4,x,val\na.mp4,x,test\n", "different labels or splits of a"),
    ("x.txt", "a.mp4 1\nb.mp4 run fast\n", "line 2: expected `path label`"),
    ("x.txt", "a.mp4 20230101\n", "line 1: label '20230101'; expected a number from 0 to 99999"),
    ("x.txt", "a.mp4 -1\n", "line 1: label '-1'; expected a number from 0"),
    ("x.txt", "frames/a 120 3\n", "line 1: .*looks like a folder of frames"),
    ("x.txt", b"\xff\xfea\x00", "line 1: not UTF-8"),
  ],
)
def test_errors_name_file_and_line(tmp_path, name, text, error):
  path = write(tmp_path / name, text)
  with pytest.raises(AnnotationError, match=error) as caught:
    _read(tmp_path, path)
  assert path in str(caught.value)
  assert "\n" not in str(caught.value)


def test_other_files_in_a_folder_of_annotations(tmp_path):
  write(tmp_path / "lists/train.csv", "a.mp4,x\n")
  write(tmp_path / "lists/classes.txt", "x\n")
  assert labels_of(_read(tmp_path, str(tmp_path / "lists"))) == {"train": {"a": (0,)}}


def test_a_folder_of_a_split_is_not_searched_without_one(tmp_path):
  touch(tmp_path, "other/a.mp4", "train/a.mp4")
  whole = write(tmp_path / "list.csv", "a.mp4,x\n")
  (video,) = _read(tmp_path, whole).splits["train"]
  assert not video.exists
  (video,) = _read(tmp_path, f"train={whole}").splits["train"]
  assert (video.id, video.path, video.exists) == ("train/a", f"{tmp_path}/train/a.mp4", True)


def test_lists_that_end_in_csv(tmp_path):
  path = write(tmp_path / "train.csv", "a.mp4 1\nb c.mp4 0\n")
  assert labels_of(_read(tmp_path, path)) == {"train": {"a": (1,), "b c": (0,)}}


def test_groups_in_two_given_splits_are_noted(tmp_path):
  path = write(
    tmp_path / "x.csv", "path,label,split,group\na.mp4,x,train,g\nb.mp4,x,val,g\nc.mp4,x,val,h\n"
  )
  assert "groups of videos in more than one split: 1, such as 'g'" in _read(tmp_path, path).notes
  # The pattern finds the groups that the file does not give.
  path = write(
    tmp_path / "x.csv", "path,label,split\nm_1.mp4,x,train\nm_2.mp4,x,val\nn_1.mp4,x,val\n"
  )
  notes = _read(tmp_path, path, group_pattern="(.*)_").notes
  assert "groups of videos in more than one split: 1, such as 'm'" in notes
  assert not any("groups of" in note for note in _read(tmp_path, path).notes)
  with pytest.raises(AnnotationError, match=r"finds no group in 'm_1\.mp4'"):
    _read(tmp_path, path, group_pattern="(x)")


def test_videos_of_a_split_are_in_the_order_of_a_hash(tmp_path):
  path = write(tmp_path / "train.txt", "".join(f"{name}.mp4 0\n" for name in "abcdef"))
  # SHA-256 of these letters begins with ca97, 3e23, 2e7d, 18ac, 3f79, 252f.
  ids = [video.id for video in _read(tmp_path, path).splits["train"]]
  assert ids == ["d", "f", "c", "b", "e", "a"]


def test_listed_files_that_a_scan_does_not_show(tmp_path):
  videos = touch(tmp_path / "videos", ".cache/a.mp4", "b/b.mp4")
  (videos / "second").symlink_to(videos / "b")
  (videos / "gone.mp4").symlink_to(videos / "nothing")
  path = write(tmp_path / "train.csv", ".cache/a.mp4,x\nsecond/b.mp4,x\ngone.mp4,x\n")
  annotations = _read(videos, path)
  assert files_of(annotations, videos) == {
    ".cache/a": ".cache/a.mp4",
    "second/b": "second/b.mp4",
    "gone": None,
  }
  assert annotations.problems == ()  # it is missing already


def test_classes_without_videos_are_noted(tmp_path):
  touch(tmp_path, "a.mp4", "b.mp4")
  file = write(tmp_path / "list.txt", "a.mp4 1\nb.mp4 2\n")
  annotations = _read(tmp_path, file)
  assert annotations.class_names == ("0", "1", "2")
  assert "classes without videos: 1, such as '0'" in annotations.notes


def test_numbers_are_names_among_names(tmp_path):
  touch(tmp_path, "a.mp4", "b.mp4")
  file = write(tmp_path / "list.txt", "a.mp4 007\nb.mp4 bond\n")
  assert _read(tmp_path, file).class_names == ("007", "bond")
