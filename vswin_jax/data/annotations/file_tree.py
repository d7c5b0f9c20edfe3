"""The files below a folder of videos, listed once, and the search for videos among them."""

import collections
import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Mapping

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

  def absolute(self, path: str) -> str:
    return os.path.join(self.root, path)

  def relative(self, path: str) -> str:
    """Returns an absolute path below the root relative to it; others as they are."""
    return path.removeprefix(self.root.rstrip("/") + "/")

  def with_id(self, id: str, split: str | None) -> str | None:
    """Returns the video whose path ends with an id and a suffix, in any folder.

    Of several copies, one in a folder of the split is preferred.
    """
    copies = [
      path
      for path in self._by_name.get(os.path.basename(id), ())
      if f"/{without_suffix(path)}".endswith(f"/{id}")
    ]
    of_split = [path for path in copies if split in map(split_within, path.split("/")[:-1])]
    return next(iter(of_split or copies), None)

  def with_path(self, path: str, split: str | None) -> str | None:
    """Returns the video with a path, relative to the root or to a folder of the split.

    A file with another suffix is returned if there is none with that of the path.
    """
    places = [path]
    if split:
      places += [f"{folder}/{path}" for folder in self._split_folders.get(split, ())]
    found = [one for place in places for one in self._by_stem.get(without_suffix(place), ())]
    return next((place for place in places if place in found), None) or next(iter(found), None)

  @functools.cached_property
  def _by_stem(self) -> Mapping[str, list[str]]:
    return _index(self.videos, without_suffix)

  @functools.cached_property
  def _by_name(self) -> Mapping[str, list[str]]:
    return _index(self.videos, lambda path: os.path.basename(without_suffix(path)))

  @functools.cached_property
  def _split_folders(self) -> Mapping[str | None, list[str]]:
    outermost = {path.split("/")[0] for path in self.videos if "/" in path}
    return _index(sorted(outermost), split_within)


def _index(paths: Iterable[str], key: Callable[[str], str | None]) -> Mapping:
  result = collections.defaultdict(list)
  for path in paths:
    result[key(path)].append(path)
  return result


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
      pending.append(links.pop())
    folder = pending.pop()
    try:
      status = os.stat(folder)
      with os.scandir(folder) as entries:
        entries = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
      problems.append((folder, f"can't be listed: {error.strerror}"))
      continue
    if (status.st_dev, status.st_ino) in seen:
      continue
    seen.add((status.st_dev, status.st_ino))
    for entry in entries:
      if not _is_utf8(entry.name):
        shown = os.fsencode(entry.path).decode(errors="backslashreplace")
        problems.append((shown, "its name is not UTF-8 text"))
      elif entry.is_symlink() and not os.path.exists(entry.path):
        problems.append((entry.path, "a broken link"))
      elif entry.is_dir():
        (links if entry.is_symlink() else pending).append(entry.path)
      elif os.path.splitext(entry.name)[1].lower() in VIDEO_SUFFIXES:
        videos.append(entry.path)
      else:
        others.append(entry.path)
  below = len(root.rstrip("/")) + 1
  relative = [sorted(path[below:] for path in one) for one in (videos, others)]
  return FileTree(root, *map(tuple, relative), tuple(sorted(problems)))


def _is_utf8(name: str) -> bool:
  try:
    name.encode()
  except UnicodeEncodeError:
    return False
  return True
