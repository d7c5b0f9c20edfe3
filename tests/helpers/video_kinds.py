"""Videos of many codecs and containers."""

import fractions

import av
import numpy as np

from tests.helpers.videos import moving_bars

HEIGHT, WIDTH = 48, 64
COUNT = 26
GROUP = 8  # frames from one keyframe to the next
GROUPS = {"g": str(GROUP)}
REORDERED = {"g": str(GROUP), "bf": "2"}
X265 = {"x265-params": f"keyint={GROUP}:open-gop=1:bframes=2:log-level=none:pools=1"}

# File name -> encoder, pixel format, options. "form" among these names the container.
KINDS = {
  "h264.mp4": ("libx264", "yuv420p", REORDERED),
  "h264_444.mp4": ("libx264", "yuv444p", REORDERED),
  "h264_full_range.mp4": ("libx264", "yuvj420p", REORDERED),
  "h264_interlaced.mp4": ("libx264", "yuv420p", {**REORDERED, "flags": "+ildct+ilme"}),
  "h264_open.mp4": ("libx264", "yuv420p", {**REORDERED, "x264-params": "open-gop=1"}),
  "h264.mov": ("libx264", "yuv420p", REORDERED),
  "h264.mkv": ("libx264", "yuv420p", REORDERED),
  "h264_refresh.mkv": ("libx264", "yuv420p", {"g": str(GROUP), "bf": "0", "intra-refresh": "1"}),
  "h264.avi": ("libx264", "yuv420p", REORDERED),
  "h264_in_order.avi": ("libx264", "yuv420p", {**GROUPS, "bf": "0"}),
  "h264.ts": ("libx264", "yuv420p", {**REORDERED, "x264-params": "open-gop=1"}),
  "h264.flv": ("libx264", "yuv420p", REORDERED),
  "h264.h264": ("libx264", "yuv420p", {**REORDERED, "form": "h264"}),
  "hevc.mp4": ("libx265", "yuv420p", X265),
  "hevc.mkv": ("libx265", "yuv420p10le", X265),
  "vp8.webm": ("libvpx", "yuv420p", GROUPS),
  "vp9.webm": ("libvpx-vp9", "yuv420p", GROUPS),
  "vp9_alpha.webm": ("libvpx-vp9", "yuva420p", GROUPS),
  "mpeg4.mp4": ("mpeg4", "yuv420p", REORDERED),
  "mpeg4.avi": ("mpeg4", "yuv420p", REORDERED),
  "mpeg4_in_order.avi": ("mpeg4", "yuv420p", GROUPS),
  "mpeg4.m4v": ("mpeg4", "yuv420p", {**REORDERED, "form": "m4v"}),
  "msmpeg4.avi": ("msmpeg4", "yuv420p", GROUPS),
  "mpeg1.mpg": ("mpeg1video", "yuv420p", {**REORDERED, "form": "mpeg"}),
  "mpeg2.mpg": ("mpeg2video", "yuv420p", {**REORDERED, "form": "vob"}),
  "mpeg2.ts": ("mpeg2video", "yuv420p", REORDERED),
  "wmv2.wmv": ("wmv2", "yuv420p", GROUPS),
  "flv1.flv": ("flv", "yuv420p", GROUPS),
  "mjpeg.avi": ("mjpeg", "yuvj420p", {}),
  "mjpeg.mov": ("mjpeg", "yuvj422p", {}),
  "raw.avi": ("rawvideo", "bgr24", {}),
  "gray.mkv": ("ffv1", "gray", GROUPS),
  "deep.mkv": ("ffv1", "yuv422p10le", GROUPS),
  "alpha.mkv": ("ffv1", "yuva420p", GROUPS),
  "alpha.mov": ("png", "rgba", {}),
  "deep.mov": ("prores_ks", "yuv422p10le", {}),
  "moving.gif": ("gif", "rgb8", {}),
  "moving.png": ("apng", "rgb24", {"form": "apng"}),
}


def scene(count: int = COUNT, height: int = HEIGHT, width: int = WIDTH) -> list[np.ndarray]:
  """Returns distinct frames with detail and motion, so that encoders reorder them."""
  texture = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
  texture = texture[::4, ::4].repeat(4, 0).repeat(4, 1)[:height, :width]
  frames = moving_bars(count, height, width) // 2 + 64
  return [
    np.where(np.arange(width)[None, :, None] < width // 2, np.roll(texture, t, 1), frame)
    for t, frame in enumerate(frames)
  ]


def encode(path, codec, pixels="yuv420p", options=(), frames=None, times=None, **stream_options):
  """Writes a video of `frames`, at `times` in 1/25 s if given, and returns its path."""
  options, frames = dict(options), scene() if frames is None else frames
  with av.open(str(path), "w", format=options.pop("form", None)) as container:
    stream = container.add_stream(codec, rate=25, options=options)
    stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], pixels
    if "rotation" in stream_options:
      stream.set_display_rotation(*stream_options["rotation"])
    for number, array in enumerate(frames):
      frame = av.VideoFrame.from_ndarray(array, format="rgb24").reformat(format=pixels)
      frame.pts = number if times is None else times[number]
      frame.time_base = fractions.Fraction(1, 25)
      container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
  return path


def decode_plainly(path) -> np.ndarray:
  """Decodes all frames from the start."""
  with av.open(str(path)) as container:
    return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
