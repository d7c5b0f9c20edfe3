"""H.264 encoding of frames to mp4."""

import fractions
import io
from collections.abc import Iterable

import av
import numpy as np
from av.video.frame import PictureType

PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower")

# One thread, since parallelism is over videos. With look-ahead, x264 is not deterministic.
_X264 = "threads=1:lookahead-threads=1:sync-lookahead=0:rc-lookahead=0"


def encode_mp4(
  frames: Iterable[np.ndarray | av.VideoFrame],
  fps: int | fractions.Fraction,
  *,
  crf: int = 18,
  keyframe_interval: int = 32,
  preset: str = "veryfast",
) -> bytes:
  """Returns an mp4 file of frames at a constant rate: yuv420p, no audio, fast to decode.

  Args:
    frames: of one even size and one pixel format; arrays are uint8 RGB `[height, width, 3]`. The
      timestamps of frames are ignored.
    fps: frames per second.
    crf: constant rate factor, 0 to 51; lower is better.
    keyframe_interval: largest number of frames between keyframes; small ones seek faster.
    preset: one of `PRESETS`; slower ones make smaller files.

  Raises:
    ValueError: odd height or width.
  """
  fps = fractions.Fraction(fps)
  buffer = io.BytesIO()
  with av.open(buffer, mode="w", format="mp4") as container:
    options = {"crf": str(crf), "preset": preset, "g": str(keyframe_interval)}
    stream = container.add_stream("libx264", rate=fps)
    stream.pix_fmt = "yuv420p"
    stream.options = {**options, "tune": "fastdecode", "x264-params": _X264}
    for number, frame in enumerate(frames):
      if isinstance(frame, np.ndarray):
        frame = av.VideoFrame.from_ndarray(frame, format="rgb24")
      if number == 0:
        if frame.height % 2 or frame.width % 2:
          raise ValueError(f"H.264 needs even frame sizes, got {frame.height} x {frame.width}")
        stream.height, stream.width = frame.height, frame.width
        # Players guess it from the size of the frames otherwise.
        stream.codec_context.colorspace = frame.colorspace
      frame.time_base = 1 / fps
      frame.pts = number
      # x264 would keep the frame type of the source.
      frame.pict_type = PictureType.NONE
      container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
  return buffer.getvalue()
