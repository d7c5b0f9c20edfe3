"""Whole videos: what a model says along them."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from flax import nnx

from vswin_jax.data.clips import CROPS, ClipSpec, frames_shown, sliding_starts
from vswin_jax.data.decoding import VideoError, frame_times
from vswin_jax.data.files import Item, file_record
from vswin_jax.data.preprocessing import Preprocessing
from vswin_jax.models.vtn import VTN
from vswin_jax.prediction import class_names, iterate_outputs
from vswin_jax.streaming import Stream

# Frames whose features a VTN computes at a time.
_PART_FRAMES = 32
_MOST_PASSES = 200


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
  if isinstance(model, VTN):
    yield from _iterate_growing(
      model,
      paths,
      preprocessing,
      batch_size=batch_size,
      num_workers=num_workers,
      progress=progress,
    )
    return
  labels = class_names(model)
  plans = [_plan(path, preprocessing.clip) for path in paths]
  items = [Item(plan.path, start) for plan in plans for start in plan.starts]
  results = iterate_outputs(
    model, items, preprocessing, "probabilities", batch_size=batch_size, num_workers=num_workers
  )
  results = progress(results, len(items))
  for plan in plans:
    probabilities = np.full((len(plan.starts), len(labels)), np.nan, np.float32)
    errors = {}
    for clip, (_, output, error) in enumerate(itertools.islice(results, len(plan.starts))):
      if error:
        errors[clip] = error
      else:
        probabilities[clip] = output.mean(0)
    yield Timeline(
      plan.path, plan.edges[:-1], plan.edges[1:], probabilities, labels, _failure(plan, errors)
    )


def _iterate_growing(
  model: VTN,
  paths: Sequence[str],
  preprocessing: Preprocessing,
  *,
  batch_size: int,
  num_workers: int,
  progress: Callable[[Iterator, int], Iterator],
) -> Iterator[Timeline]:
  """Timelines of a VTN: features part by part, each frame once, and a pass over all so far."""
  labels = class_names(model)
  clip = dataclasses.replace(
    preprocessing.clip, sampling="dense", num_frames=_PART_FRAMES, frame_interval=1
  )
  preprocessing = dataclasses.replace(preprocessing, clip=clip)
  plans = [_plan(path, clip) for path in paths]
  items = [Item(plan.path, start) for plan in plans for start in plan.starts]
  results = iterate_outputs(
    model, items, preprocessing, "map", batch_size=batch_size, num_workers=num_workers
  )
  results = progress(results, len(items))
  for plan in plans:
    streams = [Stream(model) for _ in range(CROPS[preprocessing.views.crops])]
    count = len(plan.starts)
    # Passes grow with the video, so a long one gets no more than so many.
    step = max(-(-count // _MOST_PASSES), 1)
    edges = np.append(np.arange(0, count, step), count)
    probabilities = np.full((len(edges) - 1, len(labels)), np.nan, np.float32)
    errors = {}
    for part, (_, features, error) in enumerate(itertools.islice(results, count)):
      if error:
        errors[part] = error
      else:
        numbers, new = _new_frames(plan, part, features)
        for stream, crop in zip(streams, new):
          stream.add_features(crop, numbers)
      if part + 1 in edges and streams[0].num_frames:
        row = np.mean([stream.probabilities() for stream in streams], axis=0)
        probabilities[part // step] = row
    times = plan.edges[edges]
    yield Timeline(plan.path, times[:-1], times[1:], probabilities, labels, _failure(plan, errors))


def _new_frames(plan: _Plan, part: int, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The numbers of the frames of a part, and their features `[crops, frames, width]` out of those
  of its clip, which may begin before the part or be longer than the video."""
  first = part * _PART_FRAMES
  numbers = plan.frames[first : first + _PART_FRAMES]
  skipped = first - plan.starts[part]
  return numbers, features[:, skipped : skipped + len(numbers), 0, 0]
