"""Opening of video files: the video stream, its packets, and decoded frames."""

import collections
import contextlib
import io
import itertools
import math
import os
import stat
from collections.abc import Iterable, Iterator

import av
import numpy as np
from av.container import Flags
from av.sidedata.sidedata import Type
from av.stream import Disposition
from av.video.reformatter import VideoReformatter

# Accepts metadata, such as titles, that are not UTF-8, as PyAV does by itself since version 19.
_OPEN_OPTIONS = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
# No codec reorders frames over more packets.
_MAX_REORDERED = 32


class VideoError(ValueError):
  """Raised when a video can't be decoded; the message gives the reason in one line.

  Attributes:
    kind: "damaged"; "not a video"; "no video stream" (only sound or a cover picture); or
      "unreadable" (permissions, network, disk): a later try may succeed.
  """

  def __init__(self, message: str, kind: str = "damaged"):
    super().__init__(message)
    self.kind = kind


def file_key(path: str | os.PathLike) -> tuple[str, int, int]:
  """Returns (absolute path, bytes, modification time in ns), which identify a version of a file.

  Raises:
    VideoError: not a file, or an empty one.
  """
  path = os.path.abspath(os.fsdecode(path))
  try:
    found = os.stat(path)
  except (OSError, ValueError) as error:
    raise VideoError(f"{path}: {_reason(error)}", "unreadable") from error
  if not stat.S_ISREG(found.st_mode):
    kind = "a folder" if stat.S_ISDIR(found.st_mode) else "not a regular file"
    raise VideoError(f"{path}: it is {kind}; expected a video file")
  if found.st_size == 0:
    raise VideoError(f"{path}: not a readable video: the file is empty")
  return path, found.st_size, found.st_mtime_ns


@contextlib.contextmanager
def open_video(video: bytes | str | os.PathLike) -> Iterator[av.VideoStream]:
  """Opens a video file, given by its bytes or its path, and yields its video stream.

  Raises:
    VideoError: the file can't be opened, read or decoded; the message names it.
  """
  in_memory = isinstance(video, (bytes, bytearray, memoryview))
  path = None if in_memory else file_key(video)[0]
  name = "" if in_memory else f"{path}: "
  try:
    with io.BytesIO(video) if in_memory else io.FileIO(path) as source:
      # FFmpeg would interpret the name as a URL or a pattern, and its suffix as the format.
      source.name = ""
      try:
        container = av.open(source, mode="r", **_OPEN_OPTIONS)
      except (av.FFmpegError, UnicodeDecodeError) as error:
        raise VideoError(f"not a readable video: {_reason(error)}", "not a video") from error
      with container:
        yield _choose_stream(container)
  except VideoError as error:
    raise VideoError(f"{name}{error}", error.kind) from error
  except av.FFmpegError as error:
    raise VideoError(f"{name}damaged video: {_reason(error)}") from error
  except OSError as error:
    raise VideoError(f"{name}{_reason(error)}", "unreadable") from error


def _reason(error: Exception) -> str:
  return getattr(error, "strerror", None) or str(error)


def _choose_stream(container) -> av.VideoStream:
  """Returns the stream that a player shows: the first one, default and decodable ones first."""
  pictures = Disposition.attached_pic | Disposition.timed_thumbnails
  streams = [stream for stream in container.streams.video if not stream.disposition & pictures]
  if not streams:
    only = "only a cover picture" if container.streams.video else "no video stream"
    raise VideoError(f"the file has {only}", "no video stream")
  stream = min(
    streams,
    key=lambda one: (one.codec_context is None, not one.disposition & Disposition.default),
  )
  if stream.codec_context is None:
    raise VideoError("no decoder for the video stream")
  # Workers decode in parallel; codec threads would only add overhead.
  stream.thread_type = "NONE"
  stream.codec_context.thread_count = 1
  # Generated timestamps are wrong where frames are reordered.
  container.flags &= ~Flags.gen_pts.value
  return stream


def read_packets(stream: av.VideoStream) -> Iterator[av.Packet]:
  """Yields the packets of the stream from the current position on; they end where damage begins."""
  try:
    for packet in stream.container.demux(stream):
      # An empty packet marks a skipped frame; a decoder would treat it as the end.
      if packet.size:
        yield packet
  # PyAV raises IndexError at the end if streams appeared after the header.
  except (av.FFmpegError, IndexError):
    return


def decode_packets(packets: Iterable[av.Packet], stream) -> Iterator[tuple[av.VideoFrame, bool]]:
  """Yields frames in presentation order, each with whether it is intact.

  After a packet that can't be decoded, frames are damaged until the next keyframe, except those
  whose timestamps show that they came from earlier packets.
  """
  damaged = False
  earlier = collections.deque(maxlen=_MAX_REORDERED)
  for packet in itertools.chain(packets, [None]):
    try:
      frames = stream.codec_context.decode(packet)
    except av.FFmpegError:
      damaged = True
      continue
    if not damaged and packet is not None:
      earlier.append(packet.pts)
    for frame in frames:
      damaged = damaged and not frame.key_frame
      is_late = frame.pts is None or frame.pts not in earlier
      yield frame, not (frame.is_corrupt or (damaged and is_late))


def upright(frame: av.VideoFrame, converter: VideoReformatter) -> av.VideoFrame:
  """Returns the frame, as a rotated and mirrored RGB frame where its metadata say so."""
  if _display_matrix(frame) is None:
    return frame
  return av.VideoFrame.from_ndarray(to_picture(frame, converter), format="rgb24")


def to_picture(frame: av.VideoFrame, converter: VideoReformatter) -> np.ndarray:
  """Returns the frame as displayed, rotated and mirrored as its metadata say.

  Args:
    frame: a decoded frame.
    converter: shared by all frames, since its setup costs more than a conversion.

  Returns:
    uint8 RGB `[height, width, 3]`, whose rows may be padded. The pixel aspect ratio is ignored.
  """
  pixels = converter.reformat(frame, format="rgb24", threads=1).to_ndarray()
  matrix = _display_matrix(frame)
  if matrix is None:
    return pixels
  (right_x, right_y), (down_x, down_y) = matrix
  if abs(right_y) > abs(right_x):
    pixels = pixels.swapaxes(0, 1)
    right_x, down_y = down_x, right_y
  # OpenCV takes no views with negative strides.
  return np.ascontiguousarray(pixels[:: -1 if down_y < 0 else 1, :: -1 if right_x < 0 else 1])


def _display_matrix(frame: av.VideoFrame) -> list[list[float]] | None:
  """Returns the steps (x, y) on the display for one to the right and one down in the frame."""
  try:
    matrix = frame.side_data.get(Type.DISPLAYMATRIX)
  except ValueError:  # PyAV refuses all side data if one is of an unknown kind
    cos, sin = math.cos(math.radians(frame.rotation)), math.sin(math.radians(frame.rotation))
    return [[cos, -sin], [sin, cos]] if frame.rotation else None
  return None if matrix is None else np.frombuffer(matrix, np.int32)[[[0, 1], [3, 4]]].tolist()
