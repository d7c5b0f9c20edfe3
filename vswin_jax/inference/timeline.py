"""Whole videos: what a model says along them."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from flax import nnx

from vswin_jax.data.clips import ClipSpec, frames_shown, sliding_starts
from vswin_jax.data.files import Item, file_record
from vswin_jax.data.preprocessing import Preprocessing
from vswin_jax.data.video.decoding import VideoError, frame_times
from vswin_jax.inference.predictor import class_names, iterate_outputs
from vswin_jax.inference.streaming import Stream
from vswin_jax.models.outputs import probabilities_of
from vswin_jax.models.vtn import VTN

# Frames whose features a VTN computes at a time.
_PART_FRAMES = 32
_MOST_PASSES = 200
# (part, output `[crops, ...]`, error) of every part of a video, in order.
_Parts = Iterable[tuple[int, np.ndarray, str | None]]


@dataclasses.dataclass(frozen=True)
class Timeline:
  """What a model says along one video, part after part.

  Attributes:
    path: of the video.
    start: float64 `[parts]`, seconds; likewise `end`.
    probabilities: float32 `[parts, num_classes]`: of a part by itself or, with a VTN, of all of the
      video up to its end; rows of NaN where nothing could be decoded.
    labels: names of the classes, by index.
    error: why the video, or a part of it, could not be read; None if all could.
  """

  path: str
  start: np.ndarray
  end: np.ndarray
  probabilities: np.ndarray
  labels: tuple[str, ...]
  error: str | None = None


@dataclasses.dataclass(frozen=True)
class _Plan:
  """The clips of a timeline: first frames, the seconds at which one clip gives way to the next,
  beginning and end of the video included; the numbers of all frames that dense sampling sees."""

  path: str
  starts: tuple[int, ...] = ()
  edges: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(1))
  frames: np.ndarray | None = None
  error: str | None = None


def _plan(path: str, spec: ClipSpec) -> _Plan:
  try:
    times = frame_times(path)
    record = file_record(path)
    starts, parts = sliding_starts(record, spec)
    frames = frames_shown(record, spec)
  except VideoError as error:
    return _Plan(path, error=str(error))
  # The last frame is shown as long as the others.
  if len(times) > 1:
    frame_seconds = float(np.median(np.diff(times)))
  else:
    frame_seconds = record["fps_denominator"] / (record["fps_numerator"] or 25)
  edges = np.append(times[parts], times[-1] + frame_seconds)
  return _Plan(path, tuple(map(int, starts)), edges, frames)


def _failure(plan: _Plan, errors: dict[int, str]) -> str | None:
  """What went wrong with a video, in one line; None: nothing.

  Args:
    errors: by part.
  """
  if not errors:
    return plan.error
  part, error = next(iter(errors.items()))
  return (
    f"{len(errors)} of {len(plan.starts)} clips can't be decoded; "
    f"from {plan.edges[part]:.1f} s on: {error}"
  )


def iterate_timelines(
  model: nnx.Module,
  paths: Sequence[str],
  preprocessing: Preprocessing,
  *,
  batch_size: int,
  num_workers: int,
  progress: Callable[[Iterator, int], Iterator] = lambda results, total: results,
) -> Iterator[Timeline]:
  """A timeline of each video: clips that follow each other without a gap, the last one whole.

  A VTN sees whole videos: its timeline says what it says of everything so far, the last row being
  its result for the video.

  Frames in memory are those of a few batches, however long a video is.

  Args:
    progress: passes on the results of clips, of which there will be `total`.
  """
  is_vtn = isinstance(model, VTN)
  if is_vtn:
    clip = dataclasses.replace(
      preprocessing.clip, sampling="dense", num_frames=_PART_FRAMES, frame_interval=1
    )
    preprocessing = dataclasses.replace(preprocessing, clip=clip)
  output = "map" if is_vtn else probabilities_of(model.multi_label)
  make_timeline = _growing_timeline if is_vtn else _timeline_of_clips
  plans = [_plan(path, preprocessing.clip) for path in paths]
  items = [Item(plan.path, start) for plan in plans for start in plan.starts]
  results = iterate_outputs(
    model, items, preprocessing, output, batch_size=batch_size, num_workers=num_workers
  )
  results = progress(results, len(items))
  for plan in plans:
    parts = enumerate(itertools.islice(results, len(plan.starts)))
    yield make_timeline(model, plan, ((part, output, error) for part, (_, output, error) in parts))


def _timeline_of_clips(model: nnx.Module, plan: _Plan, parts: _Parts) -> Timeline:
  """Every clip by itself, from the probabilities of its views."""
  labels = class_names(model)
  probabilities = np.full((len(plan.starts), len(labels)), np.nan, np.float32)
  errors = {}
  for part, output, error in parts:
    if error:
      errors[part] = error
    else:
      probabilities[part] = output.mean(0)
  return Timeline(
    plan.path, plan.edges[:-1], plan.edges[1:], probabilities, labels, _failure(plan, errors)
  )


def _growing_timeline(model: VTN, plan: _Plan, parts: _Parts) -> Timeline:
  """All of the video up to the end of each row, from the features of its frames, each once."""
  labels, count = class_names(model), len(plan.starts)
  # Passes grow with the video, so a long one gets no more than so many.
  step = max(-(-count // _MOST_PASSES), 1)
  edges = np.append(np.arange(0, count, step), count)
  probabilities = np.full((len(edges) - 1, len(labels)), np.nan, np.float32)
  streams: list[Stream] = []
  errors = {}
  for part, output, error in parts:
    if error:
      errors[part] = error
    else:
      streams = streams or [Stream(model) for _ in output]
      numbers, features = _new_frames(plan, part, output)
      for stream, crop in zip(streams, features):
        stream.add_features(crop, numbers)
    if part + 1 in edges and streams:
      row = np.mean([stream.probabilities() for stream in streams], axis=0)
      probabilities[part // step] = row
  times = plan.edges[edges]
  return Timeline(plan.path, times[:-1], times[1:], probabilities, labels, _failure(plan, errors))


def _new_frames(plan: _Plan, part: int, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The numbers of the frames of a part, and their features `[crops, frames, width]` out of those
  of its clip, which may begin before the part or be longer than the video."""
  first = part * _PART_FRAMES
  numbers = plan.frames[first : first + _PART_FRAMES]
  skipped = first - plan.starts[part]
  return numbers, features[:, skipped : skipped + len(numbers), 0, 0]
