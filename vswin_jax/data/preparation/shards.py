"""Shards of a data set in the making: planned, written whole or not at all, found again.

A finished shard is two files in the folder of the preparation: records, and what is to be known
about them, written last. It carries a fingerprint of everything that it was made from, so a
preparation that was stopped goes on where it was, and one of other videos or with other settings
makes it anew.
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

from vswin_jax.common.paths import replacing
from vswin_jax.data.annotations.common import Video
from vswin_jax.data.annotations.splitting import digest
from vswin_jax.data.preparation.videos import CRASHES, UNREADABLE, Prepared, Problem, Recipe
from vswin_jax.data.records import DatasetError

# Random access to every record; video does not get smaller by compressing it again.
_WRITER_OPTIONS = "group_size:1,uncompressed"
# Of the number of a shard.
_MOST_BITS = 9
# Raised when the same video becomes another record.
_FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Shard:
  """Videos of a split that are stored in one file.

  Attributes:
    number: of the file.
    fingerprint: of all that the shard is made from, as it was when it was planned.
  """

  split: str
  number: int
  videos: tuple[Video, ...]
  fingerprint: str

  @property
  def stem(self) -> str:
    return f"{self.split}-{self.number:05d}"


@dataclasses.dataclass(frozen=True)
class Totals:
  """Sums over records; bytes are those of videos.

  Attributes:
    clips_timed: videos decoded both from their file and from their record; the processor time of
      their clips is `clip_seconds_before` and `clip_seconds_after`.
  """

  num_records: int = 0
  source_bytes: int = 0
  stored_bytes: int = 0
  seconds: float = 0.0
  clips_timed: int = 0
  clip_seconds_before: float = 0.0
  clip_seconds_after: float = 0.0

  def __add__(self, other: "Totals") -> "Totals":
    mine, others = dataclasses.astuple(self), dataclasses.astuple(other)
    return Totals(*(first + second for first, second in zip(mine, others)))


@dataclasses.dataclass(frozen=True)
class ShardResult:
  """What is known about a finished shard.

  Attributes:
    num_bytes: of the file of records.
    problems: the videos that are not in it.
  """

  totals: Totals
  num_bytes: int
  problems: tuple[Problem, ...]


def plan_shards(
  splits: Mapping[str, Sequence[Video]], shard_bytes: int, recipe: Recipe
) -> list[Shard]:
  """Divides the videos of every split into shards of about so many bytes of files.

  The number of shards is a power of two, and the id of a video alone tells its place among them: as
  long as their number stays the same, some videos more change only their own shards. A split has no
  more than 512, since a reader keeps all its files open.
  """
  shards = []
  for split, videos in splits.items():
    files = [(video, *file_metadata(video)) for video in videos]
    num_bytes = sum(size for _, size, _ in files)
    bits = 0
    while num_bytes > shard_bytes << bits and bits < _MOST_BITS:
      bits += 1
    parts = collections.defaultdict(list)
    for file in sorted(files, key=lambda file: digest(file[0].id)):
      parts[int.from_bytes(digest(file[0].id)[:2], "big") >> (16 - bits)].append(file)
    shards += [
      Shard(split, number, tuple(video for video, *_ in part), _fingerprint(part, recipe))
      for number, part in parts.items()
    ]
  return shards


def _fingerprint(files: Sequence[tuple[Video, int, int]], recipe: Recipe) -> str:
  """Of videos (names, sizes, times of change, labels) and of what becomes of them."""
  videos = [(video.path, video.id, video.labels, *metadata) for video, *metadata in files]
  metadata = json.dumps([_FORMAT, dataclasses.asdict(recipe), videos])
  return hashlib.sha256(metadata.encode()).hexdigest()


def file_metadata(video: Video) -> tuple[int, int]:
  """Size in bytes of a video's file, and when it changed, in ns; 0 if it can't be told."""
  try:
    found = os.stat(video.path)
  except OSError:
    return 0, 0
  return found.st_size, found.st_mtime_ns


def records_path(folder: pathlib.Path, shard: Shard) -> pathlib.Path:
  return folder / f"{shard.stem}.array_record"


def _facts_path(folder: pathlib.Path, shard: Shard) -> pathlib.Path:
  return folder / f"{shard.stem}.json"


def finished(folder: pathlib.Path, shard: Shard) -> ShardResult | None:
  """The result of a shard that was made before from the same videos in the same way, or None.

  One whose problems may have passed is not finished.
  """
  result = read_result(folder, shard)
  if result and any(problem.kind in (UNREADABLE, CRASHES) for problem in result.problems):
    return None
  return result


def read_result(folder: pathlib.Path, shard: Shard) -> ShardResult | None:
  """The result of a shard whose files are there, whole and of its fingerprint; else None."""
  try:
    metadata = json.loads(_facts_path(folder, shard).read_text())
    result = ShardResult(
      totals=Totals(**metadata["totals"]),
      num_bytes=metadata["num_bytes"],
      problems=tuple(Problem(**problem) for problem in metadata["problems"]),
    )
    size = records_path(folder, shard).stat().st_size
    is_same = metadata["fingerprint"] == shard.fingerprint and size == result.num_bytes
  except (OSError, ValueError, KeyError, TypeError):
    return None
  return result if is_same else None


def write_shard(
  folder: pathlib.Path, shard: Shard, outcomes: Iterable[Prepared | Problem]
) -> ShardResult:
  """Writes a shard.

  Args:
    outcomes: of the videos of the shard, in order; only one is in memory at a time.

  Raises:
    DatasetError: the disk is full, or the file can't be written for another reason.
  """
  problems, totals = [], Totals()
  with replacing(records_path(folder, shard)) as path:
    with _writing(path):
      writer = ArrayRecordWriter(os.fspath(path), _WRITER_OPTIONS)
    for outcome in outcomes:
      if isinstance(outcome, Problem):
        problems.append(outcome)
        continue
      with _writing(path):
        writer.write(outcome.example)
      totals += _totals(outcome)
    with _writing(path):
      writer.close()
      if totals.num_records != _count(path):
        raise OSError("not all records arrived on the disk; is it full?")
    num_bytes = path.stat().st_size
  result = ShardResult(totals, num_bytes, tuple(problems))
  with replacing(_facts_path(folder, shard)) as path:
    path.write_text(json.dumps({"fingerprint": shard.fingerprint, **dataclasses.asdict(result)}))
  return result


def _totals(outcome: Prepared) -> Totals:
  before, after = outcome.clip_seconds or (0.0, 0.0)
  return Totals(
    num_records=1,
    source_bytes=outcome.source_bytes,
    stored_bytes=outcome.stored_bytes,
    seconds=outcome.seconds,
    clips_timed=int(outcome.clip_seconds is not None),
    clip_seconds_before=before,
    clip_seconds_after=after,
  )


def move_shard(shard: Shard, source: pathlib.Path, destination: pathlib.Path) -> None:
  """Moves a finished shard to another folder of the same file system, its metadata last."""
  for path_in in (records_path, _facts_path):
    path_in(source, shard).replace(path_in(destination, shard))


@contextlib.contextmanager
def _writing(path: pathlib.Path) -> Iterator[None]:
  try:
    yield
  except (RuntimeError, OSError) as error:
    reason = " ".join(str(error).split(";")[0].split())
    raise DatasetError(
      f"can't write {path.parent}: {reason}; what is finished is kept, the same command goes on"
    ) from error


def _count(path: pathlib.Path) -> int:
  reader = ArrayRecordReader(os.fspath(path))
  try:
    return reader.num_records()
  finally:
    reader.close()
