"""Preparation of a data set: its shards are written to a hidden folder, then published at once."""

import collections
import dataclasses
import itertools
import pathlib
import re
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence

import tensorflow_datasets as tfds
from tqdm import tqdm

from vswin_jax.common.paths import write_table
from vswin_jax.data.annotations.common import Annotations
from vswin_jax.data.preparation import shards
from vswin_jax.data.preparation.backends import Backend
from vswin_jax.data.preparation.shards import Shard, ShardResult
from vswin_jax.data.preparation.video_to_record import PrepareOptions, Problem, Record
from vswin_jax.data.records import DatasetError, dataset_lock, features
from vswin_jax.data.video.transcoding import Transcoding

VERSION = "1.0.0"
_STAGING = ".preparing"
_PROBLEMS = "problems.csv"


@dataclasses.dataclass(frozen=True)
class Summary:
  """A prepared data set.

  Attributes:
    path: of the data set.
    num_records: by split.
    problems: number of files that were left out, by kind of problem.
    totals: sums over all records, see `video_to_record.Record`.
  """

  path: pathlib.Path
  num_records: dict[str, int]
  problems: dict[str, int]
  totals: collections.Counter[str]


def prepare_dataset(
  annotations: Annotations,
  *,
  name: str,
  data_dir: pathlib.Path,
  backend: Backend,
  transcoding: Transcoding | None = None,
  max_seconds: float = 3600.0,
  shard_bytes: int = 128 << 20,
  max_problem_share: float = 0.02,
) -> Summary:
  """Makes the TFDS data set `data_dir/name/1.0.0` of video records.

  The data set appears there atomically. Until then finished shards are kept in a hidden folder, and
  the same call resumes from them.

  Args:
    name: of the data set.
    backend: from `backends`.
    transcoding: None keeps the bytes of the files.
    max_seconds: longer videos are left out.
    shard_bytes: approximate size of the files that go into one shard.
    max_problem_share: largest share of videos with problems.

  Raises:
    DatasetError: the data set exists, or another process is preparing it; too many problems, which
      are then listed in `data_dir/name/problems.csv`; no usable video; a full disk.
  """
  if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
    raise DatasetError(
      f"{name!r} can't be the name of a data set; expected lower-case letters, digits and _, "
      "such as my_videos"
    )
  options = PrepareOptions(
    annotations.class_names, annotations.multi_label, transcoding, max_seconds
  )
  home = data_dir / name
  staging = home / _STAGING
  home.mkdir(parents=True, exist_ok=True)
  with dataset_lock(name, data_dir, wait=False):
    if (home / VERSION).exists():
      raise DatasetError(
        f"{home / VERSION} exists and is complete; remove it, or give another --name"
      )
    staging.mkdir(exist_ok=True)
    (home / _PROBLEMS).unlink(missing_ok=True)
    planned = shards.plan_shards(annotations.splits, shard_bytes, options)
    found = ((shard, shards.read_result(staging, shard)) for shard in planned)
    finished = {shard: result for shard, result in found if result and not result.may_improve()}
    unfinished = [shard for shard in planned if shard not in finished]
    problems = _list_problems(annotations, finished.values())
    _check_share(problems, annotations, max_problem_share, home / _PROBLEMS)
    with tqdm(
      desc="preparing",
      unit="video",
      total=sum(len(shard.videos) for shard in planned),
      initial=sum(len(shard.videos) for shard in finished),
      mininterval=0.5 if sys.stderr.isatty() else 30.0,
      dynamic_ncols=True,
    ) as bar:

      def report(result: Record | Problem) -> None:
        bar.update()
        if isinstance(result, Problem):
          problems.append(result)
          _check_share(problems, annotations, max_problem_share, home / _PROBLEMS)

      if unfinished:
        backend(unfinished, staging, options, report)
    results = {shard: shards.read_result(staging, shard) for shard in planned}
    if missing := [shard for shard, result in results.items() if result is None]:
      raise DatasetError(
        f"{shards.records_path(staging, missing[0])} was not written; the workers of a cluster "
        f"must see {home} under the same name as this machine"
      )
    problems = _list_problems(annotations, results.values())
    _check_share(problems, annotations, max_problem_share, home / _PROBLEMS)
    summary = _write_dataset(staging / VERSION, name, options, results, problems)
    _write_problems(staging / VERSION / _PROBLEMS, problems, annotations)
    (staging / VERSION).rename(home / VERSION)
    shutil.rmtree(staging, ignore_errors=True)
  return dataclasses.replace(summary, path=home / VERSION)


def _list_problems(annotations: Annotations, results: Iterable[ShardResult]) -> list[Problem]:
  videos = itertools.chain.from_iterable(annotations.splits.values())
  return [
    *(Problem(path, "", "unusable", reason) for path, reason in annotations.problems),
    *(Problem(one.path, one.id, "missing", "no such file") for one in videos if not one.exists),
    *itertools.chain.from_iterable(result.problems for result in results),
  ]


