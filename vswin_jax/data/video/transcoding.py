"""Videos made small and quick to decode, frame for frame, and checked from end to end."""

import dataclasses
import fractions
import itertools
import os
from collections.abc import Iterator

import av
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter

from vswin_jax.common.checks import check_at_least, fields
from vswin_jax.data.video.container import (
  VideoError,
  decode_packets,
  open_video,
  read_packets,
  upright,
)
from vswin_jax.data.video.decoding import VideoMetadata, probe
from vswin_jax.data.video.encoding import H264, write_mp4

# Of videos that do not say how many frames they show a second.
_USUAL_RATE = fractions.Fraction(25)
# Encoders need a denominator of 16 bits; this is far finer than any frame rate in use.
_FINEST_RATE = 1001


@dataclasses.dataclass(frozen=True)
class Transcoding:
  """What a video becomes.

  Attributes:
    short_side: in pixels; smaller videos keep their size.
    h264: see `encoding.H264`.
  """

  short_side: int = 256
  h264: H264 = dataclasses.field(default_factory=H264)

  def __post_init__(self):
    check_at_least(2, **fields(self, "short_side"))


def transcode(
  video: bytes | str | os.PathLike, options: Transcoding, metadata: VideoMetadata | None = None
) -> bytes:
  """Encodes a video anew: H.264 in mp4, upright, with as many frames as before.

  Frames follow each other at the average rate, so a frame's number tells its time. Frame `i` shows
  what frame `i` of the source shows: sampling by number gives the same frames as before.

  Args:
    video: the bytes or the path of a video file.
    metadata: of the video, from `decoding.probe`, if they are known.

  Raises:
    VideoError: the video can't be opened, or one of its frames can't be decoded.
  """
  metadata = metadata or probe(video)
  rate = fractions.Fraction(metadata.fps_numerator, metadata.fps_denominator)
  rate = rate.limit_denominator(_FINEST_RATE) or _USUAL_RATE
  height, width = fit_short_side(metadata.height, metadata.width, options.short_side)
  reformatter = VideoReformatter()
  frames = (
    reformatter.reformat(
      upright(frame, reformatter),
      width=width,
      height=height,
      format="yuv420p",
      interpolation=Interpolation.BICUBIC | Interpolation.ACCURATE_RND,
      # Otherwise the values of a full range would stay, and be taken for those of a limited one.
      src_color_range=frame.color_range,
      dst_color_range=ColorRange.MPEG,
      threads=1,
    )
    for frame in all_frames(video, metadata)
  )
  return write_mp4(frames, height, width, rate, options.h264)


def check_frames(video: bytes | str | os.PathLike, metadata: VideoMetadata) -> None:
  """Decodes a video from end to end.

  Raises:
    VideoError: one of its frames can't be decoded.
  """
  for _ in all_frames(video, metadata):
    pass


def all_frames(
  video: bytes | str | os.PathLike, metadata: VideoMetadata
) -> Iterator[av.VideoFrame]:
  """Every frame in the order of presentation, as it is stored.

  Args:
    metadata: from `decoding.probe`, which leaves out what a damaged end spoils.

  Raises:
    VideoError: a frame is damaged or missing.
  """
  number = -1
  with open_video(video) as (container, stream):
    frames = decode_packets(read_packets(container, stream), stream)
    for number, (frame, sound) in enumerate(itertools.islice(frames, metadata.num_frames)):
      if not sound:
        raise VideoError(f"damaged video: frame {number} can't be decoded")
      yield frame
    if number + 1 < metadata.num_frames:
      raise VideoError(f"damaged video: frame {number + 1} is missing from the stream")


def fit_short_side(height: int, width: int, short_side: int) -> tuple[int, int]:
  """Height and width of a video made small: even, the aspect ratio kept as nearly as that goes."""
  scale = min(short_side / min(height, width), 1.0)
  return tuple(max(2, 2 * round(size * scale / 2)) for size in (height, width))
