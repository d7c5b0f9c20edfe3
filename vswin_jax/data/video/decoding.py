"""Random access to the frames of encoded video.

A video is given by its bytes or its path. Frames are counted in presentation order, as a player
shows them. If the packets of a file determine its frames, only packets are read to count them, and
decoding starts at the keyframe before the requested frames. Otherwise (missing or ambiguous
timestamps, packets without a frame), the whole video is decoded to count its frames: once per path,
and for bytes at each call up to the last requested frame.
"""

import bisect
import dataclasses
import fractions
import functools
import itertools
import os
from collections.abc import Callable, Collection, Iterator, Sequence

import av
import numpy as np
from av.video.frame import PictureType
from av.video.reformatter import VideoReformatter

from vswin_jax.data.video.container import (
  VideoError,
  decode_packets,
  file_key,
  open_video,
  read_packets,
  to_picture,
)

# Decoding this many unwanted frames is cheaper than a seek.
_FRAMES_WORTH_A_SEEK = 8

# Formats in which every packet has a timestamp, by which a seek finds its keyframe.
_INDEXED_FORMATS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi")

# Codecs with one frame per packet, decodable from the keyframe before it. In others, keyframes may
# depend on earlier frames (animated images), and packets may repeat a frame or show none.
_ONE_FRAME_PER_PACKET = (
  "h264", "hevc", "av1", "libdav1d", "libaom-av1", "vp8", "vp9", "libvpx", "libvpx-vp9", "mpeg4",
  "mjpeg", "ffv1", "huffyuv", "ffvhuff", "rawvideo", "png", "qtrle", "prores", "dnxhd", "dvvideo",
)  # fmt: skip

# Formats and codecs whose timestamps are the same after a seek as in decoding from the start.
_SEEKABLE_FORMATS = (*_INDEXED_FORMATS, "mpegts", "flv", "asf")
_SEEKABLE_CODECS = (
  *_ONE_FRAME_PER_PACKET, "mpeg1video", "mpeg2video", "msmpeg4", "wmv2", "flv"
)  # fmt: skip

# MPEG-4 packets of up to this many bytes may mean "nothing changed", which is no frame.
_MPEG4_EMPTY = 19


@dataclasses.dataclass(frozen=True)
class VideoMetadata:
  """Number of presented frames, displayed size in pixels, and average frame rate (0/1: unknown)."""

  num_frames: int
  height: int
  width: int
  fps_numerator: int
  fps_denominator: int


@dataclasses.dataclass(frozen=True)
class _Index:
  """Index of the frames and keyframes of a stream.

  Attributes:
    num_frames: number of frames shown.
    seconds: float64 `[num_frames]`, presentation times.
    clock: "pts" or "dts", the timestamp that identifies frames and keyframes.
    positions: from the timestamp of a frame to its position in presentation order.
    keyframes: from the timestamp of a keyframe to the position of the first frame shown from it and
      the time to seek to, by position. Without keyframes, decoding begins at the start.
    one_per_packet: whether every packet holds one frame and has its timestamp.
  """

  num_frames: int
  seconds: np.ndarray
  clock: str = "pts"
  positions: dict[int, int] | None = None
  keyframes: dict[int, tuple[int, int]] = dataclasses.field(default_factory=dict)
  one_per_packet: bool = False


def _cached_by_file(read: Callable) -> Callable:
  """Decorates `read(video)` to keep its results for paths, until the file changes."""

  @functools.lru_cache(maxsize=8)
  def read_file(path: str, *_):
    return read(path)

  @functools.wraps(read)
  def cached(video):
    return read_file(*file_key(video)) if isinstance(video, (str, os.PathLike)) else read(video)

  return cached


@_cached_by_file
def probe(video: bytes | str | os.PathLike) -> VideoMetadata:
  """Reads the metadata of an encoded video, decoding a single frame where that is possible.

  Raises:
    VideoError: there is no such file, no video stream, or no frame.
  """
  index = _index(video)
  with open_video(video) as stream:
    rate = stream.average_rate or stream.guessed_rate or fractions.Fraction(0)
    # The size in the header may be wrong, and PyAV does not expose the rotation there.
    frames = decode_packets(read_packets(stream), stream)
    frame, _ = next(frames, (None, False))
    if frame is None:
      raise VideoError("no frame of the video can be decoded")
    height, width, _ = to_picture(frame, VideoReformatter()).shape
    return VideoMetadata(index.num_frames, height, width, rate.numerator, rate.denominator)


def frame_times(video: bytes | str | os.PathLike) -> np.ndarray:
  """Returns presentation times in seconds since the first frame: float64 `[num_frames]`.

  Without usable timestamps, they follow from the frame rate (25 if unknown). Raises as `probe`.
  """
  return _index(video).seconds.copy()