def _check_share(
  problems: Sequence[Problem], annotations: Annotations, max_share: float, path: pathlib.Path
) -> None:
  """Checks that not too many videos have a problem; else lists the problems in `path`."""
  num_videos = sum(map(len, annotations.splits.values())) + len(annotations.problems)
  if len(problems) <= max_share * num_videos:
    return
  _write_problems(path, problems, annotations)
  kinds = ", ".join(f"{count} {kind}" for kind, count in _kinds(problems).most_common())
  examples = "".join(f"\n  {problem.path}: {problem.detail}" for problem in problems[:10])
  raise DatasetError(
    f"{len(problems)} of {num_videos} videos have a problem so far ({kinds}), more than the "
    f"{max_share:.1%} of --max_problem_share; all are listed in {path}, the first are{examples}\n"
    "Repair them, or raise --max_problem_share to leave them out"
  )


def _kinds(problems: Sequence[Problem]) -> collections.Counter[str]:
  return collections.Counter(problem.kind for problem in problems)


def _write_problems(
  path: pathlib.Path, problems: Sequence[Problem], annotations: Annotations
) -> None:
  others = [Problem(path, "", "other file", reason) for path, reason in annotations.other_files]
  write_table(path, Problem._fields, [*problems, *others])


def _write_dataset(
  path: pathlib.Path,
  name: str,
  options: PrepareOptions,
  results: Mapping[Shard, ShardResult],
  problems: Sequence[Problem],
) -> Summary:
  """Writes the shards under their final names, and the metadata of TFDS, to a new folder."""
  # A killed process may have left a part of it.
  shutil.rmtree(path, ignore_errors=True)
  path.mkdir()
  # The videos of a shard may all have problems.
  full = {shard: result for shard, result in results.items() if result.totals["num_records"]}
  if not full:
    raise DatasetError("no record could be made of any of the videos; nothing to write")
  split_infos = []
  for split, group in itertools.groupby(full, key=lambda shard: shard.split):
    group = list(group)
    template = tfds.core.ShardedFileTemplate(
      data_dir=path, dataset_name=name, split=split, filetype_suffix="array_record"
    )
    for number, shard in enumerate(group):
      final = template.sharded_filepath(shard_index=number, num_shards=len(group))
      _link(shards.records_path(path.parent, shard), pathlib.Path(final))
    split_infos.append(
      tfds.core.SplitInfo(
        name=split,
        shard_lengths=[full[shard].totals["num_records"] for shard in group],
        num_bytes=sum(full[shard].num_bytes for shard in group),
        filename_template=template,
      )
    )
  totals = sum((result.totals for result in full.values()), collections.Counter())
  kinds = dict(_kinds(problems))
  tfds.folder_dataset.write_metadata(
    data_dir=path,
    features=features(list(options.class_names), multi_label=options.multi_label),
    split_infos=split_infos,
    version=VERSION,
    check_data=False,
    description=f"Encoded videos of {name}, prepared by vswin_jax.",
    metadata=tfds.core.MetadataDict(
      {
        "videos": totals["num_records"],
        "problems": kinds,
        "seconds": round(totals["seconds"], 3),
        "source_bytes": totals["source_bytes"],
        "stored_bytes": totals["stored_bytes"],
        "transcoding": options.transcoding and dataclasses.asdict(options.transcoding),
      }
    ),
  )
  return Summary(path, {info.name: info.num_examples for info in split_infos}, kinds, totals)


def _link(source: pathlib.Path, target: pathlib.Path) -> None:
  """Hard-links a file, or copies it where links are not supported."""
  try:
    target.hardlink_to(source)
  except OSError:
    shutil.copyfile(source, target)


def describe(summary: Summary) -> str:
  """Returns a human-readable summary, one property a line."""
  totals = summary.totals
  splits = ", ".join(f"{count:,} {split}" for split, count in summary.num_records.items())
  lines = [f"{summary.path}: {splits}; {totals['seconds'] / 3600:.2f} hours of video"]
  if summary.problems:
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(summary.problems.items()))
    lines.append(f"left out: {kinds}; see {summary.path / _PROBLEMS}")
  source, stored = totals["source_bytes"], totals["stored_bytes"]
  if source != stored:
    sizes = f"{source / 2**20:,.1f} -> {stored / 2**20:,.1f} MiB"
    lines.append(f"size: {sizes} (ratio {stored / source:.2f})")
  if totals["clip_seconds_after"]:
    count = totals["clips_timed"]
    before = 1000 * totals["clip_seconds_before"] / count
    after = 1000 * totals["clip_seconds_after"] / count
    lines.append(
      f"decoding a clip of 32 frames: {before:.1f} -> {after:.1f} ms of one core, "
      f"{before / after:.1f} times as fast (mean of {count} videos)"
    )
  return "\n".join(lines)
