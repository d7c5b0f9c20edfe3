"""Frame sampling: positions in a video, from 0, of the frames of clips, as in the reference code.

Dense sampling takes `clip_length` frames `frame_interval` apart; uniform sampling takes one frame
from each of `clip_length` equal segments. Videos that are too short repeat from their start. Time
sampling spreads `clip_length` frames over `span` (a fraction) frames of the video. Videos that are
too short repeat their last frame.
"""

from collections.abc import Sequence
from fractions import Fraction

import numpy as np


def source_step(fps: Fraction, frame_rate: float) -> Fraction:
  """Returns the number of frames at `fps` per frame at `frame_rate`, both positive.

  `frame_rate` is taken as the nearest fraction with a denominator of at most a million (29.97002997
  is 30000/1001).
  """
  rate = Fraction(frame_rate).limit_denominator(10**6)
  return fps / max(rate, Fraction(1, 10**6))


def resample(num_frames: int, step: int | Fraction) -> np.ndarray:
  """Returns the frames of a video at another frame rate: int `[resampled frames]`, at least 1.

  Frame i is source frame floor(i * step), as in torchvision's `VideoClips`, but without rounding
  errors. A step below 1 repeats frames.
  """
  return _multiples(step, max(int(num_frames // step), 1))


def _multiples(step: int | Fraction, count: int) -> np.ndarray:
  """Returns `count` multiples of a step from 0 on, rounded down exactly."""
  if step.numerator * count < 2**63:
    return np.arange(count) * step.numerator // step.denominator
  return np.array([i * step.numerator // step.denominator for i in range(count)])


def random_start(num_frames: int, span: int | Fraction, random: np.random.Generator) -> int:
  """Draws the first frame of a clip that spans `span` frames."""
  return int(random.integers(max(int(num_frames - span), 0), endpoint=True))


def middle_starts(num_frames: int, span: int, num_clips: int) -> np.ndarray:
  """Returns the middles of equal ranges of starts: int `[num_clips]`."""
  step = max(num_frames - span + 1, 0) / num_clips
  return (np.arange(num_clips) * step + step / 2).astype(np.int64)


def starts_to_ends(num_frames: int, span: int, num_clips: int) -> np.ndarray:
  """Returns starts of clips from the first to the last frame: int `[num_clips]`.

  As in mmaction2 1.x and, except for the rounding, torchvision.
  """
  last = max(num_frames - span, 0)
  if num_clips == 1:
    return np.array([last // 2])
  return np.around(np.arange(num_clips) * (last / (num_clips - 1))).astype(np.int64)


def even_starts(num_frames: int, span: Fraction, num_clips: int) -> np.ndarray:
  """Returns starts i / num_clips of the range of starts, so that no clip ends with the video."""
  return _multiples(max(num_frames - span, Fraction(0)) / num_clips, num_clips)


def consecutive_starts(num_frames: int, span: int | Fraction) -> tuple[np.ndarray, np.ndarray]:
  """Divides a video into consecutive parts of `span` frames with a clip each.

  Returns:
    First frames of the clips and of the parts, int `[clips]` both. The last clip ends with the
    video, so it may start before its part.
  """
  parts = _multiples(span, -(-num_frames // span))
  return np.minimum(parts, max(num_frames - int(span), 0)), parts


def dense_clips(
  starts: Sequence[int], num_frames: int, clip_length: int, frame_interval: int
) -> np.ndarray:
  """Returns the frames of dense clips: int `[len(starts), clip_length]`."""
  return (np.asarray(starts)[:, None] + np.arange(clip_length) * frame_interval) % num_frames


def time_clips(
  starts: Sequence[int], num_frames: int, clip_length: int, span: Fraction
) -> np.ndarray:
  """Returns the frames of clips of time sampling: int `[len(starts), clip_length]`."""
  frames = _multiples((span - 1) / max(clip_length - 1, 1), clip_length)
  return np.minimum(np.asarray(starts)[:, None] + frames, num_frames - 1)


def whole_clip(num_frames: int, clip_length: int, span: Fraction) -> np.ndarray:
  """Spreads frames over the first `span` of a video, or all of it: int `[1, clip_length]`.

  As in the reference, a shorter video counts one frame more than it has: its last one again.
  """
  return time_clips([0], num_frames, clip_length, min(Fraction(num_frames + 1), span))


def uniform_train(num_frames: int, clip_length: int, random: np.random.Generator) -> np.ndarray:
  """Draws a random frame from each segment: int `[1, clip_length]`."""
  edges = _segment_edges(num_frames, clip_length)
  return random.integers(edges[:-1], edges[1:], endpoint=True)[None]


def uniform_eval(num_frames: int, clip_length: int) -> np.ndarray:
  """Returns the middle frame of each segment: int `[1, clip_length]`."""
  edges = _segment_edges(num_frames, clip_length)
  return (edges[:-1] + edges[1:])[None] // 2


def _segment_edges(num_frames: int, clip_length: int) -> np.ndarray:
  """Returns the frames at which segments begin and end; neighbors share their boundary frame."""
  edges = np.around(np.arange(clip_length + 1) * ((num_frames - 1) / clip_length))
  return edges.astype(np.int64)
