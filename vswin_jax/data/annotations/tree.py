"""The files below a folder of videos, listed once, and how written names are found among them."""

import collections
import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence

from vswin_jax.data.annotations.common import AnnotationError, split_within
from vswin_jax.data.video_files import VIDEO_SUFFIXES


@dataclasses.dataclass(frozen=True)
class FileTree:
  """Paths relative to `root`, with "/", in an order that does not depend on the file system.

  Attributes:
    root: absolute.
    videos: files with the suffix of a video.
    others: other files.
    folders: all of them.
    problems: (path, reason) of what can't be used: absolute, as it is reported.
  """

  root: str
  videos: tuple[str, ...]
  others: tuple[str, ...]
  folders: tuple[str, ...]
  problems: tuple[tuple[str, str], ...]

  @functools.cached_property
  def _known(self) -> frozenset[str]:
    return frozenset(self.videos)

  @functools.cached_property
  def _by_name(self) -> Mapping[str, list[str]]:
    """Videos by their paths without suffix."""
    return _index(self.videos, without_suffix)

  @functools.cached_property
  def _by_stem(self) -> Mapping[str, list[str]]:
    """Videos by the names of their files without suffix."""
    return _index(self.videos, lambda path: without_suffix(path.rpartition("/")[2]))

  @functools.cached_property
  def _by_folded_stem(self) -> Mapping[str, str]:
    return {stem.casefold(): paths[0] for stem, paths in self._by_stem.items()}

  @functools.cached_property
  def _split_folders(self) -> Mapping[str, list[str]]:
    return _index([name for name in self.folders if "/" not in name], split_within)

  def absolute(self, path: str) -> str:
    return os.path.join(self.root, path)

  def relative(self, path: str) -> str:
    """The path from the root on of an absolute path below it; others stay as they are."""
    return path.removeprefix(self.root.rstrip("/") + "/")

  def with_stem(self, stem: str, split: str | None) -> str | None:
    """A video whose name is this without its suffix, from a folder of its split if there is one."""
    found = self._by_stem.get(stem, ())
    return min(found, default=None, key=lambda path: (not self._is_of(path, split), path))

  def with_path(self, path: str, split: str | None) -> str | None:
    """The video with this relative path, under another suffix, or in the folder of its split."""
    folders = self._split_folders.get(split, ()) if split else ()
    places = [f"{folder}/{path}" for folder in folders]
    for place in (path, *places):
      if place in self._known:
        return place
    for place in (path, *places):
      if found := self._by_name.get(without_suffix(place)):
        return found[0]
    return None

  def with_tail(self, path: str, parts: int) -> str | None:
    """The only video whose path ends with this many parts of this one, its suffix apart."""
    end = "/" + "/".join(without_suffix(path).split("/")[-parts:])
    stem = end.rpartition("/")[2]
    found = [one for one in self._by_stem.get(stem, ()) if without_suffix(f"/{one}").endswith(end)]
    return found[0] if len(found) == 1 else None

  def with_other_case(self, stem: str) -> str | None:
    """A video whose name is this without its suffix but for small and capital letters."""
    return self._by_folded_stem.get(stem.casefold())

  def _is_of(self, path: str, split: str | None) -> bool:
    return split is not None and any(split_within(part) == split for part in path.split("/")[:-1])


def _index(names: Sequence[str], key) -> Mapping[str, list[str]]:
  result = collections.defaultdict(list)
  for name in names:
    result[key(name)].append(name)
  return dict(result)


def without_suffix(path: str) -> str:
  """A path without the suffix of a video; other endings belong to the name."""
  stem, suffix = os.path.splitext(path)
  return stem if suffix.lower() in VIDEO_SUFFIXES else path


def scan(root: str) -> FileTree:
  """Lists all files below a folder, hidden ones and those in hidden folders left out.

  Links to folders are followed, but no folder is listed twice; then its own name counts, not that
  of a link.

  Raises:
    AnnotationError: no such folder.
  """
  if not os.path.isdir(root):
    raise AnnotationError(f"{root}: no such folder; expected the folder that holds the videos")
  videos, others, folders, problems = [], [], [], []
  seen, pending, links = set(), [""], []
  while pending or links:
    if not pending:
      links.sort(reverse=True)
      pending.append(links.pop())
    folder = pending.pop()
    try:
      found = os.stat(os.path.join(root, folder))
      if (found.st_dev, found.st_ino) in seen:
        continue
      seen.add((found.st_dev, found.st_ino))
      with os.scandir(os.path.join(root, folder)) as entries:
        entries = list(entries)
    except OSError as error:
      problems.append((os.path.join(root, folder), f"can't be listed: {error.strerror}"))
      continue
    if folder:
      folders.append(folder)
    for entry in entries:
      name = entry.name
      if name.startswith("."):
        continue
      path = f"{folder}/{name}" if folder else name
      is_link = entry.is_symlink()
      if not name.isascii() and not _is_text(name):
        shown = os.fsencode(entry.path).decode(errors="backslashreplace")
        problems.append((shown, "its name is not UTF-8 text"))
      elif is_link and not os.path.exists(entry.path):
        problems.append((entry.path, "a link to nothing"))
      elif entry.is_dir():
        (links if is_link else pending).append(path)
      elif os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES:
        videos.append(path)
      else:
        others.append(path)
  return FileTree(root, *(tuple(sorted(one)) for one in (videos, others, folders, problems)))


def _is_text(name: str) -> bool:
  try:
    name.encode()
  except UnicodeEncodeError:
    return False
  return True
