"""From a record to the uint8 clips that a model sees, for training and for evaluation."""

import dataclasses
import fractions
import math
import types
from collections.abc import Collection
from functools import partial

import numpy as np

from vswin_jax.data import sampling, transforms
from vswin_jax.data.decoding import VideoError, decode_frames

FRAME_ORDERS = ("ordered", "shuffled", "single")
SAMPLINGS = ("dense", "dense_to_ends", "uniform")
# Name -> crops of each clip.
CROPS = types.MappingProxyType({"center": 1, "three": 3})


@dataclasses.dataclass(frozen=True)
class ClipSpec:
  """How clips are cut out of videos; sizes in pixels.

  Attributes:
    num_frames: frames of a clip.
    frame_interval: frames of the video from one frame of the clip to the next (dense sampling).
    frame_rate: frames per second to which the video is resampled before dense sampling; 0: its own
      frames.
    sampling: "dense"; "dense_to_ends" (the same, but the clips of an evaluation reach from the
      beginning of a video to its end); or "uniform" (one frame of each of `num_frames` segments).
    frame_order: "ordered"; "shuffled" (the same frames in random order) and "single" (one of them,
      repeated) take the motion away, to show what a model owes to it.
    size: height and width of a clip.
    train_short_side: short side of the frames before the random resized crop of training.
    area_range: of that crop, as a share of the frame.
    aspect_ratio_range: of that crop, width over height.
    flip_probability: of a horizontal flip in training.
  """

  num_frames: int = 32
  frame_interval: int = 2
  frame_rate: float = 0.0
  sampling: str = "dense"
  frame_order: str = "ordered"
  size: int = 224
  train_short_side: int = 256
  area_range: tuple[float, float] = (0.08, 1.0)
  aspect_ratio_range: tuple[float, float] = (3 / 4, 4 / 3)
  flip_probability: float = 0.5

  def __post_init__(self):
    _check_choice("sampling", self.sampling, SAMPLINGS)
    _check_choice("frame_order", self.frame_order, FRAME_ORDERS)
    check_at_least(
      1,
      num_frames=self.num_frames,
      frame_interval=self.frame_interval,
      size=self.size,
      train_short_side=self.train_short_side,
    )
    if not 0 <= self.frame_rate < math.inf:
      raise ValueError(f"frame_rate must be 0 or a positive number, got {self.frame_rate}")
    for name in ("area_range", "aspect_ratio_range"):
      low_high = tuple(getattr(self, name))
      if len(low_high) != 2 or not 0 < low_high[0] <= low_high[1]:
        raise ValueError(f"{name} must be (low, high) with 0 < low <= high; got {low_high}")
      object.__setattr__(self, name, low_high)


@dataclasses.dataclass(frozen=True)
class Views:
  """The views of each video in an evaluation.

  Attributes:
    num_clips: clips along the video; uniform sampling has only one.
    crops: "center", or "three" (along the longer side).
    short_side: of the frames before cropping, in pixels.
  """

  num_clips: int = 4
  crops: str = "three"
  short_side: int = 224

  def __post_init__(self):
    _check_choice("crops", self.crops, CROPS)
    check_at_least(1, num_clips=self.num_clips, short_side=self.short_side)


def _check_choice(name: str, value: str, known: Collection[str]) -> None:
  if value not in known:
    raise ValueError(f"{name} must be one of {', '.join(known)}; got {value!r}")


def check_at_least(smallest: int, **values: int) -> None:
  """Raises ValueError naming the first of the values that is too small."""
  for name, value in values.items():
    if value < smallest:
      raise ValueError(f"{name} must be at least {smallest}, got {value}")


def check_views(spec: ClipSpec, views: Views) -> None:
  """Raises ValueError if clips of this size can't be cropped from frames of that."""
  if views.short_side < spec.size or (views.crops == "three" and views.short_side != spec.size):
    relation = "equal to" if views.crops == "three" else "at least"
    raise ValueError(
      f"{views.crops} crops need a short side {relation} the clip size {spec.size}, "
      f"got {views.short_side}"
    )


def count_clips(spec: ClipSpec, views: Views) -> int:
  """Clips of one video; uniform sampling has only one."""
  return 1 if spec.sampling == "uniform" else views.num_clips


def count_views(spec: ClipSpec, views: Views) -> int:
  """Views of one video."""
  return count_clips(spec, views) * CROPS[views.crops]


def describe_views(spec: ClipSpec, views: Views) -> str:
  """Clips x crops, as in "4x3"."""
  return f"{count_clips(spec, views)}x{CROPS[views.crops]}"


