"""A whole data set out of annotations: prepared, counted, and put in its place when it is whole."""

import collections
import contextlib
import csv
import dataclasses
import fcntl
import itertools
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator, Sequence

import tensorflow_datasets as tfds

from vswin_jax.data.annotations.common import Annotations
from vswin_jax.data.preparation.engines import Engine
from vswin_jax.data.preparation.shards import (
  Shard,
  ShardResult,
  finished,
  plan_shards,
  records_path,
)
from vswin_jax.data.preparation.videos import Problem, Recipe, missing
from vswin_jax.data.records import DatasetError, features
from vswin_jax.local_files import replacing

VERSION = "1.0.0"
_STAGING = ".preparing"
# Of a long list of problems, how many are worth an error message.
_EXAMPLES = 10


@dataclasses.dataclass(frozen=True)
class Summary:
  """What `prepare_dataset` made.

  Attributes:
    path: of the data set.
    num_records: by split.
    problems: files that were left out, by kind of problem.
    total: sums over all shards.
  """

  path: pathlib.Path
  num_records: dict[str, int]
  problems: dict[str, int]
  total: ShardResult


def prepare_dataset(
  annotations: Annotations,
  *,
  name: str,
  data_dir: pathlib.Path,
  recipe: Recipe,
  engine: Engine,
  shard_bytes: int,
  max_problem_share: float,
  progress: Callable[[int, int], None] = lambda done, total: None,
) -> Summary:
  """Makes a TFDS data set of video records, `data_dir/name/1.0.0`.

  It appears there only when it is whole. Until then its shards lie in a hidden folder beside; the
  same call goes on with those that are finished.

  Args:
    name: of the data set.
    recipe: what becomes of every video; its class names are those of the annotations.
    engine: from `engines`.
    shard_bytes: of the files that go into one shard, about.
    max_problem_share: of the videos; more problems stop the preparation.
    progress: called with how many videos are done, of how many.

  Raises:
    DatasetError: a data set of that name is there already, or another process is making it; too
      many problems, which then are listed in `data_dir/name/problems.csv`; nothing to write; a
      full disk.
  """
  if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
    raise DatasetError(
      f"{name!r} can't be the name of a data set; use small letters, digits and _, as in my_videos"
    )
  home = data_dir / name
  if (home / VERSION).exists():
    raise DatasetError(
      f"{home / VERSION} is there already, and whole; remove it, or give another --name"
    )
  folder = home / _STAGING
  folder.mkdir(parents=True, exist_ok=True)
  with _only_one(home):
    problems = _Problems(annotations, max_problem_share, home / "problems.csv")
    present = {
      split: [video for video in videos if video.exists]
      for split, videos in annotations.splits.items()
    }
    shards = plan_shards(present, shard_bytes)
    num_videos = sum(map(len, present.values()))
    done = 0

    def report(count: int, found: Sequence[Problem]) -> None:
      nonlocal done
      done += count
      problems.add(found)
      progress(done, num_videos)

    results: dict[Shard, ShardResult] = {}
    for shard in shards:
      if result := finished(folder, shard, recipe):
        results[shard] = result
        report(len(shard.videos), result.problems)
    waiting = [shard for shard in shards if shard not in results]
    for shard, result in zip(waiting, engine(waiting, folder, recipe, report)):
      results[shard] = result
    return _publish(home, name, annotations, recipe, results, problems.found)


@contextlib.contextmanager
def _only_one(home: pathlib.Path) -> Iterator[None]:
  """Refuses to make a data set that another process is making."""
  with (home / ".lock").open("w") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      raise DatasetError(f"another process is preparing {home}") from error
    yield
  (home / ".lock").unlink(missing_ok=True)


class _Problems:
  """Problems so far; more than a share of the videos end the preparation."""

  def __init__(self, annotations: Annotations, max_share: float, path: pathlib.Path):
    self._num_videos = sum(map(len, annotations.splits.values())) + len(annotations.problems)
    self._max_share = max_share
    self._path = path
    self.found: list[Problem] = []
    path.unlink(missing_ok=True)
    self.add(
      [
        *(Problem(path, "", "not a video", reason) for path, reason in annotations.problems),
        *(
          missing(video)
          for video in itertools.chain.from_iterable(annotations.splits.values())
          if not video.exists
        ),
      ]
    )

  def add(self, found: Sequence[Problem]) -> None:
    self.found += found
    if len(self.found) <= self._max_share * self._num_videos:
      return
    write_problems(self._path, self.found)
    kinds = collections.Counter(problem.kind for problem in self.found)
    examples = "".join(
      f"\n  {problem.path}: {problem.detail}" for problem in self.found[:_EXAMPLES]
    )
    raise DatasetError(
      f"{len(self.found)} of {self._num_videos} videos have a problem so far "
      f"({', '.join(f'{count} {kind}' for kind, count in kinds.most_common())}), more than the "
      f"{self._max_share:.1%} of --max_problem_share; all are listed in {self._path}, the first "
      f"being{examples}"
    )


