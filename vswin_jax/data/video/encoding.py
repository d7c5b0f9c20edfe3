"""Frames into H.264 video."""

import dataclasses
import fractions
import io
from collections.abc import Iterable

import av
import numpy as np
from av.video.frame import PictureType

from vswin_jax.common.checks import check_at_least, check_at_most, check_choices, fields

PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower")

# One thread, since parallelism is over videos; and no look-ahead, with which x264 encodes the same
# frames differently from one time to the next (its files would be three per cent smaller).
_X264 = "threads=1:lookahead-threads=1:sync-lookahead=0:rc-lookahead=0"


@dataclasses.dataclass(frozen=True)
class H264:
  """How video is encoded: always yuv420p, constant frame rate, easy to decode, no audio.

  Attributes:
    crf: constant rate factor, lower is better (0 to 51).
    keyframe_interval: frames from one keyframe to the next at most; short ones seek faster.
    preset: of x264; slower ones make smaller files.
  """

  crf: int = 23
  keyframe_interval: int = 32
  preset: str = "medium"

  def __post_init__(self):
    check_at_least(0, **fields(self, "crf"))
    check_at_most(51, **fields(self, "crf"))
    check_at_least(1, **fields(self, "keyframe_interval"))
    check_choices(PRESETS, **fields(self, "preset"))

  def options(self) -> dict[str, str]:
    """Of libx264."""
    return {
      "crf": str(self.crf),
      "preset": self.preset,
      "tune": "fastdecode",
      "g": str(self.keyframe_interval),
      "x264-params": _X264,
    }


def encode_mp4(
  frames: np.ndarray, fps: int, *, crf: int = 18, keyframe_interval: int = 32
) -> bytes:
  """Encodes frames as an mp4 file.

  Args:
    frames: uint8 RGB `[num_frames, height, width, 3]`, height and width even.
    fps: frames per second.
    crf: see `H264`; likewise `keyframe_interval`.

  Raises:
    ValueError: odd height or width.
  """
  _, height, width, _ = frames.shape
  settings = H264(crf, keyframe_interval, preset="veryfast")
  pictures = (av.VideoFrame.from_ndarray(frame, format="rgb24") for frame in frames)
  return write_mp4(pictures, height, width, fractions.Fraction(fps), settings)


def write_mp4(
  frames: Iterable[av.VideoFrame],
  height: int,
  width: int,
  fps: fractions.Fraction,
  settings: H264,
) -> bytes:
  """Encodes frames, one after the other at a constant rate, as an mp4 file in memory.

  Args:
    frames: all of one pixel format, `height` x `width`; their own times do not matter.

  Raises:
    ValueError: odd height or width.
  """
  if height % 2 or width % 2:
    raise ValueError(f"H.264 needs even frame sizes, got {height} x {width}")
  buffer = io.BytesIO()
  with av.open(buffer, mode="w", format="mp4") as container:
    stream = container.add_stream("libx264", rate=fps)
    stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
    stream.options = settings.options()
    for number, frame in enumerate(frames):
      if number == 0:
        # Otherwise a player takes the colors of large videos for those of small ones.
        stream.codec_context.colorspace = frame.colorspace
      frame.time_base = 1 / fps
      frame.pts = number
      # x264 would repeat what the frame was in its source, such as a keyframe.
      frame.pict_type = PictureType.NONE
      container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
  return buffer.getvalue()
