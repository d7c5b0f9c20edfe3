"""Clips of videos as uint8 arrays, for training, evaluation and timelines.

Each clip comes with the positions of its frames, int32, counted in frames of the video from the
first frame of the clip, or for timelines from the first frame of the video. Random frame orders
change the frames, not their positions.
"""

import dataclasses
import math
import types
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial

import numpy as np

from vswin_jax.common.checks import check_at_least, check_choices, fields, set_range
from vswin_jax.data import sampling, transforms
from vswin_jax.data.video.decoding import VideoError, decode_frames

FRAME_ORDERS = ("ordered", "shuffled", "single")
SAMPLINGS = ("dense", "dense_to_ends", "uniform", "time")
TRAIN_CROPS = ("resized", "jittered")
ROUNDINGS = ("openmmlab", "pyslowfast")
# Number of crops per clip by name.
CROPS = types.MappingProxyType({"center": 1, "three": 3, "five": 5})


@dataclasses.dataclass(frozen=True)
class ClipSpec:
  """Sampling and cropping of clips; sizes in pixels.

  Attributes:
    num_frames: frames per clip.
    frame_interval: frames of the video from one frame of the clip to the next.
    frame_rate: frames per second to which the video is resampled before dense sampling, and that
      time sampling and `Views.whole_frames` use to turn frames into seconds; 0: that of the video.
    sampling: "dense"; "dense_to_ends" (dense, with evaluation clips from the first to the last
      frame of a video); "uniform" (one frame from each of `num_frames` segments); or "time" (frames
      spread over `num_frames * frame_interval / frame_rate` seconds).
    frame_order: "ordered"; "shuffled" (the same frames in random order) or "single" (one of them,
      repeated), which remove the motion to measure how much a model depends on it.
    size: height and width of a clip.
    train_crop: "resized" (a box of random area and aspect ratio, resized), or "jittered" (a box of
      `size` at a random place in frames of a random size).
    train_short_side: short side of the frames before a resized crop.
    area_range: area of a resized crop, as a fraction of the frame.
    aspect_ratio_range: width over height of a resized crop.
    short_side_range: short side of the frames before a jittered crop.
    flip_probability: probability of a horizontal flip in training.
    rounding: "openmmlab": long sides to the nearest pixel, offsets of center crops down;
      "pyslowfast": long sides down, offsets of center crops up.
  """

  num_frames: int = 32
  frame_interval: int = 2
  frame_rate: float = 0.0
  sampling: str = "dense"
  frame_order: str = "ordered"
  size: int = 224
  train_crop: str = "resized"
  train_short_side: int = 256
  area_range: tuple[float, float] = (0.08, 1.0)
  aspect_ratio_range: tuple[float, float] = (3 / 4, 4 / 3)
  short_side_range: tuple[int, int] = (256, 320)
  flip_probability: float = 0.5
  rounding: str = "openmmlab"

  def __post_init__(self):
    check_choices(SAMPLINGS, **fields(self, "sampling"))
    check_choices(FRAME_ORDERS, **fields(self, "frame_order"))
    check_choices(TRAIN_CROPS, **fields(self, "train_crop"))
    check_choices(ROUNDINGS, **fields(self, "rounding"))
    check_at_least(1, **fields(self, "num_frames", "frame_interval", "size", "train_short_side"))
    if not 0 <= self.frame_rate < math.inf:
      raise ValueError(f"frame_rate must be 0 or a positive number, got {self.frame_rate}")
    for name in ("area_range", "aspect_ratio_range", "short_side_range"):
      set_range(self, name)
    if self.train_crop == "jittered" and self.short_side_range[0] < self.size:
      raise ValueError(
        f"short_side_range must begin at size {self.size} or above for jittered crops; got "
        f"{self.short_side_range}"
      )


@dataclasses.dataclass(frozen=True)
class Views:
  """Views (clips x crops) of each video in evaluation.

  Attributes:
    num_clips: clips along the video; uniform sampling and whole videos have only one.
    crops: "center"; "three" (along the longer side); or "five", the 10x5 protocol of the models for
      384 pixels: "three" on frames resized to a short side of the clip size, the whole frame
      squeezed into the clip size, and "center".
    short_side: short side of the frames before cropping, in pixels.
    whole_frames: if positive, the only clip has this many frames, whatever the sampling, spread
      over the first `whole_frames / frame_rate` seconds of the video, or all of a shorter one.
  """

  num_clips: int = 4
  crops: str = "three"
  short_side: int = 224
  whole_frames: int = 0

  def __post_init__(self):
    check_choices(CROPS, **fields(self, "crops"))
    check_at_least(1, **fields(self, "num_clips", "short_side"))
    check_at_least(0, **fields(self, "whole_frames"))


def check_views(spec: ClipSpec, views: Views, name: str = "views") -> None:
  """Raises ValueError unless `views`, called `name`, crop clips of the size of `spec`."""
  if views.short_side < spec.size or (views.crops == "three" and views.short_side != spec.size):
    relation = "equal to" if views.crops == "three" else "at least"
    raise ValueError(
      f"{views.crops} crops need a short side {relation} the clip size {spec.size}, "
      f"{name}.short_side is {views.short_side}"
    )


