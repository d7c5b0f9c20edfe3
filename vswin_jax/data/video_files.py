"""Video files that belong to no data set."""

import dataclasses
import glob
import os
from collections.abc import Iterable

from vswin_jax.data.video.decoding import probe

# fmt: off
VIDEO_SUFFIXES = frozenset({
  ".3gp", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts",
  ".ogv", ".ts", ".webm", ".wmv",
})
# fmt: on


def find_videos(paths: str | os.PathLike | Iterable[str | os.PathLike]) -> list[str]:
  """Expands folders (to all videos in them, at any depth) and globs, in order, without repetition.

  A name that matches nothing is kept: opening it reports what is wrong.

  Args:
    paths: one or several files, folders or globs.
  """
  if isinstance(paths, str | os.PathLike):
    paths = [paths]
  found: dict[str, None] = {}
  for path in map(os.fspath, paths):
    if not os.path.lexists(path):
      path = os.path.expanduser(path)
    matches = [path] if os.path.lexists(path) else sorted(glob.glob(path, recursive=True))
    for match in matches or [path]:
      found |= dict.fromkeys(_videos_in(match) if os.path.isdir(match) else [match])
  return list(found)


def _videos_in(folder: str) -> list[str]:
  files = (os.path.join(parent, name) for parent, _, names in os.walk(folder) for name in names)
  return sorted(path for path in files if os.path.splitext(path)[1].lower() in VIDEO_SUFFIXES)


def file_record(path: str) -> dict:
  """Returns a record of a video file, as `data.clips` takes it.

  Raises:
    VideoError: the file can't be read.
  """
  return {"video": path, **dataclasses.asdict(probe(path))}
