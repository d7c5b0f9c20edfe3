"""Shards of a data set in preparation: planning, atomic writing, and resuming.

A finished shard is two files: records, and a JSON file about them, written last. The latter holds a
checksum of everything that the shard was made from. A stopped preparation therefore resumes, and
one with other videos or settings makes the shard again.
"""

import collections
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from vswin_jax.common.messages import one_line
from vswin_jax.common.paths import replacing
from vswin_jax.data.annotations.common import Video
from vswin_jax.data.annotations.splitting import digest
from vswin_jax.data.preparation import video_to_record
from vswin_jax.data.preparation.video_to_record import PrepareOptions, Problem, Record
from vswin_jax.data.records import DatasetError

# Random access to every record; compressing video again does not make it smaller.
_WRITER_OPTIONS = "group_size:1,uncompressed"
# At most 512 shards.
_MAX_BITS = 9
# Increase it when the record of an unchanged video changes.
_FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Shard:
  """Videos of a split that are stored in one file.

  Attributes:
    checksum: of everything that the shard is made from, at the time of planning.
  """

  split: str
  number: int
  videos: tuple[Video, ...]
  checksum: str

  @property
  def stem(self) -> str:
    return f"{self.split}-{self.number:05d}"


@dataclasses.dataclass(frozen=True)
class ShardResult:
  """Contents of a finished shard.

  Attributes:
    totals: sums over its records, see `video_to_record.Record`.
    num_bytes: size of the file of records.
    problems: the videos that are not in it.
  """

  totals: collections.Counter[str]
  num_bytes: int
  problems: tuple[Problem, ...]

  def may_improve(self) -> bool:
    """Returns whether one of its problems may be gone by now."""
    transient = (video_to_record.UNREADABLE, video_to_record.CRASHES)
    return any(problem.kind in transient for problem in self.problems)


def plan_shards(
  splits: Mapping[str, Sequence[Video]], shard_bytes: int, options: PrepareOptions
) -> list[Shard]:
  """Divides the existing videos of every split into shards of about `shard_bytes` of files.

  The number of shards is a power of two, and the id of a video alone determines its shard. Added
  videos therefore change only their own shards, as long as the number of shards stays the same. A
  split has at most 512 shards, since readers keep all files open.
  """
  shards = []
  for split, videos in splits.items():
    videos = sorted((video for video in videos if video.exists), key=lambda one: digest(one.id))
    metadata = {video.id: file_metadata(video) for video in videos}
    num_bytes = sum(size for size, _ in metadata.values())
    bits = min((max(num_bytes - 1, 0) // shard_bytes).bit_length(), _MAX_BITS)
    parts = collections.defaultdict(list)
    for video in videos:
      parts[int.from_bytes(digest(video.id)[:2], "big") >> (16 - bits)].append(video)
    for number, part in parts.items():
      sources = [(video.path, video.id, video.labels, *metadata[video.id]) for video in part]
      made_from = json.dumps([_FORMAT, dataclasses.asdict(options), sources])
      checksum = hashlib.sha256(made_from.encode()).hexdigest()
      shards.append(Shard(split, number, tuple(part), checksum))
  return shards


def file_metadata(video: Video) -> tuple[int, int]:
  """Returns the size of a file in bytes and its modification time in ns; zeros if unreadable."""
  try:
    found = os.stat(video.path)
  except OSError:
    return 0, 0
  return found.st_size, found.st_mtime_ns


def records_path(folder: pathlib.Path, shard: Shard) -> pathlib.Path:
  return folder / f"{shard.stem}.array_record"


def result_path(folder: pathlib.Path, shard: Shard) -> pathlib.Path:
  return folder / f"{shard.stem}.json"


def read_result(folder: pathlib.Path, shard: Shard) -> ShardResult | None:
  """Returns the result of a shard, or None if it is not finished or its checksum differs."""
  try:
    stored = json.loads(result_path(folder, shard).read_text())
    problems = tuple(Problem(*problem) for problem in stored["problems"])
    result = ShardResult(collections.Counter(stored["totals"]), stored["num_bytes"], problems)
    size = records_path(folder, shard).stat().st_size
    is_same = stored["checksum"] == shard.checksum and size == result.num_bytes
  except (OSError, ValueError, KeyError, TypeError):
    return None
  return result if is_same else None


def write_shard(folder: pathlib.Path, shard: Shard, results: Iterable[Record | Problem]) -> None:
  """Writes a shard atomically.

  Args:
    results: of the videos of the shard, in order; one at a time is in memory.

  Raises:
    DatasetError: the disk is full, or the file can't be written for another reason.
  """
  problems, totals = [], collections.Counter()
  with replacing(records_path(folder, shard)) as path:
    with _write_errors(folder):
      writer = ArrayRecordWriter(os.fspath(path), _WRITER_OPTIONS)
    for result in results:
      if isinstance(result, Problem):
        problems.append(result)
        continue
      with _write_errors(folder):
        writer.write(result.example)
      totals.update(result.totals)
    with _write_errors(folder):
      writer.close()
      with contextlib.closing(ArrayRecordReader(os.fspath(path))) as reader:
        if reader.num_records() != totals["num_records"]:
          raise OSError("the file lacks records; is the disk full?")
    result = ShardResult(totals, path.stat().st_size, problems)
  with replacing(result_path(folder, shard)) as path:
    path.write_text(json.dumps({"checksum": shard.checksum, **vars(result)}))


@contextlib.contextmanager
def _write_errors(folder: pathlib.Path) -> Iterator[None]:
  try:
    yield
  except (RuntimeError, OSError) as error:
    reason = one_line(str(error).partition(";")[0])
    raise DatasetError(
      f"can't write to {folder}: {reason}; finished shards are kept, repeat the command to resume"
    ) from error
