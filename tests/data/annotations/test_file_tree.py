"""Listing of a folder of videos, and the search in it."""

import os

import pytest

from tests.data.annotations.trees import touch
from vswin_jax.data.annotations import AnnotationError
from vswin_jax.data.annotations.file_tree import scan, without_suffix


def test_files_below_a_folder(tmp_path):
  touch(tmp_path, "b/2.mp4", "b/1.MKV", "a.webm", "b/c/3.avi", "b/x.txt", ".d/4.mp4", "b/._1.mp4")
  (tmp_path / "folder.mp4").mkdir()
  tree = scan(str(tmp_path))
  assert tree.videos == ("a.webm", "b/1.MKV", "b/2.mp4", "b/c/3.avi")
  assert tree.others == ("b/x.txt",)
  assert tree.problems == ()


def test_links_are_followed_once(tmp_path):
  root = touch(tmp_path / "root", "b/1.mp4")
  touch(tmp_path / "elsewhere", "2.mp4", "deep/3.mp4")
  (root / "a").symlink_to(root / "b")  # the folder's own name counts
  (root / "b/up").symlink_to(root)
  (root / "c").symlink_to(tmp_path / "elsewhere")
  (root / "d").symlink_to(tmp_path / "elsewhere")
  (root / "b/4.mp4").symlink_to(tmp_path / "elsewhere/2.mp4")
  (root / "gone.mp4").symlink_to(root / "nothing")
  (root / "self").symlink_to(root / "self")
  tree = scan(str(root))
  assert tree.videos == ("b/1.mp4", "b/4.mp4", "c/2.mp4", "c/deep/3.mp4")
  assert tree.problems == (
    (f"{root}/gone.mp4", "a broken link"),
    (f"{root}/self", "a broken link"),
  )


def test_names_that_are_not_utf8_are_problems(tmp_path):
  open(os.fsencode(tmp_path) + b"/\xff.mp4", "w").close()
  touch(tmp_path, "ü.mp4")
  tree = scan(str(tmp_path))
  assert tree.videos == ("ü.mp4",)
  assert tree.problems == ((f"{tmp_path}/\\xff.mp4", "its name is not UTF-8 text"),)


def test_no_folder(tmp_path):
  with pytest.raises(AnnotationError, match="no such folder"):
    scan(str(tmp_path / "x"))


def test_suffixes():
  assert without_suffix("a/b.c.MP4") == "a/b.c"
  assert without_suffix("a/b.c") == "a/b.c"


def test_videos_by_path(tmp_path):
  touch(tmp_path, "x/1.mp4", "videos_val/x/2.mkv", "videos_val/1.mp4", "3.avi", "val/3.mp4")
  tree = scan(str(tmp_path))
  assert tree.find("x/1.avi", "") == "x/1.mp4"
  assert tree.find("x/2.mp4", "validation") == "videos_val/x/2.mkv"
  assert tree.find("x/2.mp4", "train") is None
  assert tree.find("2.mkv", "") is None
  # The suffix tells which of two is meant.
  assert tree.find("3.avi", "validation") == "3.avi"
  assert tree.find("3.mp4", "validation") == "val/3.mp4"


def test_videos_in_any_folder(tmp_path):
  touch(tmp_path, "x/1.mp4", "videos_val/x/2.mkv", "videos_val/1.mp4", "y/3.mp4", "z/3.mp4")
  tree = scan(str(tmp_path))

  def find(path, split):
    return tree.find(path, split, in_any_folder=True)

  assert find("1.mp4", "") == "videos_val/1.mp4"
  assert find("1.webm", "validation") == "videos_val/1.mp4"
  assert find("1.mp4", "train") == "videos_val/1.mp4"
  assert find("x/1.mp4", "validation") == "x/1.mp4"
  assert find("x/2.mp4", "train") == "videos_val/x/2.mkv"
  assert find("y/2.mp4", "") is None
  assert find("4.mp4", "") is None
