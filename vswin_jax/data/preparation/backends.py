"""Execution backends of `prepare`: local processes or Apache Beam.

Both write the same shards. A worker of a cluster writes whole shards; it must see the videos and
the folder of the data set under the same names as this machine, as on a shared file system or a
mounted bucket.
"""

import contextlib
import functools
import itertools
import pathlib
import tempfile
from collections.abc import Callable, Sequence

from vswin_jax.data.preparation.shards import (
  Shard,
  file_metadata,
  records_path,
  result_path,
  write_shard,
)
from vswin_jax.data.preparation.video_to_record import (
  PrepareOptions,
  Problem,
  Record,
  crashed,
  prepare_video,
)
from vswin_jax.data.records import DatasetError
from vswin_jax.data.worker_processes import map_in_order

# Writes shards to a folder; passes the result of every video to a function if it runs here.
Backend = Callable[
  [Sequence[Shard], pathlib.Path, PrepareOptions, Callable[[Record | Problem], None]], None
]


def local_processes(num_workers: int) -> Backend:
  """Returns a backend that decodes videos in processes of this machine."""

  def run(shards, folder, options, report) -> None:
    results = map_in_order(
      functools.partial(prepare_video, options=options),
      itertools.chain.from_iterable(shard.videos for shard in shards),
      num_workers=num_workers,
      if_killed=crashed,
      size=lambda video: file_metadata(video)[0],
    )

    def reported(count: int):
      for result in itertools.islice(results, count):
        report(result)
        yield result

    with contextlib.closing(results):
      for shard in shards:
        write_shard(folder, shard, reported(len(shard.videos)))

  return run


def apache_beam(pipeline_options: str) -> Backend:
  """Returns a backend that runs a pipeline of Apache Beam.

  Args:
    pipeline_options: in the notation of the `tfds` command:
      "runner=FlinkRunner,parallelism=64".

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
  arguments = [
    f"--{option.strip().removeprefix('--')}" for option in pipeline_options.split(",") if option
  ]

  def run(shards, folder, options, report) -> None:
    del report
    work = functools.partial(_prepare_shard, folder=folder, options=options)
    try:
      with beam.Pipeline(options=PipelineOptions(arguments)) as pipeline:
        # Without the reshuffle a runner may give all shards to one worker.
        _ = pipeline | beam.Create(list(shards)) | beam.Reshuffle() | beam.Map(work)
    except (RuntimeError, ValueError) as error:
      reason = [type(error).__name__, *str(error).strip().splitlines()][-1]
      raise DatasetError(f"the pipeline failed: {reason}; finished shards are kept") from error

  return run


def _prepare_shard(shard: Shard, *, folder: pathlib.Path, options: PrepareOptions) -> None:
  # A runner may start the same work twice at the same time.
  with tempfile.TemporaryDirectory(dir=folder, prefix=shard.stem) as own:
    # A video that crashes its decoder must not end the runner's process.
    local_processes(1)([shard], pathlib.Path(own), options, lambda result: None)
    # The records come before the file that marks them as finished.
    for path in (records_path(pathlib.Path(own), shard), result_path(pathlib.Path(own), shard)):
      path.replace(folder / path.name)
