"""One video file into one record, or the reason why not."""

import dataclasses
import functools
import os
import time

import av
import numpy as np

from vswin_jax.data.annotations.common import Video
from vswin_jax.data.annotations.splitting import digest
from vswin_jax.data.records import features, record
from vswin_jax.data.video.container import (
  NotAVideo,
  NoVideoStream,
  UnreadableFile,
  VideoError,
  open_video,
)
from vswin_jax.data.video.decoding import VideoMetadata, decode_frames, probe
from vswin_jax.data.video.transcoding import Transcoding, check_frames, transcode

# Kinds of problems that may be gone the next time.
UNREADABLE, CRASHES = "unreadable", "crashes"

# A serialized example can't be larger; what is not the video takes far less than the rest.
_MOST_BYTES = 2**31 - 2**20
# One video in so many is decoded before and after, to tell how much faster that has become.
_TIMED_SHARE = 2
_TIMED_CLIP = np.arange(32) * 2


@dataclasses.dataclass(frozen=True)
class Recipe:
  """What becomes of every video of a data set.

  Attributes:
    class_names: by label.
    multi_label: whether a video has any number of labels.
    transcoding: None: the bytes of the file are kept as they are.
    max_seconds: longer videos are refused.
  """

  class_names: tuple[str, ...]
  multi_label: bool = False
  transcoding: Transcoding | None = None
  max_seconds: float = 3600.0


@dataclasses.dataclass(frozen=True)
class Problem:
  """A file that is left out: its path, the id of its video, a kind of problem and one line."""

  path: str
  id: str
  kind: str
  detail: str


@dataclasses.dataclass(frozen=True)
class Prepared:
  """A record and what became of its file.

  Attributes:
    example: serialized.
    source_bytes: of the file; `stored_bytes` of the video in the record.
    seconds: of the video.
    clip_seconds: processor time of decoding a clip of 32 frames from the file and from the record,
      of videos that were chosen for it and transcoded.
  """

  example: bytes
  source_bytes: int
  stored_bytes: int
  seconds: float
  clip_seconds: tuple[float, float] | None = None


def missing(video: Video) -> Problem:
  return Problem(video.path, video.id, "missing", "no such file")


def killed(video: Video) -> Problem:
  """For a video that ends the process which decodes it."""
  return Problem(video.path, video.id, CRASHES, "decoding it crashes or takes too much memory")


def prepare_video(video: Video, recipe: Recipe) -> Prepared | Problem:
  """Probes, decodes from end to end, transcodes if asked to, and serializes one video."""
  problem = functools.partial(Problem, video.path, video.id)
  try:
    return _prepare(video, recipe)
  except _Refused as error:
    return problem(*error.args)
  except FileNotFoundError:
    return missing(video)
  except NotAVideo as error:
    return problem("not a video", _without_path(error, video.path))
  except NoVideoStream as error:
    return problem("no video stream", _without_path(error, video.path))
  except UnreadableFile as error:
    return problem(UNREADABLE, _without_path(error, video.path))
  except VideoError as error:
    return problem("damaged", _without_path(error, video.path))
  except MemoryError:
    return problem(UNREADABLE, "not enough memory")
  except OSError as error:
    return problem(UNREADABLE, error.strerror or str(error))
  # Whatever is wrong with one file, the others become records.
  except Exception as error:
    return problem("damaged", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")


class _Refused(Exception):
  """Kind and detail of a problem."""


def _prepare(video: Video, recipe: Recipe) -> Prepared:
  source_bytes = os.stat(video.path).st_size
  if not source_bytes:
    raise _Refused("empty", "the file has no bytes")
  if recipe.transcoding is None:
    _check_size(source_bytes)
  metadata, seconds = _checked_metadata(video.path, recipe.max_seconds)
  content, stored_metadata = _content(video.path, metadata, recipe.transcoding)
  _check_size(len(content))
  labels = list(video.labels)
  example = record(content, video.id, labels if recipe.multi_label else labels[0], stored_metadata)
  return Prepared(
    example=_features(recipe.class_names, recipe.multi_label).serialize_example(example),
    source_bytes=source_bytes,
    stored_bytes=len(content),
    seconds=seconds,
    clip_seconds=_time_clips(video, content, metadata) if recipe.transcoding else None,
  )


def _check_size(num_bytes: int) -> None:
  if num_bytes > _MOST_BYTES:
    raise _Refused("too large", f"{num_bytes:,} bytes do not fit into one record; transcode it")


def _checked_metadata(path: str, max_seconds: float) -> tuple[VideoMetadata, float]:
  """Metadata of a video, and its length in seconds."""
  with open_video(path) as (container, _):
    # What FFmpeg calls a picture: a video of one frame, which may carry any name.
    if container.format.name.endswith("_pipe") or container.format.name == "image2":
      raise NotAVideo(f"it is a picture ({container.format.long_name})")
    # Some kinds of files tell their frames only when they are decoded, which may take hours.
    _check_length((container.duration or 0) / av.time_base, max_seconds)
  metadata = probe(path)
  rate = metadata.fps_numerator / metadata.fps_denominator
  seconds = metadata.num_frames / rate if rate else 0.0
  _check_length(seconds, max_seconds)
  return metadata, seconds


def _check_length(seconds: float, max_seconds: float) -> None:
  if seconds > max_seconds:
    raise _Refused("too long", f"{seconds:.0f} s, more than the {max_seconds:.0f} allowed")


def _content(
  path: str, metadata: VideoMetadata, transcoding: Transcoding | None
) -> tuple[bytes, VideoMetadata]:
  if transcoding is not None:
    content = transcode(path, transcoding, metadata)
    return content, probe(content)
  check_frames(path, metadata)
  with open(path, "rb") as file:
    return file.read(), metadata


@functools.lru_cache(maxsize=1)
def _features(class_names: tuple[str, ...], multi_label: bool):
  return features(list(class_names), multi_label=multi_label)


def _time_clips(
  video: Video, content: bytes, metadata: VideoMetadata
) -> tuple[float, float] | None:
  if digest(video.id)[0] % _TIMED_SHARE:
    return None
  indices = (metadata.num_frames // 2 + _TIMED_CLIP) % metadata.num_frames
  try:
    return _time(video.path, indices), _time(content, indices)
  except VideoError:  # its size changes on the way, which transcoding puts right
    return None


def _time(video: str | bytes, indices: np.ndarray) -> float:
  begin = time.process_time()
  decode_frames(video, indices)
  return time.process_time() - begin


def _without_path(error: VideoError, path: str) -> str:
  return str(error).removeprefix(f"{path}: ")
