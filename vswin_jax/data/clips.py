"""From a record to the uint8 clips that a model sees, for training and for evaluation.

With every clip come the positions of its frames: int32, frames of the video from the first frame of
the clip on. Random frame orders change the pictures alone, not the positions. The clips of a
timeline are parts of one whole: their positions count from the beginning of the video.
"""

import dataclasses
import fractions
import math
import types
from collections.abc import Callable
from functools import partial

import numpy as np

from vswin_jax.common.checks import check_at_least, check_choices, fields, set_range
from vswin_jax.data import sampling, transforms
from vswin_jax.data.video.decoding import VideoError, decode_frames

FRAME_ORDERS = ("ordered", "shuffled", "single")
SAMPLINGS = ("dense", "dense_to_ends", "uniform", "time")
TRAIN_CROPS = ("resized", "jittered")
ROUNDINGS = ("openmmlab", "pyslowfast")
# Name -> crops of each clip.
CROPS = types.MappingProxyType({"center": 1, "three": 3, "five": 5})


@dataclasses.dataclass(frozen=True)
class ClipSpec:
  """How clips are cut out of videos; sizes in pixels.

  Attributes:
    num_frames: frames of a clip.
    frame_interval: frames of the video from one frame of the clip to the next (dense sampling).
    frame_rate: frames per second to which the video is resampled before dense sampling, and by
      which time sampling and `Views.whole_frames` turn frames into seconds; 0: the video's own.
    sampling: "dense"; "dense_to_ends" (the same, but the clips of an evaluation reach from the
      beginning of a video to its end); "uniform" (one frame of each of `num_frames` segments); or
      "time" (frames spread over `num_frames * frame_interval / frame_rate` seconds).
    frame_order: "ordered"; "shuffled" (the same frames in random order) and "single" (one of them,
      repeated) take the motion away, to show what a model owes to it.
    size: height and width of a clip.
    train_crop: of training; "resized" (a box of random area and aspect ratio, resized), or
      "jittered" (frames of a random size, a box of `size` at a random place).
    train_short_side: short side of the frames before a resized crop.
    area_range: of a resized crop, as a share of the frame.
    aspect_ratio_range: of a resized crop, width over height.
    short_side_range: of the frames before a jittered crop.
    flip_probability: of a horizontal flip in training.
    rounding: of fractions of pixels, as in the code that a model comes from. "openmmlab": the long
      side to the nearest pixel, crops in the middle down; "pyslowfast": the long side down, crops
      in the middle up.
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
  """The views of each video in an evaluation.

  Attributes:
    num_clips: clips along the video; uniform sampling and whole videos have only one.
    crops: "center"; "three" (along the longer side); or "five": those three from frames resized
      once more, to a short side of the clip size, the whole frame squeezed into the clip size, and
      the center of the frames of `short_side` (the 10x5 protocol of the models for 384 pixels).
    short_side: of the frames before cropping, in pixels.
    whole_frames: if positive, the one clip has this many frames, whatever the sampling, spread over
      the first `whole_frames / frame_rate` seconds of the video or, if it is shorter, all of it.
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
  """Raises ValueError, which calls the views by `name`, if clips of this size can't be cropped from
  frames of that."""
  if views.short_side < spec.size or (views.crops == "three" and views.short_side != spec.size):
    relation = "equal to" if views.crops == "three" else "at least"
    raise ValueError(
      f"{views.crops} crops need a short side {relation} the clip size {spec.size}, "
      f"{name}.short_side is {views.short_side}"
    )


def short_side_of_crops(crops: str, size: int, short_side: int) -> int:
  """Returns a short side that fits crops: the clip size for "three", otherwise `short_side`."""
  return size if crops == "three" else short_side


def count_clips(spec: ClipSpec, views: Views) -> int:
  """Clips of one video; uniform sampling and whole videos have only one."""
  return 1 if spec.sampling == "uniform" or views.whole_frames else views.num_clips


def count_views(spec: ClipSpec, views: Views) -> int:
  """Views of one video."""
  return count_clips(spec, views) * CROPS[views.crops]


def view_frames(spec: ClipSpec, views: Views) -> int:
  """Frames of each view of a video."""
  return views.whole_frames or spec.num_frames


def describe_views(spec: ClipSpec, views: Views) -> str:
  """Clips x crops, as in "4x3"."""
  return f"{count_clips(spec, views)}x{CROPS[views.crops]}"


