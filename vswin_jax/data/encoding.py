"""Frames into H.264 video."""

import io

import av
import numpy as np


def encode_mp4(
  frames: np.ndarray, fps: int, *, crf: int = 18, keyframe_interval: int = 32
) -> bytes:
  """Encodes frames as an mp4 file: H.264, yuv420p, constant frame rate, no audio.

  Args:
    frames: uint8 RGB `[num_frames, height, width, 3]`, height and width even.
    fps: frames per second.
    crf: constant rate factor, lower is better (0 to 51).
    keyframe_interval: frames from one keyframe to the next at most; short ones seek faster.

  Raises:
    ValueError: odd height or width.
  """
  _, height, width, _ = frames.shape
  if height % 2 or width % 2:
    raise ValueError(f"H.264 needs even frame sizes, got {height} x {width}")
  buffer = io.BytesIO()
  with av.open(buffer, mode="w", format="mp4") as container:
    stream = container.add_stream("libx264", rate=fps)
    stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
    stream.options = {
      "crf": str(crf),
      "preset": "veryfast",
      "tune": "fastdecode",
      "g": str(keyframe_interval),
      # With look-ahead, x264 encodes small frames differently from one time to the next.
      "x264-params": "threads=1:lookahead-threads=1:sync-lookahead=0:rc-lookahead=0",
    }
    for frame in frames:
      container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
    container.mux(stream.encode(None))
  return buffer.getvalue()