def decode_frames(
  video: bytes | str | os.PathLike,
  indices: Sequence[int],
  transform: Callable[[np.ndarray], np.ndarray] = lambda picture: picture,
) -> np.ndarray:
  """Decodes frames of an encoded video by their position in presentation order.

  Positions count the frames that a player shows, whatever the frame rate or edit list. Frames are
  rotated and mirrored as the file says.

  Args:
    video: bytes or path of a video file; a file is not loaded into memory as a whole.
    indices: frame positions, in any order, with repetitions.
    transform: applied to each decoded frame, uint8 RGB `[height, width, 3]` whose rows may be
      padded. Only its results are kept in memory.

  Returns:
    uint8 RGB `[len(indices), height, width, 3]`, or the stacked results of `transform`.

  Raises:
    VideoError: the video is damaged, or has no frame at one of the positions. Damage that the
      decoder does not report goes unnoticed.
  """
  places: dict[int, list[int]] = {}
  for place, position in enumerate(indices):
    places.setdefault(int(position), []).append(place)
  pictures, reformatter = None, VideoReformatter()

  def add(position: int, frame: av.VideoFrame) -> None:
    nonlocal pictures
    picture = transform(to_picture(frame, reformatter))
    if pictures is None:
      pictures = np.empty((len(indices), *picture.shape), picture.dtype)
    if picture.shape != pictures.shape[1:]:
      raise VideoError("the frames of the video differ in size")
    pictures[places.pop(position)] = picture

  if not places or min(places) < 0:
    raise VideoError(f"expected positions of frames, counted from 0; got {sorted(places)}")
  index = _index(video) if isinstance(video, (str, os.PathLike)) else None
  with open_video(video) as stream:
    index = index or _index_packets(stream)
    if index:
      _check_range(places, index.num_frames)
      for keyframe, goals in _runs(index, sorted(places)):
        if not _decode_run(stream, index, keyframe, goals, add):
          break
  if places:
    with open_video(video) as stream:
      _decode_in_order(stream, index, set(places), add)
  return pictures


def _check_range(wanted: Collection[int], num_frames: int) -> None:
  if max(wanted) >= num_frames:
    raise VideoError(
      f"frames {min(wanted)} to {max(wanted)} were asked for, the video has {num_frames}"
    )


# Consecutive clips of one long video share its index.
@_cached_by_file
def _index(video) -> _Index:
  with open_video(video) as stream:
    index = _index_packets(stream)
  if index is None:
    with open_video(video) as stream:
      index = _index_frames(stream)
  return index


def _index_packets(stream) -> _Index | None:
  """Builds the index of a stream from its packets; None if that takes its frames.

  Decoding can start at keyframes that an edit list hides.
  """
  codec = stream.codec_context.name
  if stream.container.format.name not in _INDEXED_FORMATS or codec not in _ONE_FRAME_PER_PACKET:
    return None
  if codec == "h264" and stream.codec_context.field_order > 1:  # a packet may be half a frame
    return None
  times, keyframes, broken = [], [], set()
  for packet in read_packets(stream):
    if packet.pts is None or (codec == "mpeg4" and packet.size <= _MPEG4_EMPTY):
      return None
    if packet.is_keyframe:
      keyframes.append(packet.pts)
    elif not keyframes:
      return None
    if packet.is_discard or (codec == "vp8" and not memoryview(packet)[0] & 0x10):  # not shown
      continue
    times.append(packet.pts)
    if packet.is_corrupt:
      broken.add(packet.pts)
  # Frames before the first keyframe can't be decoded; equal timestamps are ambiguous.
  if times and (len(set(times)) != len(times) or min(times) < keyframes[0]):
    return None
  times.sort()
  while times and times[-1] in broken:
    times.pop()
  if not times:
    raise VideoError("the video has no frames")
  return _Index(
    len(times),
    _seconds(times, stream),
    positions={time: position for position, time in enumerate(times)},
    keyframes={time: (bisect.bisect_left(times, time), time) for time in sorted(keyframes)},
    one_per_packet=True,
  )


def _index_frames(stream) -> _Index:
  """Builds the index of a stream by decoding all of it, without frames of a damaged end."""
  keyframes, frames, num_frames = [], [], 0

  def noting_keyframes(packets):
    for packet in packets:
      if packet.is_keyframe:
        keyframes.append((packet.pts, packet.dts))
      yield packet

  packets = noting_keyframes(read_packets(stream))
  for frame, is_intact in decode_packets(packets, stream):
    frames.append((frame.pts, frame.dts, frame.key_frame))
    num_frames = len(frames) if is_intact else num_frames
  if not num_frames:
    raise VideoError("the video has no frames")
  pts, dts, begins = zip(*frames)
  index = _Index(num_frames, _seconds(pts, stream)[:num_frames])
  if (
    stream.container.format.name not in _SEEKABLE_FORMATS
    or stream.codec_context.name not in _SEEKABLE_CODECS
  ):
    return index
  if _are_distinct(pts):
    positions = {time: position for position, time in enumerate(pts)}
    starts = [
      (positions[shown], shown, shown if decoded is None else decoded)
      for shown, decoded in keyframes
      if shown in positions
    ]
    by_time = {time: (position, seek_time) for position, time, seek_time in sorted(starts)}
    return dataclasses.replace(index, positions=positions, keyframes=by_time)
  # Frames that the decoder outputs at the end have no dts.
  dts = dts[: len(dts) - dts.count(None)]
  # Other formats store no dts: FFmpeg guesses them, differently after a seek.
  if stream.container.format.name == "avi" and _are_distinct(dts) and len(keyframes) == sum(begins):
    firsts = np.flatnonzero(begins).tolist()
    return dataclasses.replace(
      index,
      clock="dts",
      positions={time: position for position, time in enumerate(dts)},
      keyframes={time: (position, time) for position, (_, time) in zip(firsts, keyframes)},
    )
  return index