def train_clip(
  record: dict, spec: ClipSpec, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
  """One random clip of a record.

  Returns:
    Frames, uint8 `[num_frames, size, size, 3]`, and their positions, int32 `[num_frames]`, counted
    from the first one on in the order of the video, whatever the frame order.

  Raises:
    VideoError: the video can't be decoded, or no frame rate is known and `spec` asks for one.
  """
  num_frames = int(record["num_frames"])
  if spec.sampling == "uniform":
    indices = sampling.uniform_train(num_frames, spec.num_frames, random)
  elif spec.sampling == "time":
    indices = sampling.time_train(num_frames, spec.num_frames, _clip_span(record, spec), random)
  else:
    shown = frames_shown(record, spec)
    indices = sampling.dense_train(len(shown), spec.num_frames, spec.frame_interval, random)
    indices = shown[indices]
  order = _reorder(indices[0], spec, random)
  frames = decode_frames(record["video"], order, _RandomCut(spec, random))
  return frames, _positions(indices)[0]


def eval_clips(
  record: dict, spec: ClipSpec, views: Views, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
  """All views of a record, crop-major.

  `random` serves only the frame orders "shuffled" and "single".

  Returns:
    Views, uint8 `[views, time, size, size, 3]` with the time of `view_frames`, and the positions of
    their frames, int32 `[views, time]`, counted as in `train_clip`, for each clip anew.

  Raises:
    VideoError: as `train_clip`.
  """
  num_frames = int(record["num_frames"])
  if views.whole_frames:
    span = _native_span(record, spec, views.whole_frames)
    indices = sampling.whole_eval(num_frames, views.whole_frames, span)
  elif spec.sampling == "uniform":
    indices = sampling.uniform_eval(num_frames, spec.num_frames)
  elif spec.sampling == "time":
    span = _clip_span(record, spec)
    indices = sampling.time_eval(num_frames, spec.num_frames, span, views.num_clips)
  else:
    shown = frames_shown(record, spec)
    rule = sampling.dense_eval if spec.sampling == "dense" else sampling.dense_eval_to_ends
    indices = shown[rule(len(shown), spec.num_frames, spec.frame_interval, views.num_clips)]
  order = np.stack([_reorder(clip, spec, random) for clip in indices])
  return _decode_views(record, order, spec, views), _for_crops(_positions(indices), views)


def sliding_clip(
  record: dict, spec: ClipSpec, views: Views, start: int
) -> tuple[np.ndarray, np.ndarray]:
  """Every crop of one clip of a timeline.

  It has `num_frames` frames whatever the views. For models of uniform sampling, whose clips
  otherwise span a whole video, they are `frame_interval` apart as those of dense sampling.

  Args:
    start: first frame, counted as in `sliding_starts`.

  Returns:
    Crops, uint8 `[crops, num_frames, size, size, 3]`, and the positions of their frames in the
    video, int32 `[crops, num_frames]`: not counted from the start of the clip as in `eval_clips`,
    because the clips are parts of one timeline, where each has its place.

  Raises:
    VideoError: as `train_clip`.
  """
  if spec.sampling == "time":
    num_frames, span = int(record["num_frames"]), _clip_span(record, spec)
    indices = sampling.time_clips([start], num_frames, spec.num_frames, span)
  else:
    shown = frames_shown(record, spec)
    indices = start + np.arange(spec.num_frames) * spec.frame_interval
    indices = shown[indices % len(shown)][None]
  return _decode_views(record, indices, spec, views), _for_crops(indices, views)


def sliding_starts(record: dict, spec: ClipSpec) -> tuple[np.ndarray, np.ndarray]:
  """The clips that follow each other through a video.

  Returns:
    int `[clips]` both: the first frame of each clip, counted after resampling (which time sampling
    does without); and the position in the video from which on the clip stands for it. The last clip
    ends with the video, so it may begin before its part does.

  Raises:
    VideoError: no frame rate is known and `spec` asks for one.
  """
  if spec.sampling == "time":
    return sampling.time_parts(int(record["num_frames"]), _clip_span(record, spec))
  shown = frames_shown(record, spec)
  span = spec.num_frames * spec.frame_interval
  parts = np.arange(0, len(shown), span)
  return np.minimum(parts, max(len(shown) - span, 0)), shown[parts]


class _RandomCut:
  """Cuts one random box out of the frames of a clip, and mirrors all of them or none.

  The box is drawn when the first frame shows the size of all. Called with one frame after the
  other, uint8 `[height, width, 3]`, it returns uint8 `[size, size, 3]`.
  """

  def __init__(self, spec: ClipSpec, random: np.random.Generator):
    self._spec, self._random = spec, random
    jittered = spec.train_crop == "jittered"
    side = round(random.uniform(*spec.short_side_range)) if jittered else spec.train_short_side
    self._resize = _resizer(spec, side)
    self._shape: tuple[int, ...] | None = None

  def __call__(self, frame: np.ndarray) -> np.ndarray:
    frame = self._resize(frame)
    if self._shape is None:
      self._shape = frame.shape
      self._box = self._draw_box(*frame.shape[:2])
      self._flip = self._random.random() < self._spec.flip_probability
    if frame.shape != self._shape:
      raise VideoError("the frames of the video differ in size")
    size = self._spec.size
    frame = transforms.resize(transforms.crop(frame, self._box), size, size)
    return transforms.flip(frame) if self._flip else frame

  def _draw_box(self, height: int, width: int) -> transforms.Box:
    spec = self._spec
    if spec.train_crop == "jittered":
      return transforms.random_crop_box(height, width, spec.size, self._random)
    return transforms.random_resized_crop_box(
      height, width, self._random, spec.area_range, spec.aspect_ratio_range
    )


def _decode_views(record: dict, indices: np.ndarray, spec: ClipSpec, views: Views) -> np.ndarray:
  """Decodes clips, frames `[clips, time]`, and cuts out every crop, crop-major."""
  frames = decode_frames(record["video"], indices.ravel(), _resizer(spec, views.short_side))
  num_crops, size = CROPS[views.crops], spec.size
  cut = np.empty((num_crops, len(frames), size, size, 3), np.uint8)
  for number, frame in enumerate(frames):
    for crop, pixels in enumerate(_cut(frame, spec, views.crops)):
      cut[crop, number] = pixels
  return cut.reshape(-1, indices.shape[1], size, size, 3)


def _cut(frame: np.ndarray, spec: ClipSpec, crops: str) -> list[np.ndarray]:
  """The crops of one frame uint8 `[height, width, 3]`, each uint8 `[size, size, 3]`."""
  arguments = (*frame.shape[:2], spec.size, _is_pyslowfast(spec))
  if crops == "center":
    return [transforms.crop(frame, transforms.center_crop_box(*arguments))]
  if crops == "three":
    return [transforms.crop(frame, box) for box in transforms.three_crop_boxes(*arguments)]
  smaller = _resizer(spec, spec.size)(frame)
  squeezed = transforms.resize(frame, spec.size, spec.size)
  return [*_cut(smaller, spec, "three"), squeezed, *_cut(frame, spec, "center")]


def central_view(frame: np.ndarray, spec: ClipSpec, views: Views) -> np.ndarray:
  """A frame uint8 `[height, width, 3]` as an evaluation with one central crop sees it: uint8
  `[size, size, 3]`."""
  return _cut(_resizer(spec, views.short_side)(frame), spec, "center")[0]


def _resizer(spec: ClipSpec, short_side: int) -> Callable[[np.ndarray], np.ndarray]:
  return partial(transforms.resize_short_side, size=short_side, round_down=_is_pyslowfast(spec))


def _is_pyslowfast(spec: ClipSpec) -> bool:
  return spec.rounding == "pyslowfast"


def _positions(indices: np.ndarray) -> np.ndarray:
  """Frames `[clips, time]` of a video, counted from the first one of each clip: int32."""
  return (indices - indices[:, :1]).astype(np.int32)


def _for_crops(positions: np.ndarray, views: Views) -> np.ndarray:
  """Positions `[clips, time]` of the frames of all views, crop-major: int32 `[views, time]`."""
  return np.tile(positions, (CROPS[views.crops], 1)).astype(np.int32)


def frames_shown(record: dict, spec: ClipSpec) -> np.ndarray:
  """Positions in the video of the frames that dense sampling sees."""
  num_frames = int(record["num_frames"])
  if not spec.frame_rate:
    return np.arange(num_frames)
  return sampling.resample(num_frames, _frames_per_second(record, spec), spec.frame_rate)


def _clip_span(record: dict, spec: ClipSpec) -> fractions.Fraction:
  """Frames of the video that a clip of time sampling spans."""
  return _native_span(record, spec, spec.num_frames * spec.frame_interval)


def _native_span(record: dict, spec: ClipSpec, count: int) -> fractions.Fraction:
  """Frames of the video that take as long as `count` frames at the frame rate of `spec`."""
  if not spec.frame_rate:
    return fractions.Fraction(count)
  return sampling.native_span(count, _frames_per_second(record, spec), spec.frame_rate)


def _frames_per_second(record: dict, spec: ClipSpec) -> fractions.Fraction:
  numerator, denominator = int(record["fps_numerator"]), int(record["fps_denominator"])
  if numerator <= 0 or denominator <= 0:
    raise VideoError(f"no frame rate is known to resample to {spec.frame_rate:g} frames/s from")
  return fractions.Fraction(numerator, denominator)


def _reorder(indices: np.ndarray, spec: ClipSpec, random: np.random.Generator) -> np.ndarray:
  if spec.frame_order == "shuffled":
    return random.permutation(indices)
  if spec.frame_order == "single":
    return np.full_like(indices, random.choice(indices))
  return indices
