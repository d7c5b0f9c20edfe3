"""Transcoding of videos, frame by frame, to small ones that decode fast."""

import dataclasses
import fractions
import itertools
import os
from collections.abc import Iterator

import av
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter

from vswin_jax.common.checks import check_at_least, check_at_most, check_choices
from vswin_jax.data.video.container import (
  VideoError,
  decode_packets,
  open_video,
  read_packets,
  upright,
)
from vswin_jax.data.video.decoding import VideoMetadata, probe
from vswin_jax.data.video.encoding import PRESETS, encode_mp4

# For videos without a frame rate.
_DEFAULT_RATE = fractions.Fraction(25)
# Encoders need a denominator of 16 bits; frame rates in use have at most this one.
_MAX_DENOMINATOR = 1001


@dataclasses.dataclass(frozen=True)
class Transcoding:
  """Size and encoding of transcoded videos, see `encoding.encode_mp4`.

  Attributes:
    short_side: in pixels; smaller videos keep their size.
  """

  short_side: int = 256
  crf: int = 23
  keyframe_interval: int = 32
  preset: str = "medium"

  def __post_init__(self):
    check_at_least(2, short_side=self.short_side)
    check_at_least(0, crf=self.crf)
    check_at_most(51, crf=self.crf)
    check_at_least(1, keyframe_interval=self.keyframe_interval)
    check_choices(PRESETS, preset=self.preset)


def transcode(
  video: bytes | str | os.PathLike, options: Transcoding, metadata: VideoMetadata | None = None
) -> bytes:
  """Returns a video as H.264 in mp4, upright, at a constant frame rate.

  Frame `i` shows the same as frame `i` of the source, so sampling by number selects the same
  frames. The frame rate is the average of the source.

  Args:
    metadata: of the video, from `decoding.probe`; None reads it.

  Raises:
    VideoError: the video can't be opened, or one of its frames can't be decoded.
  """
  metadata = metadata or probe(video)
  rate = fractions.Fraction(metadata.fps_numerator, metadata.fps_denominator)
  rate = rate.limit_denominator(_MAX_DENOMINATOR) or _DEFAULT_RATE
  height, width = fit_short_side(metadata.height, metadata.width, options.short_side)
  reformatter = VideoReformatter()
  frames = (
    reformatter.reformat(
      upright(frame, reformatter),
      width=width,
      height=height,
      format="yuv420p",
      interpolation=Interpolation.BICUBIC | Interpolation.ACCURATE_RND,
      # Full-range values would be kept, and read as limited-range ones.
      src_color_range=frame.color_range,
      dst_color_range=ColorRange.MPEG,
      threads=1,
    )
    for frame in _all_frames(video, metadata)
  )
  encoding = dataclasses.asdict(options)
  del encoding["short_side"]
  return encode_mp4(frames, rate, **encoding)


def check_frames(video: bytes | str | os.PathLike, metadata: VideoMetadata) -> None:
  """Checks that a video decodes from end to end; raises `VideoError` if one frame does not."""
  for _ in _all_frames(video, metadata):
    pass


def _all_frames(video, metadata: VideoMetadata) -> Iterator[av.VideoFrame]:
  """Yields every frame in presentation order, not rotated, except those of a damaged end."""
  number = -1
  with open_video(video) as stream:
    frames = decode_packets(read_packets(stream), stream)
    for number, (frame, is_intact) in enumerate(itertools.islice(frames, metadata.num_frames)):
      if not is_intact:
        raise VideoError(f"damaged video: frame {number} can't be decoded")
      yield frame
    if number + 1 < metadata.num_frames:
      raise VideoError(f"damaged video: frame {number + 1} is missing from the stream")


def fit_short_side(height: int, width: int, short_side: int) -> tuple[int, int]:
  """Returns even height and width with about the same aspect ratio, at most `short_side`."""
  scale = min(short_side / min(height, width), 1.0)
  return tuple(max(2, 2 * round(size * scale / 2)) for size in (height, width))
