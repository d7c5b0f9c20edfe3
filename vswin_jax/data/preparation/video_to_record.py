"""Conversion of one video file to a record, or to the reason why it is left out."""

import collections
import dataclasses
import functools
import os
import pathlib
import time
from typing import NamedTuple

import av
import numpy as np

from vswin_jax.common.messages import one_line
from vswin_jax.data.annotations.common import Video
from vswin_jax.data.annotations.splitting import digest
from vswin_jax.data.records import features, record
from vswin_jax.data.video.container import VideoError, open_video
from vswin_jax.data.video.decoding import decode_frames, probe
from vswin_jax.data.video.transcoding import Transcoding, check_frames, transcode

# Kinds of problems that may be gone when the command is repeated.
UNREADABLE, CRASHES = "unreadable", "crashes"

# Protocol buffers hold 2 GiB; everything but the video takes far less than the rest.
_MAX_BYTES = 2**31 - 2**20
# One video in so many is decoded before and after transcoding, to measure the speedup.
_TIMED_SHARE = 2
_TIMED_CLIP = np.arange(32) * 2


@dataclasses.dataclass(frozen=True)
class PrepareOptions:
  """Settings that determine the record of a video.

  Attributes:
    class_names: by label.
    multi_label: whether a video has any number of labels.
    transcoding: None keeps the bytes of the file.
    max_seconds: longer videos are left out.
  """

  class_names: tuple[str, ...]
  multi_label: bool = False
  transcoding: Transcoding | None = None
  max_seconds: float = 3600.0


class Problem(NamedTuple):
  """A file that is left out: its path, the id of its video, the kind of problem and one line."""

  path: str
  id: str
  kind: str
  detail: str


class Record(NamedTuple):
  """A serialized record.

  Attributes:
    example: serialized `tf.train.Example` in the schema of `records.features`.
    totals: contribution to the totals of the data set: "num_records" (1), "source_bytes",
      "stored_bytes" and "seconds"; of some transcoded videos also "clips_timed" (1),
      "clip_seconds_before" and "clip_seconds_after", the processor time of decoding a clip of 32
      frames from the file and from the record.
  """

  example: bytes
  totals: collections.Counter[str]


class _LeftOut(Exception):
  """Raised with the kind and the detail of a problem."""


def prepare_video(video: Video, options: PrepareOptions) -> Record | Problem:
  """Decodes a video from end to end, transcodes it if asked to, and returns its record."""
  problem = functools.partial(Problem, video.path, video.id)
  try:
    return _make_record(video, options)
  except _LeftOut as error:
    return problem(*error.args)
  except VideoError as error:
    return problem(error.kind, str(error).removeprefix(f"{video.path}: "))
  except (MemoryError, OSError) as error:
    reason = getattr(error, "strerror", None) or str(error) or "not enough memory"
    return problem(UNREADABLE, reason)
  # One file must not stop the preparation of the others.
  except Exception as error:
    return problem("damaged", f"{type(error).__name__}: {one_line(error)[:300]}")


def crashed(video: Video) -> Problem:
  """Returns the problem of a video whose decoding ends the process."""
  return Problem(video.path, video.id, CRASHES, "decoding it crashes or takes too much memory")


def _make_record(video: Video, options: PrepareOptions) -> Record:
  source_bytes = os.stat(video.path).st_size
  if not source_bytes:
    raise _LeftOut("empty", "the file has no bytes")
  with open_video(video.path) as stream:
    container = stream.container
    # FFmpeg reads a picture as a video of one frame, whatever the name of the file.
    if container.format.name.endswith("_pipe") or container.format.name == "image2":
      raise VideoError(f"it is a picture ({container.format.long_name})", "not a video")
    # Probing some formats decodes them whole, which may take hours.
    _check_length((container.duration or 0) / av.time_base, options.max_seconds)
  metadata = probe(video.path)
  rate = metadata.fps_numerator / metadata.fps_denominator
  seconds = metadata.num_frames / rate if rate else 0.0
  _check_length(seconds, options.max_seconds)
  totals = collections.Counter(num_records=1, source_bytes=source_bytes, seconds=seconds)
  if options.transcoding is None:
    _check_size(source_bytes)
    check_frames(video.path, metadata)
    content = pathlib.Path(video.path).read_bytes()
  else:
    content = transcode(video.path, options.transcoding, metadata)
    _check_size(len(content))
    if digest(video.id)[0] % _TIMED_SHARE == 0:
      totals.update(_time_clips(video.path, content, metadata.num_frames))
    metadata = probe(content)
  totals["stored_bytes"] = len(content)
  label = list(video.labels) if options.multi_label else video.labels[0]
  schema = _schema(options.class_names, options.multi_label)
  return Record(schema.serialize_example(record(content, video.id, label, metadata)), totals)


def _check_size(num_bytes: int) -> None:
  if num_bytes > _MAX_BYTES:
    raise _LeftOut("too large", f"{num_bytes:,} bytes do not fit into one record; transcode it")


def _check_length(seconds: float, max_seconds: float) -> None:
  if seconds > max_seconds:
    raise _LeftOut("too long", f"{seconds:.0f} s, more than the {max_seconds:.0f} allowed")


@functools.lru_cache(maxsize=1)
def _schema(class_names: tuple[str, ...], multi_label: bool):
  return features(list(class_names), multi_label=multi_label)


def _time_clips(path: str, content: bytes, num_frames: int) -> dict[str, float]:
  """Returns the processor seconds of one clip, decoded from the file and from the record."""
  indices = (num_frames // 2 + _TIMED_CLIP) % num_frames
  begin = time.process_time()
  try:
    decode_frames(path, indices)
  except VideoError:  # frames of several sizes, which transcoding resizes
    return {}
  middle = time.process_time()
  decode_frames(content, indices)
  after = time.process_time() - middle
  return {"clips_timed": 1, "clip_seconds_before": middle - begin, "clip_seconds_after": after}
