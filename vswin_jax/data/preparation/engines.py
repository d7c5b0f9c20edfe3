"""Who does the work of a preparation: the cores of this machine, or the workers of a cluster.

Both make the same shards of the same records. On a cluster, with Apache Beam, a worker makes whole
shards; it must see the videos and the folder of the data set under the names they have here, as on
a shared file system or a mounted bucket.
"""

import contextlib
import functools
import itertools
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Sequence

from vswin_jax.data.preparation.shards import (
  Shard,
  ShardResult,
  file_metadata,
  move_shard,
  read_result,
  write_shard,
)
from vswin_jax.data.preparation.videos import (
  Prepared,
  Problem,
  Recipe,
  killed,
  prepare_video,
)
from vswin_jax.data.records import DatasetError
from vswin_jax.data.worker_processes import map_in_order

# Prepares shards in a folder and yields the result of each; calls a function after every video, or
# after many, with their outcomes.
Engine = Callable[
  [Sequence[Shard], pathlib.Path, Recipe, Callable[[int, Sequence[Problem]], None]],
  Iterator[ShardResult],
]


def on_this_machine(num_workers: int) -> Engine:
  """An engine whose processes work on videos, while one shard at a time is written."""

  def run(shards, folder, recipe, report) -> Iterator[ShardResult]:
    videos = itertools.chain.from_iterable(shard.videos for shard in shards)
    work = functools.partial(prepare_video, recipe=recipe)
    outcomes = map_in_order(
      work,
      videos,
      num_workers=num_workers,
      if_killed=killed,
      size=lambda video: file_metadata(video)[0],
    )

    def reported(count: int) -> Iterator[Prepared | Problem]:
      for outcome in itertools.islice(outcomes, count):
        report(1, [outcome] if isinstance(outcome, Problem) else [])
        yield outcome

    with contextlib.closing(outcomes):
      for shard in shards:
        yield write_shard(folder, shard, reported(len(shard.videos)))

  return run


def on_beam(options: str) -> Engine:
  """An engine that runs a pipeline of Apache Beam.

  Args:
    options: of the pipeline, as those of TFDS's own command: "runner=FlinkRunner,parallelism=64".

  Raises:
    DatasetError: Apache Beam is not installed.
  """
  try:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions
  except ImportError as error:
    raise DatasetError(
      "Apache Beam is not installed; install the extra: pip install -e '.[beam]'"
    ) from error
  arguments = [f"--{option.strip().removeprefix('--')}" for option in options.split(",") if option]

  def run(shards, folder, recipe, report) -> Iterator[ShardResult]:
    work = functools.partial(_prepare_shard, folder=folder, recipe=recipe)
    try:
      with beam.Pipeline(options=PipelineOptions(arguments)) as pipeline:
        # Without the reshuffle a runner may give all shards to one worker.
        _ = (
          pipeline
          | "shards" >> beam.Create(list(shards))
          | "spread" >> beam.Reshuffle()
          | "prepare" >> beam.Map(work)
        )
    except (RuntimeError, ValueError) as error:
      reason = [type(error).__name__, *str(error).strip().splitlines()][-1]
      raise DatasetError(f"the pipeline failed: {reason}; finished shards are kept") from error
    for shard in shards:
      result = read_result(folder, shard)
      if result is None:
        raise DatasetError(
          f"the pipeline ended without {folder / shard.stem}; its workers must see {folder.parent} "
          "under the same name as this machine"
        )
      report(len(shard.videos), result.problems)
      yield result

  return run


def _prepare_shard(shard: Shard, *, folder: pathlib.Path, recipe: Recipe) -> None:
  # A runner may start the same work twice at the same time.
  with tempfile.TemporaryDirectory(dir=folder, prefix=shard.stem) as own:
    own = pathlib.Path(own)
    # In a process beside the runner's, which a crash would end.
    work = functools.partial(prepare_video, recipe=recipe)
    outcomes = map_in_order(work, shard.videos, num_workers=1, if_killed=killed)
    with contextlib.closing(outcomes):
      write_shard(own, shard, outcomes)
    move_shard(shard, own, folder)