def short_side_of_crops(crops: str, size: int, short_side: int) -> int:
  """Returns a short side that fits crops: the clip size for "three", otherwise `short_side`."""
  return size if crops == "three" else short_side


def count_views(spec: ClipSpec, views: Views) -> int:
  """Returns the number of views per video; uniform sampling and whole videos have one clip."""
  num_clips = 1 if spec.sampling == "uniform" or views.whole_frames else views.num_clips
  return num_clips * CROPS[views.crops]


def view_frames(spec: ClipSpec, views: Views) -> int:
  """Returns the number of frames per view."""
  return views.whole_frames or spec.num_frames


def blank_clips(spec: ClipSpec, views: Views) -> tuple[np.ndarray, np.ndarray]:
  """Returns zeros of the shapes and types of `eval_clips`."""
  shape = (count_views(spec, views), view_frames(spec, views))
  return np.zeros((*shape, spec.size, spec.size, 3), np.uint8), np.zeros(shape, np.int32)


def describe_views(spec: ClipSpec, views: Views) -> str:
  """Returns clips x crops, as in "4x3"."""
  crops = CROPS[views.crops]
  return f"{count_views(spec, views) // crops}x{crops}"


def train_clip(
  record: dict, spec: ClipSpec, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
  """Decodes a random clip of a record.

  Returns:
    Frames, uint8 `[num_frames, size, size, 3]`, and their positions relative to the first one,
    int32 `[num_frames]`, always in the order of the video.

  Raises:
    VideoError: the video can't be decoded, or its frame rate is needed and unknown.
  """
  if spec.sampling == "uniform":
    (indices,) = sampling.uniform_train(int(record["num_frames"]), spec.num_frames, random)
  else:
    shown, span = frames_shown(record, spec)
    (indices,) = _clips_at([sampling.random_start(len(shown), span, random)], shown, span, spec)
  order = _reorder(indices, spec, random)
  frames = decode_frames(record["video"], order, _random_cut(spec, random))
  return frames, (indices - indices[0]).astype(np.int32)


def eval_clips(
  record: dict, spec: ClipSpec, views: Views, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
  """Decodes all views of a record, crop-major; raises as `train_clip`.

  Args:
    random: used only for the frame orders "shuffled" and "single".

  Returns:
    Views, uint8 `[views, time, size, size, 3]` with `view_frames` frames each, and the positions of
    their frames relative to the first one of the clip, int32 `[views, time]`.
  """
  num_frames = int(record["num_frames"])
  if views.whole_frames:
    span = _native_span(record, spec, views.whole_frames)
    indices = sampling.whole_clip(num_frames, views.whole_frames, span)
  elif spec.sampling == "uniform":
    indices = sampling.uniform_eval(num_frames, spec.num_frames)
  else:
    shown, span = frames_shown(record, spec)
    if spec.sampling == "dense":
      starts = sampling.middle_starts(len(shown), span, views.num_clips)
    elif spec.sampling == "time":
      starts = sampling.even_starts(len(shown), span, views.num_clips)
    else:
      to_last_frame = span - spec.frame_interval + 1
      starts = sampling.starts_to_ends(len(shown), to_last_frame, views.num_clips)
    indices = _clips_at(starts, shown, span, spec)
  order = np.stack([_reorder(clip, spec, random) for clip in indices])
  return _decode_views(record, order, spec, views, indices - indices[:, :1])


def sliding_clip(
  record: dict, spec: ClipSpec, views: Views, start: int
) -> tuple[np.ndarray, np.ndarray]:
  """Decodes all crops of the clip of a timeline at `start` (see `sliding_starts`).

  The clip has `num_frames` frames whatever the views. With uniform sampling, whose clips otherwise
  span a whole video, they are `frame_interval` apart as in dense sampling. Raises as `train_clip`.

  Returns:
    Crops, uint8 `[crops, num_frames, size, size, 3]`, and the positions of their frames in the
    video, int32 `[crops, num_frames]`.
  """
  indices = _clips_at([start], *frames_shown(record, spec), spec)
  return _decode_views(record, indices, spec, views, indices)


def sliding_starts(record: dict, spec: ClipSpec) -> tuple[np.ndarray, np.ndarray]:
  """Returns consecutive clips that cover a video.

  Returns:
    The first frame of each clip, int `[clips]`, counted after the resampling of dense sampling; and
    the first position in the video that each clip represents, int `[clips]`. The last clip ends
    with the video, so it may start before that position.

  Raises:
    VideoError: the frame rate is needed and unknown.
  """
  shown, span = frames_shown(record, spec)
  starts, parts = sampling.consecutive_starts(len(shown), span)
  return starts, shown[parts]


def frames_shown(record: dict, spec: ClipSpec) -> tuple[np.ndarray, int | Fraction]:
  """Returns the positions of the frames that clips are taken from, and how many a clip spans."""
  num_frames, span = int(record["num_frames"]), spec.num_frames * spec.frame_interval
  if spec.sampling == "time":
    return np.arange(num_frames), _native_span(record, spec, span)
  return sampling.resample(num_frames, _source_step(record, spec)), span


def _clips_at(
  starts: Sequence[int], shown: np.ndarray, span: int | Fraction, spec: ClipSpec
) -> np.ndarray:
  """Returns the frames of clips with the given starts: int `[len(starts), num_frames]`."""
  if spec.sampling == "time":
    return sampling.time_clips(starts, len(shown), spec.num_frames, span)
  return shown[sampling.dense_clips(starts, len(shown), spec.num_frames, spec.frame_interval)]


def _native_span(record: dict, spec: ClipSpec, count: int) -> Fraction:
  """Returns how many frames of the video last as long as `count` at the frame rate of `spec`."""
  return max(count * _source_step(record, spec), Fraction(1))


def _source_step(record: dict, spec: ClipSpec) -> Fraction:
  """Returns the frames of the video from one frame at the frame rate of `spec` to the next."""
  if not spec.frame_rate:
    return Fraction(1)
  numerator, denominator = int(record["fps_numerator"]), int(record["fps_denominator"])
  if numerator <= 0 or denominator <= 0:
    raise VideoError(
      f"the video has no frame rate, which is needed to resample it to {spec.frame_rate:g} frames/s"
    )
  return sampling.source_step(Fraction(numerator, denominator), spec.frame_rate)


def _reorder(indices: np.ndarray, spec: ClipSpec, random: np.random.Generator) -> np.ndarray:
  if spec.frame_order == "shuffled":
    return random.permutation(indices)
  if spec.frame_order == "single":
    return np.full_like(indices, random.choice(indices))
  return indices


def _random_cut(spec: ClipSpec, random: np.random.Generator) -> Callable[[np.ndarray], np.ndarray]:
  """Returns a function that crops and flips frames `[height, width, 3]`, all of them alike.

  Box and flip are drawn at the first frame.
  """
  jittered = spec.train_crop == "jittered"
  side = round(random.uniform(*spec.short_side_range)) if jittered else spec.train_short_side
  drawn = None

  def cut(frame: np.ndarray) -> np.ndarray:
    nonlocal drawn
    frame = _resize(frame, spec, side)
    height, width, _ = frame.shape
    if drawn is None:
      if jittered:
        box = transforms.random_crop_box(height, width, spec.size, random)
      else:
        box = transforms.random_resized_crop_box(
          height, width, random, spec.area_range, spec.aspect_ratio_range
        )
      drawn = height, width, box, random.random() < spec.flip_probability
    *size, box, flipped = drawn
    if [height, width] != size:
      raise VideoError("the frames of the video differ in size")
    frame = transforms.resize(transforms.crop(frame, box), spec.size, spec.size)
    return transforms.flip(frame) if flipped else frame

  return cut


def _decode_views(
  record: dict, indices: np.ndarray, spec: ClipSpec, views: Views, positions: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Decodes and crops the frames `indices` `[clips, time]`, and repeats `positions` per crop."""
  resize = partial(_resize, spec=spec, short_side=views.short_side)
  frames = decode_frames(record["video"], indices.ravel(), resize)
  num_crops, size = CROPS[views.crops], spec.size
  cut = np.empty((num_crops, len(frames), size, size, 3), np.uint8)
  for number, frame in enumerate(frames):
    for crop, pixels in enumerate(_cut(frame, spec, views.crops)):
      cut[crop, number] = pixels
  clips = cut.reshape(-1, indices.shape[1], size, size, 3)
  return clips, np.tile(positions, (num_crops, 1)).astype(np.int32)


def _cut(frame: np.ndarray, spec: ClipSpec, crops: str) -> list[np.ndarray]:
  """Returns the crops of a frame uint8 `[height, width, 3]`, each uint8 `[size, size, 3]`."""
  arguments = (*frame.shape[:2], spec.size, spec.rounding == "pyslowfast")
  if crops == "center":
    return [transforms.crop(frame, transforms.center_crop_box(*arguments))]
  if crops == "three":
    return [transforms.crop(frame, box) for box in transforms.three_crop_boxes(*arguments)]
  squeezed = transforms.resize(frame, spec.size, spec.size)
  smaller = _resize(frame, spec, spec.size)
  return [*_cut(smaller, spec, "three"), squeezed, *_cut(frame, spec, "center")]


def central_view(frame: np.ndarray, spec: ClipSpec, views: Views) -> np.ndarray:
  """Resizes and center-crops a frame uint8 `[height, width, 3]` to uint8 `[size, size, 3]`."""
  return _cut(_resize(frame, spec, views.short_side), spec, "center")[0]


def _resize(frame: np.ndarray, spec: ClipSpec, short_side: int) -> np.ndarray:
  return transforms.resize_short_side(frame, short_side, spec.rounding == "pyslowfast")
