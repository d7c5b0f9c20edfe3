"""Clips of a user's own video files, decoded in worker processes."""

import dataclasses
import functools
import glob
import os
from collections.abc import Iterable, Iterator, Sequence

import grain
import numpy as np

from vswin_jax.data.clips import (
  ClipSpec,
  Views,
  count_views,
  eval_clips,
  sliding_clip,
  view_frames,
)
from vswin_jax.data.pipeline import LoaderOptions, iterate
from vswin_jax.data.video.decoding import VideoError, probe

# fmt: off
VIDEO_SUFFIXES = frozenset({
  ".3gp", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts",
  ".ogv", ".ts", ".webm", ".wmv",
})
# fmt: on
_LONGEST_ERROR = 400


@dataclasses.dataclass(frozen=True)
class Item:
  """What is decoded at once: the views of a whole video, or a clip from `start` on.

  Attributes:
    path: of the video.
    start: first frame of the clip, see `clips.sliding_clip`; None: all views of the video.
  """

  path: str
  start: int | None = None


def find_videos(paths: str | os.PathLike | Iterable[str | os.PathLike]) -> list[str]:
  """Expands folders (all videos in them, at any depth) and globs, in order, without repetition.

  A name that stands for nothing stays in the list: opening it tells what is wrong.

  Args:
    paths: one file, folder or glob, or several.
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
  paths = [
    os.path.join(parent, name)
    for parent, _, names in os.walk(folder, followlinks=False)
    for name in names
    if os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES
  ]
  return sorted(paths)


def file_record(path: str) -> dict:
  """What `data.clips` needs of a record, for a file.

  Raises:
    VideoError: the file can't be read.
  """
  return {"video": path, **dataclasses.asdict(probe(path))}


def clip_batches(
  items: Sequence[Item],
  spec: ClipSpec,
  views: Views,
  *,
  batch_size: int,
  options: LoaderOptions,
) -> Iterator[dict]:
  """Batches of the clips of items, in order.

  Args:
    items: all with a start, or all without one.
    views: of every item; an item with a start has one view of each crop, of `spec.num_frames`
      frames.
    batch_size: items of a batch; the last batch is filled up.

  Returns:
    An iterator (close it at the end) of dicts with "video" uint8 `[batch_size, views, time,
    height, width, 3]`, "position_ids" int32 `[batch_size, views, time]` (see `clips.eval_clips` and
    `clips.sliding_clip`), "item" int32 `[batch_size]` (its index, -1 for filling) and "error" bytes
    `[batch_size]`: why the item could not be decoded, or empty.
  """
  load = functools.partial(_load, items=tuple(items), spec=spec, views=views)
  batches = -(-len(items) // batch_size)
  clips = grain.MapDataset.range(batches * batch_size).map(load)
  return iterate(clips.batch(batch_size, drop_remainder=True), options)


def _load(index: int, *, items: tuple[Item, ...], spec: ClipSpec, views: Views) -> dict:
  # What fills the last batch has the shape of the rest.
  item = items[min(index, len(items) - 1)]
  if item.start is not None:
    views = dataclasses.replace(views, num_clips=1, whole_frames=0)
  shape = (count_views(spec, views), view_frames(spec, views))
  empty = np.zeros((*shape, spec.size, spec.size, 3), np.uint8), np.zeros(shape, np.int32)
  if index >= len(items):
    return _loaded(*empty, -1, "")
  try:
    record = file_record(item.path)
    if item.start is None:
      clips = eval_clips(record, spec, views, np.random.default_rng(0))
    else:
      clips = sliding_clip(record, spec, views, item.start)
  except VideoError as error:
    return _loaded(*empty, index, str(error))
  # Whatever is wrong with one file, the others get their results.
  except Exception as error:
    return _loaded(*empty, index, f"{type(error).__name__}: {' '.join(str(error).split())}")
  return _loaded(*clips, index, "")


def _loaded(video: np.ndarray, position_ids: np.ndarray, index: int, error: str) -> dict:
  error = error.encode(errors="backslashreplace")[:_LONGEST_ERROR]
  return {
    "video": np.ascontiguousarray(video),
    "position_ids": position_ids,
    "item": np.int32(index),
    "error": np.asarray(error, f"S{_LONGEST_ERROR}"),
  }
