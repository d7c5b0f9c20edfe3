"""Which frames of a video make a clip: the reference's rules, frame positions from 0.

Dense sampling takes `clip_length` frames `frame_interval` apart; uniform sampling takes one frame
from each of `clip_length` equal segments. Videos that are too short repeat from their start.
"""

import fractions

import numpy as np


def resample(num_frames: int, fps: fractions.Fraction, frame_rate: float) -> np.ndarray:
  """Source frames of a video resampled to another frame rate: int `[resampled frames]`, at least 1.

  Frame i is source frame floor(i * fps / frame_rate), as torchvision's `VideoClips` counts, but
  exactly: rounding never takes a neighbour. A higher rate repeats frames.

  Args:
    num_frames: of the source, at least 1.
    fps: frames per second of the source, positive.
    frame_rate: frames per second to resample to, positive; taken as the nearest fraction with a
      denominator of at most a million (29.97002997 is 30000/1001).
  """
  rate = fractions.Fraction(frame_rate).limit_denominator(10**6)
  step = fps / max(rate, fractions.Fraction(1, 10**6))
  count = max(num_frames * step.denominator // step.numerator, 1)
  return np.array([i * step.numerator // step.denominator for i in range(count)])


def dense_train(
  num_frames: int,
  clip_length: int,
  frame_interval: int,
  random: np.random.Generator,
  num_clips: int = 1,
) -> np.ndarray:
  """Random dense clips: int `[num_clips, clip_length]`.

  The video is divided into `num_clips` ranges of starts; each clip starts anywhere in its own.
  """
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
  """Evenly spaced dense clips, each in the middle of its range: int `[num_clips, clip_length]`."""
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
  """Dense clips from the beginning of a video to its end: int `[num_clips, clip_length]`.

  The rule of mmaction2 1.x and, but for the rounding of the starts, of torchvision.
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
  """One random frame of every segment (Something-Something): int `[1, clip_length]`."""
  first, last = _segments(num_frames, clip_length)
  return random.integers(first, last, endpoint=True)[None]


def uniform_eval(num_frames: int, clip_length: int) -> np.ndarray:
  """The middle frame of every segment (Something-Something): int `[1, clip_length]`."""
  first, last = _segments(num_frames, clip_length)
  return ((first + last) // 2)[None]


def _segments(num_frames: int, clip_length: int) -> tuple[np.ndarray, np.ndarray]:
  """First and last frame of each segment; neighbours share their boundary frame."""
  edges = np.around(np.arange(clip_length + 1) * ((num_frames - 1) / clip_length))
  edges = edges.astype(np.int64)
  return edges[:-1], edges[1:]
