"""The files below a folder of videos, listed once, and the search for videos among them."""

import collections
import dataclasses
import os
from collections.abc import Sequence

from vswin_jax.data.annotations.common import AnnotationError, split_within
from vswin_jax.data.video_files import VIDEO_SUFFIXES


@dataclasses.dataclass(frozen=True)
class FileTree:
  """The files below a folder, sorted; paths are relative to `root`.

  Attributes:
    root: absolute.
    videos: files with the suffix of a video.
    others: other files.
    problems: (absolute path, reason) of what can't be used.
  """

  root: str
  videos: tuple[str, ...]
  others: tuple[str, ...]
  problems: tuple[tuple[str, str], ...]
  # By number of components: videos by the last components of their paths, without suffix.
  _indices: dict[int, dict] = dataclasses.field(default_factory=dict, init=False, repr=False)

  def absolute(self, path: str) -> str:
    return os.path.join(self.root, path)

  def relative(self, path: str) -> str:
    """Returns an absolute path below the root relative to it; others as they are."""
    return path.removeprefix(os.path.join(self.root, ""))

  def find(self, path: str, split: str, in_any_folder: bool = False) -> str | None:
    """Returns the video with a path, relative to the root or to an outermost folder of the split.

    Of several, one with the suffix of the path is preferred, then one in the root.

    Args:
      path: with a suffix, from which that of the video may differ.
      split: empty if unknown.
      in_any_folder: whether the path may be relative to any other folder, too; then folders of the
        split come first.
    """
    stem, ranks = without_suffix(path), {}
    for video in self._ending_with(stem):
      folder = without_suffix(video).removesuffix(stem)
      of_split = bool(split) and split in map(split_within, folder.split("/"))
      if in_any_folder or not folder or (of_split and folder.count("/") == 1):
        ranks[video] = in_any_folder and not of_split, not video.endswith(path), bool(folder)
    return min(ranks, key=ranks.get, default=None)

  def _ending_with(self, stem: str) -> Sequence[str]:
    length = stem.count("/") + 1
    if length not in self._indices:
      index = self._indices[length] = collections.defaultdict(list)
      for video in self.videos:
        index["/".join(without_suffix(video).split("/")[-length:])].append(video)
    return self._indices[length].get(stem, ())


def without_suffix(path: str) -> str:
  """Returns a path without the suffix of a video; other suffixes belong to the name."""
  stem, suffix = os.path.splitext(path)
  return stem if suffix.lower() in VIDEO_SUFFIXES else path


def scan(root: str) -> FileTree:
  """Lists the files below a folder, except hidden ones.

  Links to folders are followed, but no folder is listed twice: its own path has precedence.

  Args:
    root: absolute.

  Raises:
    AnnotationError: there is no such folder.
  """
  if not os.path.isdir(root):
    raise AnnotationError(f"{root}: no such folder; expected the folder that holds the videos")
  videos, others, problems = [], [], []
  pending, links, seen = [root], [], set()
  while pending or links:
    if not pending:
      links.sort(reverse=True)
    folder = (pending or links).pop()
    try:
      status = os.stat(folder)
      entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
    except OSError as error:
      problems.append((folder, f"can't be listed: {error.strerror}"))
      continue
    if (status.st_dev, status.st_ino) in seen:
      continue
    seen.add((status.st_dev, status.st_ino))
    for entry in entries:
      shown = os.fsencode(entry.path).decode(errors="backslashreplace")
      if shown != entry.path:
        problems.append((shown, "its name is not UTF-8 text"))
      elif entry.is_symlink() and not os.path.exists(entry.path):
        problems.append((entry.path, "a broken link"))
      elif entry.is_dir():
        (links if entry.is_symlink() else pending).append(entry.path)
      else:
        is_video = os.path.splitext(entry.name)[1].lower() in VIDEO_SUFFIXES
        (videos if is_video else others).append(entry.path.removeprefix(os.path.join(root, "")))
  return FileTree(root, tuple(sorted(videos)), tuple(sorted(others)), tuple(sorted(problems)))
