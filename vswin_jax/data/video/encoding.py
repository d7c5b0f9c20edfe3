"""H.264 encoding of frames to mp4."""

import dataclasses
import fractions
import io
from collections.abc import Iterable

import av
import numpy as np
from av.video.frame import PictureType

from vswin_jax.common.checks import check_at_least, check_at_most, check_choices, fields

PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower")

# One thread, since parallelism is over videos. With look-ahead, x264 is not deterministic.
_X264 = "threads=1:lookahead-threads=1:sync-lookahead=0:rc-lookahead=0"


@dataclasses.dataclass(frozen=True)
class H264:
  """Settings of the encoder.

  Attributes:
    crf: constant rate factor, 0 to 51; lower is better.
    keyframe_interval: largest number of frames between keyframes; small ones seek faster.
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


def encode_mp4(
  frames: np.ndarray, fps: int, *, crf: int = 18, keyframe_interval: int = 32
) -> bytes:
  """Returns an mp4 file of frames, in memory.

  Args:
    frames: uint8 RGB `[num_frames, height, width, 3]`, height and width even.
    fps: frames per second.
    crf: see `H264`.
    keyframe_interval: see `H264`.

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
  """Returns an mp4 file of frames at a constant rate: yuv420p, no audio, fast to decode.

  Args:
    frames: all `height` x `width` and of one pixel format; their timestamps are ignored.
    fps: frames per second.

  Raises:
    ValueError: odd height or width.
  """
  if height % 2 or width % 2:
    raise ValueError(f"H.264 needs even frame sizes, got {height} x {width}")
  buffer = io.BytesIO()
  with av.open(buffer, mode="w", format="mp4") as container:
    stream = container.add_stream("libx264", rate=fps)
    stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
    stream.options = {
      "crf": str(settings.crf),
      "preset": settings.preset,
      "tune": "fastdecode",
      "g": str(settings.keyframe_interval),
      "x264-params": _X264,
    }
    for number, frame in enumerate(frames):
      if number == 0:
        # Players guess it from the size of the frames otherwise.
        stream.codec_context.colorspace = frame.colorspace
      frame.time_base = 1 / fps
      frame.pts = number
      # x264 would keep the frame type of the source.
      frame.pict_type = PictureType.NONE
      container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
  return buffer.getvalue()
