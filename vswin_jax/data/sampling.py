"""Frame sampling: positions in a video, from 0, of the frames of clips, as in the reference code.

Dense sampling takes `clip_length` frames `frame_interval` apart; uniform sampling takes one frame
from each of `clip_length` equal segments. Videos that are too short repeat from their start.

Time sampling spreads `clip_length` frames over `span` (a fraction) frames of the video. Videos that
are too short repeat their last frame.
"""

import fractions
import math
from collections.abc import Sequence

import numpy as np


def resample(num_frames: int, fps: fractions.Fraction, frame_rate: float) -> np.ndarray:
  """Resamples a video to another frame rate.

  Frame i is source frame floor(i * fps / frame_rate), as in torchvision's `VideoClips`, but without
  rounding errors. A higher rate repeats frames.

  Args:
    num_frames: frames of the source, at least 1.
    fps: frames per second of the source, positive.
    frame_rate: frames per second to resample to, positive; taken as the nearest fraction with a
      denominator of at most a million (29.97002997 is 30000/1001).

  Returns:
    Source frames, int `[resampled frames]`, at least 1.
  """
  step = _step_of(fps, frame_rate)
  count = max(num_frames * step.denominator // step.numerator, 1)
  return np.array([i * step.numerator // step.denominator for i in range(count)])


def native_span(count: int, fps: fractions.Fraction, frame_rate: float) -> fractions.Fraction:
  """Returns how many frames at `fps` last as long as `count` at `frame_rate`; at least 1."""
  return max(count * _step_of(fps, frame_rate), fractions.Fraction(1))


def _step_of(fps: fractions.Fraction, frame_rate: float) -> fractions.Fraction:
  """Returns the frames of the source from one frame at `frame_rate` to the next."""
  rate = fractions.Fraction(frame_rate).limit_denominator(10**6)
  return fps / max(rate, fractions.Fraction(1, 10**6))


def dense_train(
  num_frames: int,
  clip_length: int,
  frame_interval: int,
  random: np.random.Generator,
  num_clips: int = 1,
) -> np.ndarray:
  """Samples dense clips at random in equal ranges of starts: int `[num_clips, clip_length]`."""
  span = clip_length * frame_interval
  range_length = (num_frames - span + 1) // num_clips
  if range_length > 0:
    starts = np.arange(num_clips) * range_length + random.integers(range_length, size=num_clips)
  elif num_frames > max(num_clips, span):
    starts = np.sort(random.integers(num_frames - span + 1, size=num_clips))
  elif range_length == 0:
    ratio = (num_frames - span + 1) / num_clips
    starts = np.around(np.arange(num_clips) * ratio).astype(np.int64)
  else:
    starts = np.zeros(num_clips, np.int64)
  return _frames_from(starts, num_frames, clip_length, frame_interval)


def dense_eval(
  num_frames: int, clip_length: int, frame_interval: int, num_clips: int = 1
) -> np.ndarray:
  """Samples dense clips in the middle of equal ranges of starts: int `[num_clips, clip_length]`."""
  span = clip_length * frame_interval
  range_length = (num_frames - span + 1) / num_clips
  if num_frames >= span:
    starts = (np.arange(num_clips) * range_length + range_length / 2).astype(np.int64)
  else:
    starts = np.zeros(num_clips, np.int64)
  return _frames_from(starts, num_frames, clip_length, frame_interval)


def dense_eval_to_ends(
  num_frames: int, clip_length: int, frame_interval: int, num_clips: int = 1
) -> np.ndarray:
  """Samples dense clips from the first to the last frame: int `[num_clips, clip_length]`.

  As in mmaction2 1.x and, except for the rounding of the starts, torchvision.
  """
  last = max(num_frames - (clip_length - 1) * frame_interval - 1, 0)
  if num_clips == 1:
    starts = np.array([last // 2])
  else:
    starts = np.around(np.arange(num_clips) * (last / (num_clips - 1))).astype(np.int64)
  return _frames_from(starts, num_frames, clip_length, frame_interval)


def _frames_from(starts, num_frames, clip_length, frame_interval) -> np.ndarray:
  frames = starts[:, None] + np.arange(clip_length)[None, :] * frame_interval
  return frames % num_frames


def uniform_train(num_frames: int, clip_length: int, random: np.random.Generator) -> np.ndarray:
  """Samples a random frame from each segment: int `[1, clip_length]`."""
  first, last = _segments(num_frames, clip_length)
  return random.integers(first, last, endpoint=True)[None]


def uniform_eval(num_frames: int, clip_length: int) -> np.ndarray:
  """Samples the middle frame of each segment: int `[1, clip_length]`."""
  first, last = _segments(num_frames, clip_length)
  return ((first + last) // 2)[None]


def _segments(num_frames: int, clip_length: int) -> tuple[np.ndarray, np.ndarray]:
  """First and last frame of each segment; neighbors share their boundary frame."""
  edges = np.around(np.arange(clip_length + 1) * ((num_frames - 1) / clip_length))
  edges = edges.astype(np.int64)
  return edges[:-1], edges[1:]


def time_train(
  num_frames: int, clip_length: int, span: fractions.Fraction, random: np.random.Generator
) -> np.ndarray:
  """Samples a clip with a random start: int `[1, clip_length]`."""
  start = random.integers(max(int(num_frames - span), 0), endpoint=True)
  return time_clips([start], num_frames, clip_length, span)


def time_eval(
  num_frames: int, clip_length: int, span: fractions.Fraction, num_clips: int = 1
) -> np.ndarray:
  """Samples evenly spaced clips: int `[num_clips, clip_length]`.

  They start at i / num_clips of the range of starts, so that none ends with the video.
  """
  last = max(num_frames - span, 0)
  starts = [int(last * i / num_clips) for i in range(num_clips)]
  return time_clips(starts, num_frames, clip_length, span)


def time_parts(num_frames: int, span: fractions.Fraction) -> tuple[np.ndarray, np.ndarray]:
  """Divides a video into consecutive parts with a clip each.

  Returns:
    First frames of the clips and of the parts, int `[clips]` both. The last clip ends with the
    video, so it may start before its part.
  """
  parts = np.array([int(i * span) for i in range(math.ceil(num_frames / span))])
  return np.minimum(parts, max(num_frames - int(span), 0)), parts


def time_clips(
  starts: Sequence[int], num_frames: int, clip_length: int, span: fractions.Fraction
) -> np.ndarray:
  """Returns the frames of clips with the given starts: int `[len(starts), clip_length]`."""
  frames = np.asarray(starts)[:, None] + _spread(span - 1, clip_length)
  return np.minimum(frames, num_frames - 1)


def whole_eval(num_frames: int, clip_length: int, span: fractions.Fraction) -> np.ndarray:
  """Spreads frames over the first `span` of a video, or all of it: int `[1, clip_length]`.

  As in the reference, a shorter video counts one frame more than it has: its last one again.
  """
  frames = _spread(min(fractions.Fraction(num_frames), span - 1), clip_length)
  return np.minimum(frames, num_frames - 1)[None]


def _spread(last: fractions.Fraction, count: int) -> np.ndarray:
  """Returns evenly spaced frames from 0 to `last`, rounded down exactly: int `[count]`."""
  step = last / max(count - 1, 1)
  return np.array([i * step.numerator // step.denominator for i in range(count)])
