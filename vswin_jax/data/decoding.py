"""Frames out of encoded video, decoding no more than the frames asked for need."""

import contextlib
import dataclasses
import io
from collections.abc import Sequence

import av
import numpy as np
from av.video.reformatter import VideoReformatter

# Decoding on through this many unwanted frames is cheaper than a seek.
_FRAMES_WORTH_A_SEEK = 8


class VideoError(ValueError):
  """A video that can't be decoded; the message says why."""


@dataclasses.dataclass(frozen=True)
class VideoFacts:
  """What a video holds: presented frames, frame size in pixels, average frame rate."""

  num_frames: int
  height: int
  width: int
  fps_numerator: int
  fps_denominator: int


def probe(video: bytes) -> VideoFacts:
  """Facts of an encoded video, read without decoding its frames.

  Raises:
    VideoError: no video stream, or no frames.
  """
  with _open(video) as (container, stream):
    rate = stream.average_rate or stream.guessed_rate
    return VideoFacts(
      num_frames=len(_frame_times(container, stream)[0]),
      height=stream.codec_context.height,
      width=stream.codec_context.width,
      fps_numerator=rate.numerator if rate else 0,
      fps_denominator=rate.denominator if rate else 1,
    )


def decode_frames(video: bytes, indices: Sequence[int]) -> np.ndarray:
  """Decodes frames of an encoded video by their position in presentation order.

  The positions are counted over the frames a player would show, so variable frame rates and
  edit lists change nothing. Decoding starts at the keyframe before each group of frames.

  Args:
    video: the bytes of a video file.
    indices: frame positions, in any order, repetitions allowed.

  Returns:
    uint8 RGB `[len(indices), height, width, 3]`.

  Raises:
    VideoError: the video is damaged, or has no frame at one of the positions. Damage that the
      decoder does not notice can't be told from a picture.
  """
  with _open(video) as (container, stream):
    times, keyframes = _frame_times(container, stream)
    if len(indices) == 0:
      raise VideoError("no frames were asked for")
    if min(indices) < 0 or max(indices) >= len(times):
      raise VideoError(
        f"frames {min(indices)} to {max(indices)} were asked for, the video has {len(times)}"
      )
    wanted = times[sorted(set(indices))]
    frames = _decode_times(container, stream, wanted, times, keyframes)
    if len({frame.shape for frame in frames.values()}) > 1:
      raise VideoError("the frames of the video differ in size")
    return np.stack([frames[int(times[index])] for index in indices])


@contextlib.contextmanager
def _open(video: bytes):
  """Yields (container, video stream); failures to open or decode become a `VideoError`."""
  try:
    container = av.open(io.BytesIO(video), mode="r")
  except (av.FFmpegError, UnicodeDecodeError) as error:
    raise VideoError(f"not a readable video: {error}") from error
  with container:
    if not container.streams.video:
      raise VideoError("the file has no video stream")
    stream = container.streams.video[0]
    if stream.codec_context is None:
      raise VideoError("no decoder for the video stream")
    # Clips are decoded by many workers at once; threads inside a codec only add overhead.
    stream.thread_type = "NONE"
    stream.codec_context.thread_count = 1
    try:
      yield container, stream
    except av.FFmpegError as error:
      raise VideoError(f"damaged video: {error}") from error


def _frame_times(container, stream) -> tuple[np.ndarray, np.ndarray]:
  """Times of all frames that are shown and of all keyframes, sorted, in stream time units.

  A keyframe that an edit list hides is still where decoding starts.
  """
  times, keyframes = [], []
  for packet in container.demux(stream):
    if packet.pts is None:
      continue
    if packet.is_keyframe:
      keyframes.append(packet.pts)
    if not packet.is_discard:
      times.append(packet.pts)
  if not times:
    raise VideoError("the video has no frames")
  return np.unique(times), np.unique(keyframes or times[:1])


def _decode_times(container, stream, wanted, times, keyframes) -> dict[int, np.ndarray]:
  """Frames at the presentation times `wanted` (sorted)."""
  frames: dict[int, np.ndarray] = {}
  # One for all frames, without threads: setting up the conversion costs more than its work.
  converter = VideoReformatter()
  remaining = list(map(int, wanted))
  decoder = None
  position = None
  while remaining:
    start = keyframes[max(np.searchsorted(keyframes, remaining[0], side="right") - 1, 0)]
    if position is None or _count_between(times, position, start) > _FRAMES_WORTH_A_SEEK:
      container.seek(int(start), stream=stream, backward=True)
      decoder = container.decode(stream)
    for frame in decoder:
      if frame.pts is None:
        continue
      position = frame.pts
      if position == remaining[0]:
        if frame.is_corrupt:
          raise VideoError(f"damaged video: the frame at time {position} is corrupt")
        frames[position] = converter.reformat(frame, format="rgb24", threads=1).to_ndarray()
        remaining.pop(0)
        break
      if position > remaining[0]:
        raise VideoError(f"the frame at time {remaining[0]} is missing from the stream")
    else:
      raise VideoError(f"the stream ends before the frame at time {remaining[0]}")
  return frames


def _count_between(times, position, start) -> int:
  return int(np.searchsorted(times, start) - np.searchsorted(times, position))
