"""Video files opened: one stream, its packets, its frames as the decoder gives them."""

import collections
import contextlib
import io
import itertools
import os
import stat
from collections.abc import Iterable, Iterator

import av
import numpy as np
from av.container import Flags
from av.sidedata.sidedata import Type
from av.stream import Disposition
from av.video.reformatter import VideoReformatter

# Titles and the like that are no UTF-8 must not matter; from 19 on PyAV sees to it by itself.
_OPEN_OPTIONS = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
# No codec reorders frames over more packets than this.
_MOST_FRAMES_IN_HAND = 32


class VideoError(ValueError):
  """A video that can't be decoded; the message says why, in one line."""


class NotAVideo(VideoError):
  """A file of another kind."""


class UnreadableFile(VideoError):
  """A file that can't be read now, though perhaps later: rights, the network, the disk."""


class NoVideoStream(VideoError):
  """A file with sound, or a picture of its cover, alone."""


def file_key(path: str | os.PathLike) -> tuple[str, int, int]:
  """Absolute path, size in bytes and time of the last change in ns: what a file's index hangs on.

  Raises:
    VideoError: no such file, a folder, an empty file.
  """
  path = os.path.abspath(os.fsdecode(path))
  try:
    found = os.stat(path)
  except (OSError, ValueError) as error:
    raise UnreadableFile(f"{path}: {getattr(error, 'strerror', None) or error}") from error
  if not stat.S_ISREG(found.st_mode):
    kind = "a folder" if stat.S_ISDIR(found.st_mode) else "not a regular file"
    raise VideoError(f"{path}: it is {kind}; expected a video file")
  if found.st_size == 0:
    raise VideoError(f"{path}: not a readable video: the file is empty")
  return path, found.st_size, found.st_mtime_ns


@contextlib.contextmanager
def open_video(video: bytes | str | os.PathLike) -> Iterator[tuple]:
  """Yields (container, video stream) of the bytes or the path of a video file.

  Failures to open, read or decode become a `VideoError` that names the file.
  """
  if isinstance(video, (bytes, bytearray, memoryview)):
    name, source = "", io.BytesIO(video)
  else:
    path = file_key(video)[0]
    try:
      name, source = f"{path}: ", io.FileIO(path)
    except OSError as error:
      raise UnreadableFile(f"{path}: {error.strerror}") from error
    # FFmpeg would take a name for an address or a pattern, and its ending for the format.
    source.name = ""
  with source:
    try:
      container = av.open(source, mode="r", **_OPEN_OPTIONS)
    except (av.FFmpegError, UnicodeDecodeError) as error:
      raise NotAVideo(f"{name}not a readable video: {_reason(error)}") from error
    except OSError as error:
      raise UnreadableFile(f"{name}{_reason(error)}") from error
    with container:
      try:
        yield container, _choose_stream(container)
      except VideoError as error:
        raise type(error)(f"{name}{error}") from error
      except av.FFmpegError as error:
        raise VideoError(f"{name}damaged video: {_reason(error)}") from error
      except OSError as error:
        raise UnreadableFile(f"{name}{_reason(error)}") from error


def _reason(error: Exception) -> str:
  return getattr(error, "strerror", None) or str(error)


def _choose_stream(container):
  """The stream that a player shows: no cover picture, decodable, marked as default, first."""
  pictures = Disposition.attached_pic | Disposition.timed_thumbnails
  streams = [stream for stream in container.streams.video if not stream.disposition & pictures]
  if not streams:
    only = "only a cover picture" if container.streams.video else "no video stream"
    raise NoVideoStream(f"the file has {only}")
  stream = min(
    streams,
    key=lambda one: (one.codec_context is None, not one.disposition & Disposition.default),
  )
  if stream.codec_context is None:
    raise VideoError("no decoder for the video stream")
  # Clips are decoded by many workers at once; threads inside a codec only add overhead.
  stream.thread_type = "NONE"
  stream.codec_context.thread_count = 1
  # Times that the file does not give would be guessed, and wrongly where frames are reordered.
  container.flags &= ~Flags.gen_pts.value
  return stream


def read_packets(container, stream) -> Iterator[av.Packet]:
  """Packets of the stream from where the container stands; damage ends them as the file's end."""
  try:
    for packet in container.demux(stream):
      # An empty one stands for a frame that was left out, and a decoder takes it for the end.
      if packet.size:
        yield packet
  except (av.FFmpegError, IndexError):  # PyAV's own, at the end, if streams turned up on the way
    return


def decode_packets(packets: Iterable[av.Packet], stream) -> Iterator[tuple[av.VideoFrame, bool]]:
  """Frames in the order of presentation, and whether each is sound.

  After a packet that can't be decoded, no frame is until the next keyframe; those that the decoder
  had in hand are, if their times show it.
  """
  damaged = False
  in_hand = collections.deque(maxlen=_MOST_FRAMES_IN_HAND)
  for packet in itertools.chain(packets, [None]):
    try:
      frames = stream.codec_context.decode(packet)
    except av.FFmpegError:
      damaged = True
      continue
    if not damaged and packet is not None:
      in_hand.append(packet.pts)
    for frame in frames:
      damaged = damaged and not frame.key_frame
      hurt = damaged and (frame.pts is None or frame.pts not in in_hand)
      yield frame, not (hurt or frame.is_corrupt)


def upright(frame: av.VideoFrame, converter: VideoReformatter) -> av.VideoFrame:
  """The frame, or one of RGB that is turned and mirrored as its metadata says."""
  try:
    is_turned = frame.side_data.get(Type.DISPLAYMATRIX) is not None
  except ValueError:
    is_turned = bool(frame.rotation)
  if not is_turned:
    return frame
  return av.VideoFrame.from_ndarray(to_picture(frame, converter), format="rgb24")


def to_picture(frame: av.VideoFrame, converter: VideoReformatter) -> np.ndarray:
  """The frame as it is displayed, turned and mirrored as its metadata says.

  Args:
    frame: a decoded frame.
    converter: one for all frames: setting up a conversion costs more than its work.

  Returns:
    uint8 RGB `[height, width, 3]`, rows maybe padded; the pixels are those stored, whatever their
    aspect ratio.
  """
  pixels = converter.reformat(frame, format="rgb24", threads=1).to_ndarray()
  try:
    matrix = frame.side_data.get(Type.DISPLAYMATRIX)
  except ValueError:  # PyAV refuses all side data if it does not know one of them
    return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))
  if matrix is None:
    return pixels
  # A step to the right in the frame leads by (right_x, right_y) on the display.
  right_x, right_y, _, down_x, down_y = np.frombuffer(matrix, np.int32)[:5].tolist()
  if abs(right_y) > abs(right_x):
    pixels = pixels.swapaxes(0, 1)
    right_x, down_y = down_x, right_y
  # OpenCV takes no turned views.
  return np.ascontiguousarray(pixels[:: -1 if down_y < 0 else 1, :: -1 if right_x < 0 else 1])
