"""Clips of video files that belong to no data set."""

import dataclasses
import functools
import glob
import os
from collections.abc import Iterable, Iterator, Sequence

import grain
import numpy as np

from vswin_jax.common.messages import describe_error, one_line
from vswin_jax.data.clips import ClipSpec, Views, blank_clips, eval_clips, sliding_clip
from vswin_jax.data.pipeline import LoaderOptions, iterate
from vswin_jax.data.video.decoding import VideoError, probe

# fmt: off
VIDEO_SUFFIXES = frozenset({
  ".3gp", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts",
  ".ogv", ".ts", ".webm", ".wmv",
})
# fmt: on
_MAX_ERROR_BYTES = 400


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


def clip_batches(
  clips: Sequence[tuple[str, int | None]],
  spec: ClipSpec,
  views: Views,
  *,
  batch_size: int,
  options: LoaderOptions,
) -> Iterator[dict]:
  """Loads clips of video files in batches, in order.

  Args:
    clips: (path, start): all with the start of a single clip as in `clips.sliding_clip`, which has
      one view per crop, or all with None for the views of the whole video.
    batch_size: clips per batch; the last batch is padded.

  Returns:
    An iterator (close it at the end) of dicts with "video" uint8 `[batch_size, views, time,
    height, width, 3]`, "position_ids" int32 `[batch_size, views, time]` (see `clips.eval_clips` and
    `clips.sliding_clip`), "index" int32 `[batch_size]` (into `clips`, -1 for padding) and "error"
    bytes `[batch_size]`: why the clip could not be decoded, or empty.
  """
  load = functools.partial(_load, clips=tuple(clips), spec=spec, views=views)
  num_batches = -(-len(clips) // batch_size)
  loaded = grain.MapDataset.range(num_batches * batch_size).map(load)
  return iterate(loaded.batch(batch_size, drop_remainder=True), options)


def _load(index: int, *, clips: tuple, spec: ClipSpec, views: Views) -> dict:
  # Padding has the shape of the last clip.
  path, start = clips[min(index, len(clips) - 1)]
  if start is not None:
    views = dataclasses.replace(views, num_clips=1, whole_frames=0)
  video, position_ids = blank_clips(spec, views)
  message, is_padding = "", index >= len(clips)
  # One bad file must not stop the others, whatever is wrong with it.
  try:
    if start is not None and not is_padding:
      video, position_ids = sliding_clip(file_record(path), spec, views, start)
    elif not is_padding:
      video, position_ids = eval_clips(file_record(path), spec, views, np.random.default_rng(0))
  except VideoError as error:
    message = one_line(error)
  except Exception as error:
    message = describe_error(error)
  return {
    "video": video,
    "position_ids": position_ids,
    "index": np.int32(-1 if is_padding else index),
    "error": np.asarray(message.encode(errors="backslashreplace"), f"S{_MAX_ERROR_BYTES}"),
  }