def _are_distinct(times: Sequence[int | None]) -> bool:
  return None not in times and len(set(times)) == len(times)


def _seconds(times: Sequence[int | None], stream) -> np.ndarray:
  if None not in times:
    ticks = np.array(times, np.int64) - times[0]
    if (np.diff(ticks) >= 0).all():
      return ticks * stream.time_base.numerator / stream.time_base.denominator
  rate = stream.average_rate or stream.guessed_rate or 25
  return np.arange(len(times)) / float(rate)


def _runs(index: _Index, wanted: list[int]) -> list[tuple[int, list[int]]]:
  """Groups sorted positions by the timestamp of the keyframe that they are decoded from."""
  times = list(index.keyframes)
  starts = [position for position, _ in index.keyframes.values()]
  runs = []
  for goal in wanted if times else ():
    place = max(bisect.bisect_right(starts, goal) - 1, 0)
    if not runs or starts[place] - runs[-1][1][-1] > _FRAMES_WORTH_A_SEEK:
      runs.append((times[place], []))
    runs[-1][1].append(goal)
  return runs


def _decode_run(stream, index: _Index, keyframe: int, goals: list[int], add: Callable) -> bool:
  """Decodes frames at sorted positions from a keyframe on.

  Stops, and returns False, at the first one that is damaged or not where the index says.
  """
  start, seek_time = index.keyframes[keyframe]
  try:
    stream.container.seek(seek_time, stream=stream, backward=True)
  except av.FFmpegError:
    return False
  packets = read_packets(stream)
  for packet in packets:
    if packet.is_keyframe and getattr(packet, index.clock) in index.keyframes:
      break
  else:
    return False
  landing, _ = index.keyframes[getattr(packet, index.clock)]
  if landing > start:
    return False
  # The first frame must be the keyframe, unless an edit list hides it.
  begun = index.clock == "pts" and packet.pts not in index.positions
  packets = itertools.chain([packet], packets)
  if index.one_per_packet:
    packets = _needed(packets, stream, index, set(goals))
  position, remaining = None, goals[::-1]
  for frame, is_intact in decode_packets(packets, stream):
    time = getattr(frame, index.clock)
    if time is not None:
      position = index.positions.get(time)
    elif position is not None:  # output by the decoder at the end
      position += 1
    if position is None or (not begun and position < landing):
      continue
    if not begun:
      # Some keyframes only begin a gradual refresh of the picture.
      gradual = frame.pict_type in (PictureType.P, PictureType.B) and not frame.interlaced_frame
      if position > landing or gradual:
        return False
      begun = True
    if position >= remaining[-1]:
      if position != remaining.pop() or not is_intact:
        return False
      add(position, frame)
      if not remaining:
        return True
  return False


def _needed(packets, stream, index: _Index, goals: set[int]) -> Iterator[av.Packet]:
  """Yields packets up to the last of the frames `goals`.

  The decoder skips other frames that none refers to.
  """
  codec = stream.codec_context
  for packet in packets:
    position = index.positions.get(packet.pts)
    if codec.name == "h264":  # other decoders do not skip exactly these frames
      needed = position in goals or packet.is_keyframe
      codec.skip_frame = "DEFAULT" if needed else "NONREF"
    yield packet
    goals.discard(position)
    if not goals:
      return


def _decode_in_order(stream, index: _Index | None, wanted: set[int], add: Callable) -> None:
  """Decodes frames from the start of the stream.

  Raises:
    VideoError: one of them is damaged or missing.
  """
  positions = index.positions if index and index.clock == "pts" else None
  remaining, num_frames = set(wanted), 0
  frames = decode_packets(read_packets(stream), stream)
  for count, (frame, is_intact) in enumerate(frames):
    num_frames = count + 1 if is_intact else num_frames
    position = count if positions is None else positions.get(frame.pts)
    if position not in remaining:
      continue
    if not is_intact:
      raise VideoError(f"damaged video: frame {position} can't be decoded")
    add(position, frame)
    remaining.remove(position)
    if not remaining:
      return
  if index is None:
    _check_range(wanted, num_frames)
  raise VideoError(f"damaged video: frame {min(remaining)} is missing from the stream")
