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
      inside = (os.path.join(folder, name) for folder, _, names in os.walk(match) for name in names)
      videos = sorted(p for p in inside if os.path.splitext(p)[1].lower() in VIDEO_SUFFIXES)
      found |= dict.fromkeys(videos if os.path.isdir(match) else [match])
  return list(found)


def file_record(path: str) -> dict:
  """Returns a record of a video file, as `data.clips` takes it.

  Raises:
    VideoError: the file can't be read.
  """
  return {"video": path, **dataclasses.asdict(probe(path))}
