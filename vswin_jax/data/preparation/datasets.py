"""A whole data set out of annotations: prepared, counted, and put in its place when it is whole."""

import collections
import contextlib
import dataclasses
import fcntl
import itertools
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator, Sequence

import tensorflow_datasets as tfds

from vswin_jax.common.paths import write_table
from vswin_jax.data.annotations.common import Annotations
from vswin_jax.data.preparation.engines import Engine
from vswin_jax.data.preparation.shards import (
  Shard,
  ShardResult,
  Totals,
  finished,
  plan_shards,
  records_path,
)
from vswin_jax.data.preparation.videos import Problem, Recipe, missing
from vswin_jax.data.records import DatasetError, features
from vswin_jax.data.video.transcoding import Transcoding

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
    totals: of all records.
  """

  path: pathlib.Path
  num_records: dict[str, int]
  problems: dict[str, int]
  totals: Totals


def prepare_dataset(
  annotations: Annotations,
  *,
  name: str,
  data_dir: pathlib.Path,
  engine: Engine,
  transcoding: Transcoding | None = None,
  max_seconds: float = 3600.0,
  shard_bytes: int = 128 << 20,
  max_problem_share: float = 0.02,
  progress: Callable[[int, int], None] = lambda done, total: None,
) -> Summary:
  """Makes a TFDS data set of video records, `data_dir/name/1.0.0`.

  It appears there only when it is whole. Until then its shards lie in a hidden folder beside; the
  same call goes on with those that are finished.

  Args:
    name: of the data set.
    engine: from `engines`.
    transcoding: what videos become; None: the bytes of the files are kept as they are.
    max_seconds: longer videos are left out.
    shard_bytes: of the files that go into one shard, about.
    max_problem_share: of the videos; more problems stop the preparation.
    progress: called with how many videos are done, of how many; once before any work is done.

  Raises:
    DatasetError: a data set of that name is there already, or another process is making it; too
      many problems, which then are listed in `data_dir/name/problems.csv`; nothing to write; a
      full disk.
  """
  if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
    raise DatasetError(
      f"{name!r} can't be the name of a data set; use small letters, digits and _, as in my_videos"
    )
  recipe = Recipe(annotations.class_names, annotations.multi_label, transcoding, max_seconds)
  home = data_dir / name
  folder = home / _STAGING
  home.mkdir(parents=True, exist_ok=True)
  with _only_one(home):
    if (home / VERSION).exists():
      raise DatasetError(
        f"{home / VERSION} is there already, and whole; remove it, or give another --name"
      )
    folder.mkdir(exist_ok=True)
    problems = _Problems(annotations, max_problem_share, home / "problems.csv")
    present = {
      split: [video for video in videos if video.exists]
      for split, videos in annotations.splits.items()
    }
    shards = plan_shards(present, shard_bytes, recipe)
    results = _prepare_shards(shards, folder, recipe, engine, problems, progress)
    return _publish(home, name, recipe, results, problems)


def _prepare_shards(
  shards: Sequence[Shard],
  folder: pathlib.Path,
  recipe: Recipe,
  engine: Engine,
  problems: "_Problems",
  progress: Callable[[int, int], None],
) -> dict[Shard, ShardResult]:
  """Finishes what is not finished; the results of all shards, in order."""
  found = {shard: finished(folder, shard) for shard in shards}
  waiting = [shard for shard, result in found.items() if result is None]
  num_videos = sum(len(shard.videos) for shard in shards)
  done = num_videos - sum(len(shard.videos) for shard in waiting)
  progress(done, num_videos)
  for result in filter(None, found.values()):
    problems.add(result.problems)

  def report(count: int, more: Sequence[Problem]) -> None:
    nonlocal done
    done += count
    problems.add(more)
    progress(done, num_videos)

  with contextlib.closing(engine(waiting, folder, recipe, report)) as results:
    for shard, result in zip(waiting, results):
      found[shard] = result
  return found


@contextlib.contextmanager
def _only_one(home: pathlib.Path) -> Iterator[None]:
  """Refuses to make a data set that another process is making."""
  folder = os.open(home, os.O_RDONLY)
  try:
    fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError as error:
    os.close(folder)
    raise DatasetError(f"another process is preparing {home}") from error
  except OSError:
    pass  # some file systems know no locks
  try:
    yield
  finally:
    os.close(folder)


class _Problems:
  """Problems so far; more than a share of the videos end the preparation.

  Attributes:
    found: those that count.
    listed: all that is worth a line in the list, also files that never were videos.
  """

  def __init__(self, annotations: Annotations, max_share: float, path: pathlib.Path):
    self._num_videos = sum(map(len, annotations.splits.values())) + len(annotations.problems)
    self._max_share = max_share
    self._path = path
    self._others = [Problem(path, "", "other file", why) for path, why in annotations.other_files]
    self.found: list[Problem] = []
    path.unlink(missing_ok=True)
    videos = itertools.chain.from_iterable(annotations.splits.values())
    self.add(
      [
        *(Problem(path, "", "unusable", reason) for path, reason in annotations.problems),
        *(missing(video) for video in videos if not video.exists),
      ]
    )

  @property
  def listed(self) -> list[Problem]:
    return [*self.found, *self._others]

  def add(self, found: Sequence[Problem]) -> None:
    self.found += found
    if len(self.found) <= self._max_share * self._num_videos:
      return
    write_problems(self._path, self.listed)
    kinds = collections.Counter(problem.kind for problem in self.found)
    examples = "".join(
      f"\n  {problem.path}: {problem.detail}" for problem in self.found[:_EXAMPLES]
    )
    raise DatasetError(
      f"{len(self.found)} of {self._num_videos} videos have a problem so far "
      f"({', '.join(f'{count} {kind}' for kind, count in kinds.most_common())}), more than the "
      f"{self._max_share:.1%} of --max_problem_share; all are listed in {self._path}, the first "
      f"being{examples}\nMend them, or raise --max_problem_share to go on without them"
    )


def write_problems(path: pathlib.Path, problems: Sequence[Problem]) -> None:
  """Writes one line of CSV for every problem."""
  header = [field.name for field in dataclasses.fields(Problem)]
  write_table(path, header, map(dataclasses.astuple, problems))


def _publish(
  home: pathlib.Path,
  name: str,
  recipe: Recipe,
  results: dict[Shard, ShardResult],
  problems: _Problems,
) -> Summary:
  """Gives the shards their final names, writes what TFDS wants to know, and moves it all home."""
  staging = home / _STAGING
  whole = staging / VERSION
  # Left by a kill while it was filled.
  shutil.rmtree(whole, ignore_errors=True)
  whole.mkdir()
  split_infos = []
  for split in dict.fromkeys(shard.split for shard in results):
    # A shard of nothing but problems holds no records.
    in_split = {shard: result for shard, result in results.items() if shard.split == split}
    full = [shard for shard, result in in_split.items() if result.totals.num_records]
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
        shard_lengths=[results[shard].totals.num_records for shard in full],
        num_bytes=sum(results[shard].num_bytes for shard in full),
        filename_template=template,
      )
    )
  if not split_infos:
    raise DatasetError("none of the videos became a record; nothing to write")
  totals = sum((result.totals for result in results.values()), Totals())
  kinds = collections.Counter(problem.kind for problem in problems.found)
  tfds.folder_dataset.write_metadata(
    data_dir=whole,
    features=features(list(recipe.class_names), multi_label=recipe.multi_label),
    split_infos=split_infos,
    version=VERSION,
    check_data=False,
    description=f"Encoded videos of {name}, prepared by vswin_jax.",
    metadata=tfds.core.MetadataDict(
      {
        "videos": totals.num_records,
        "problems": dict(kinds),
        "seconds": round(totals.seconds, 3),
        "source_bytes": totals.source_bytes,
        "stored_bytes": totals.stored_bytes,
        "transcoding": recipe.transcoding and dataclasses.asdict(recipe.transcoding),
      }
    ),
  )
  write_problems(whole / "problems.csv", problems.listed)
  whole.rename(home / VERSION)
  shutil.rmtree(staging, ignore_errors=True)
  return Summary(
    path=home / VERSION,
    num_records={info.name: info.num_examples for info in split_infos},
    problems=dict(kinds),
    totals=totals,
  )


def _link(path: pathlib.Path, name: pathlib.Path) -> None:
  """Gives a file a second name, so that a kill in between costs nothing; else copies it."""
  try:
    name.hardlink_to(path)
  except OSError:
    shutil.copyfile(path, name)


def describe(summary: Summary) -> str:
  """What was made, in a few lines."""
  total = summary.totals
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
