"""Most listed videos are not there: what the user is told of the cause."""

import pytest

from tests.data.annotations.trees import touch, write
from vswin_jax.data.annotations import read_annotations

VIDEOS = ("run/one.mp4", "run/two.mp4", "Three.mp4", "four.mp4")


def _notes(folder, paths, names=VIDEOS):
  videos = touch(folder / "clips", *names)
  path = write(folder / "list.csv", "".join(f"{one},x\n" for one in paths))
  notes = read_annotations("video_folder", videos, [path]).notes
  return [note for note in notes if note.startswith("most videos")], videos


@pytest.mark.parametrize(
  ("paths", "cause"),
  [
    (
      (r"run\one.mp4", r"run\two.mp4", r"x\Three.mp4"),
      r"paths are written with \, such as run\one.mp4; write / instead",
    ),
    (
      ("gone.mp4", "clips/run/one.mp4", "clips/run/two.avi"),
      "paths begin with clips/, the name of the folder of videos, such as clips/run/one.mp4; give "
      "the folder above it, {parent}, as that of videos, or write them without it",
    ),
    (
      ("gone.mp4", "one.mp4", "b/two.avi"),
      "files of these names are in other folders, such as run/one.mp4 for one.mp4; paths in lists "
      "are relative to {videos}",
    ),
    (
      ("gone.mp4", "/data/clips/run/one.mp4", "/data/clips/four.mp4"),
      "files of these names are in other folders, such as run/one.mp4 for /data/clips/run/one.mp4; "
      "paths in lists are relative to {videos}",
    ),
    (
      ("gone.mp4", "FOUR.mp4", "three.mp4"),
      "names differ in small and capital letters, such as four.mp4 for FOUR.mp4; write them alike",
    ),
  ],
)
def test_likely_causes(tmp_path, paths, cause):
  (note,), videos = _notes(tmp_path, paths)
  assert note == f"most videos were not found: {cause}".format(videos=videos, parent=tmp_path)


def test_no_videos_at_all(tmp_path):
  (note,), videos = _notes(tmp_path, ["a.mp4", "b.mp4", "c.mp4"], ["a.tar"])
  assert note == f"most videos were not found: there are no video files below {videos}"


@pytest.mark.parametrize(
  "paths",
  [
    ("one.mp4", "two.mp4"),  # few
    ("one.mp4", "two.mp4", "three.mp4", *VIDEOS),  # not most
    ("x.mp4", "y.mp4", "z.mp4"),  # nothing like it
  ],
)
def test_no_cause_is_told(tmp_path, paths):
  assert _notes(tmp_path, paths)[0] == []