def write_problems(path: pathlib.Path, problems: Sequence[Problem]) -> None:
  """Writes one line of CSV for every problem."""
  with replacing(path) as temporary, temporary.open("w", newline="") as file:
    rows = csv.writer(file)
    rows.writerow([field.name for field in dataclasses.fields(Problem)])
    rows.writerows(dataclasses.astuple(problem) for problem in problems)


def _publish(
  home: pathlib.Path,
  name: str,
  annotations: Annotations,
  recipe: Recipe,
  results: dict[Shard, ShardResult],
  problems: list[Problem],
) -> Summary:
  """Gives the shards their final names, writes what TFDS wants to know, and moves it all home."""
  staging = home / _STAGING
  whole = staging / VERSION
  # Left by a kill while it was filled.
  shutil.rmtree(whole, ignore_errors=True)
  whole.mkdir()
  split_infos = []
  for split in annotations.splits:
    # A shard of nothing but problems holds no records.
    full = [shard for shard, one in results.items() if shard.split == split and one.num_records]
    if not full:
      continue
    template = tfds.core.ShardedFileTemplate(
      data_dir=whole, dataset_name=name, split=split, filetype_suffix="array_record"
    )
    for number, shard in enumerate(full):
      path = template.sharded_filepath(shard_index=number, num_shards=len(full))
      _link(records_path(staging, shard), pathlib.Path(path))
    split_infos.append(
      tfds.core.SplitInfo(
        name=split,
        shard_lengths=[results[shard].num_records for shard in full],
        num_bytes=sum(results[shard].num_bytes for shard in full),
        filename_template=template,
      )
    )
  if not split_infos:
    raise DatasetError("none of the videos became a record; nothing to write")
  total = _sum(results.values())
  kinds = collections.Counter(problem.kind for problem in problems)
  tfds.folder_dataset.write_metadata(
    data_dir=whole,
    features=features(list(recipe.class_names), multi_label=recipe.multi_label),
    split_infos=split_infos,
    version=VERSION,
    check_data=False,
    description=f"Encoded videos of {name}, prepared by vswin_jax.",
    metadata=tfds.core.MetadataDict(
      {
        "videos": total.num_records,
        "problems": dict(kinds),
        "seconds": round(total.seconds, 3),
        "source_bytes": total.source_bytes,
        "stored_bytes": total.stored_bytes,
        "transcoding": recipe.transcoding and dataclasses.asdict(recipe.transcoding),
      }
    ),
  )
  write_problems(whole / "problems.csv", problems)
  whole.rename(home / VERSION)
  shutil.rmtree(staging, ignore_errors=True)
  return Summary(
    path=home / VERSION,
    num_records={info.name: info.num_examples for info in split_infos},
    problems=dict(kinds),
    total=total,
  )


def _link(path: pathlib.Path, name: pathlib.Path) -> None:
  """Gives a file a second name, so that a kill in between costs nothing; else moves it."""
  try:
    name.hardlink_to(path)
  except OSError:
    path.rename(name)


def _sum(results) -> ShardResult:
  totals = [dataclasses.astuple(dataclasses.replace(one, problems=())) for one in results]
  return ShardResult(*(sum(column) for column in list(zip(*totals))[:-1]))


def describe(summary: Summary) -> str:
  """What was made, in a few lines."""
  total = summary.total
  splits = ", ".join(f"{count:,} {split}" for split, count in summary.num_records.items())
  lines = [f"{summary.path}: {splits}; {total.seconds / 3600:.2f} hours of video"]
  if summary.problems:
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(summary.problems.items()))
    lines.append(f"left out: {kinds}; see {summary.path / 'problems.csv'}")
  if total.stored_bytes != total.source_bytes:
    sizes = f"{total.source_bytes / 2**20:,.1f} -> {total.stored_bytes / 2**20:,.1f} MiB"
    lines.append(f"size: {sizes} ({total.stored_bytes / total.source_bytes:.2f} of before)")
  if total.clip_seconds_after:
    before, after = (
      1000 * seconds / total.clips_timed
      for seconds in (total.clip_seconds_before, total.clip_seconds_after)
    )
    lines.append(
      f"decoding a clip of 32 frames: {before:.1f} -> {after:.1f} ms of one core, "
      f"{before / after:.1f} times as fast (mean of {total.clips_timed} videos)"
    )
  return "\n".join(lines)
