"""Predictions along whole videos."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from vswin_jax.data.clips import ClipSpec, Views, frames_shown, sliding_starts
from vswin_jax.data.video.decoding import VideoError, frame_times
from vswin_jax.data.video_files import file_record
from vswin_jax.inference.streaming import Stream
from vswin_jax.inference.video_model import VideoModel, iterate_outputs
from vswin_jax.models.outputs import probabilities_of
from vswin_jax.models.vtn import VTN

# Frames per clip from which VTN computes features.
_VTN_CLIP_FRAMES = 32
_MAX_VTN_ROWS = 200


@dataclasses.dataclass(frozen=True)
class Timeline:
  """Predictions along one video.

  Attributes:
    path: path of the video.
    start: float64 `[rows]`, the second at which each row begins.
    end: float64 `[rows]`, the second at which each row ends.
    probabilities: float32 `[rows, num_classes]`: of the clip of the row or, for VTN, of the whole
      video up to the end of the row. NaN where nothing could be decoded.
    labels: class names by index.
    error: why the video, or part of it, could not be read, or None.
  """

  path: str
  start: np.ndarray
  end: np.ndarray
  probabilities: np.ndarray
  labels: tuple[str, ...]
  error: str | None = None


@dataclasses.dataclass(frozen=True)
class _VideoClips:
  """Consecutive clips of one video.

  Attributes:
    starts: first frame of each clip.
    edges: float64 `[clips + 1]`, the seconds between which each clip represents the video.
    frames: positions in the video of the frames that dense sampling uses.
    error: why the video could not be read.
  """

  path: str
  starts: tuple[int, ...] = ()
  edges: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(1))
  frames: np.ndarray | None = None
  error: str | None = None


def iterate_timelines(
  model: VideoModel,
  paths: Sequence[str],
  *,
  views: Views | None = None,
  batch_size: int,
  num_workers: int,
  progress: Callable[[Iterator, int], Iterator] = lambda results, total: results,
) -> Iterator[Timeline]:
  """Yields the timeline of each video: consecutive clips without gaps.

  Rows of VTN cover the video from its beginning, so the last row is its result for the video. Only
  the frames of a few batches are in memory at a time, however long a video is.

  Args:
    views: only the crops matter; None: those of the preprocessing.
    batch_size: clips per batch.
    progress: wraps the iterator over the results of clips, whose number is the second argument.

  Raises:
    ValueError: invalid views, batch size or number of workers.
  """
  is_vtn = isinstance(model.network, VTN)
  spec = model.preprocessing.clip
  if is_vtn:
    spec = dataclasses.replace(
      spec, sampling="dense", num_frames=_VTN_CLIP_FRAMES, frame_interval=1
    )
  videos = [_divide(path, spec) for path in paths]
  clips = [(video.path, start) for video in videos for start in video.starts]
  outputs = iterate_outputs(
    model,
    clips,
    "frame_features" if is_vtn else probabilities_of(model.multi_label),
    spec=spec,
    views=views,
    batch_size=batch_size,
    num_workers=num_workers,
  )
  outputs = progress(outputs, len(clips))
  for video in videos:
    yield _timeline(model, video, itertools.islice(outputs, len(video.starts)))


def _divide(path: str, spec: ClipSpec) -> _VideoClips:
  try:
    times = frame_times(path)
    record = file_record(path)
    starts, parts = sliding_starts(record, spec)
    frames, _ = frames_shown(record, spec)
  except VideoError as error:
    return _VideoClips(path, error=str(error))
  # The last frame is shown as long as the others.
  if len(times) > 1:
    frame_seconds = float(np.median(np.diff(times)))
  else:
    frame_seconds = record["fps_denominator"] / (record["fps_numerator"] or 25)
  edges = np.append(times[parts], times[-1] + frame_seconds)
  return _VideoClips(path, tuple(map(int, starts)), edges, frames)


def _timeline(model: VideoModel, video: _VideoClips, outputs: Iterable[tuple]) -> Timeline:
  """Builds a timeline from (output `[crops, ...]`, error) of each clip."""
  count = len(video.starts)
  # A row of VTN costs a pass over all frames so far, so their number is limited.
  step = max(-(-count // _MAX_VTN_ROWS), 1) if isinstance(model.network, VTN) else 1
  edges = np.append(np.arange(0, count, step), count)
  probabilities = np.full((len(edges) - 1, len(model.class_names)), np.nan, np.float32)
  streams: list[Stream] = []
  errors = []
  for clip, (output, error) in enumerate(outputs):
    if error:
      errors.append(f"{video.edges[clip]:.1f} s: {error}")
    elif not isinstance(model.network, VTN):
      probabilities[clip] = output.mean(0)
    else:
      streams = streams or [Stream(model) for _ in output]
      first = clip * _VTN_CLIP_FRAMES
      positions = video.frames[first : first + _VTN_CLIP_FRAMES]
      # The last clip ends with the video, so it may begin with frames of the clip before.
      skipped = first - video.starts[clip]
      for stream, features in zip(streams, output):
        stream.add_features(features[skipped : skipped + len(positions)], positions)
    if streams and clip + 1 in edges:
      probabilities[clip // step] = np.mean([one.probabilities() for one in streams], axis=0)
  message = video.error
  if errors:
    message = f"{len(errors)} of {count} clips can't be decoded, the first at {errors[0]}"
  times = video.edges[edges]
  return Timeline(video.path, times[:-1], times[1:], probabilities, model.class_names, message)