def train_clip(record: dict, spec: ClipSpec, random: np.random.Generator) -> np.ndarray:
  """One random clip of a record: uint8 `[num_frames, size, size, 3]`.

  Raises:
    VideoError: the video can't be decoded.
  """
  if spec.sampling == "uniform":
    indices = sampling.uniform_train(int(record["num_frames"]), spec.num_frames, random)
  else:
    shown = _resample(record, spec)
    indices = sampling.dense_train(len(shown), spec.num_frames, spec.frame_interval, random)
    indices = shown[indices]
  frames = decode_frames(
    record["video"],
    _reorder(indices[0], spec, random),
    partial(transforms.resize_short_side, size=spec.train_short_side),
  )
  box = transforms.random_resized_crop_box(
    *frames.shape[1:3], random, spec.area_range, spec.aspect_ratio_range
  )
  frames = transforms.resize(transforms.crop(frames, box), spec.size, spec.size)
  if random.random() < spec.flip_probability:
    frames = frames[:, :, ::-1]
  return frames


def eval_clips(
  record: dict, spec: ClipSpec, views: Views, random: np.random.Generator
) -> np.ndarray:
  """All views of a record, crop-major: uint8 `[views, num_frames, size, size, 3]`.

  `random` serves only the frame orders "shuffled" and "single".

  Raises:
    VideoError: the video can't be decoded.
  """
  if spec.sampling == "uniform":
    indices = sampling.uniform_eval(int(record["num_frames"]), spec.num_frames)
  else:
    shown = _resample(record, spec)
    rule = sampling.dense_eval if spec.sampling == "dense" else sampling.dense_eval_to_ends
    indices = shown[rule(len(shown), spec.num_frames, spec.frame_interval, views.num_clips)]
  return _decode_views(
    record, np.stack([_reorder(clip, spec, random) for clip in indices]), spec, views
  )


def sliding_clip(record: dict, spec: ClipSpec, views: Views, start: int) -> np.ndarray:
  """Every crop of one clip of a timeline: uint8 `[crops, num_frames, size, size, 3]`.

  Its frames are `frame_interval` apart for models of uniform sampling too, whose clips otherwise
  span a whole video.

  Args:
    start: first frame, counted as in `sliding_starts`.

  Raises:
    VideoError: the video can't be decoded.
  """
  shown = _resample(record, spec)
  indices = start + np.arange(spec.num_frames) * spec.frame_interval
  return _decode_views(record, shown[indices % len(shown)][None], spec, views)


def sliding_starts(record: dict, spec: ClipSpec) -> tuple[np.ndarray, np.ndarray]:
  """The clips that follow each other through a video.

  Returns:
    int `[clips]` both: the first frame of each clip, counted after resampling; and the position in
    the video from which on the clip stands for it. The last clip ends with the video, so it may
    begin before its part does.

  Raises:
    VideoError: no frame rate is known and `spec` asks for one.
  """
  shown = _resample(record, spec)
  span = spec.num_frames * spec.frame_interval
  parts = np.arange(0, len(shown), span)
  return np.minimum(parts, max(len(shown) - span, 0)), shown[parts]


def _decode_views(record: dict, indices: np.ndarray, spec: ClipSpec, views: Views) -> np.ndarray:
  """Decodes clips, frames `[clips, num_frames]`, and cuts out every crop, crop-major."""
  frames = decode_frames(
    record["video"],
    indices.ravel(),
    partial(transforms.resize_short_side, size=views.short_side),
  )
  height, width = frames.shape[1:3]
  if views.crops == "three":
    boxes = transforms.three_crop_boxes(height, width, spec.size)
  else:
    boxes = [transforms.center_crop_box(height, width, spec.size)]
  clips = frames.reshape(len(indices), spec.num_frames, height, width, 3)
  return np.concatenate([np.stack([transforms.crop(clip, box) for clip in clips]) for box in boxes])


def _resample(record: dict, spec: ClipSpec) -> np.ndarray:
  """Positions in the video of the frames that dense sampling sees."""
  num_frames = int(record["num_frames"])
  if not spec.frame_rate:
    return np.arange(num_frames)
  numerator, denominator = int(record["fps_numerator"]), int(record["fps_denominator"])
  if numerator <= 0 or denominator <= 0:
    raise VideoError(f"no frame rate is known to resample to {spec.frame_rate:g} frames/s from")
  return sampling.resample(num_frames, fractions.Fraction(numerator, denominator), spec.frame_rate)


def _reorder(indices: np.ndarray, spec: ClipSpec, random: np.random.Generator) -> np.ndarray:
  if spec.frame_order == "shuffled":
    return random.permutation(indices)
  if spec.frame_order == "single":
    return np.full_like(indices, random.choice(indices))
  return indices
