"""grain pipelines that load batches of clips as a pure function of the step.

The order of records and all random choices follow from (seed, epoch, record, repeat). A pipeline
has no state to save: started at step k, it yields what an uninterrupted one yields at step k, for
any number of workers and hosts. (Another version of NumPy may draw other random numbers.)
"""

import dataclasses
import functools
import pickle
from collections.abc import Callable, Iterator, Sequence

import grain
import numpy as np
from absl import flags

from vswin_jax.common.checks import check_at_least
from vswin_jax.common.cli import TRANSIENT
from vswin_jax.common.messages import one_line
from vswin_jax.data.clips import (
  ClipSpec,
  Views,
  count_views,
  eval_clips,
  train_clip,
  view_frames,
)
from vswin_jax.data.records import VideoRecords
from vswin_jax.data.video.decoding import VideoError
from vswin_jax.data.worker_processes import end_with_parent

_MAX_ATTEMPTS = 20


@dataclasses.dataclass(frozen=True)
class LoaderOptions:
  """Resources for loading clips; they do not change the clips.

  Attributes:
    num_workers: worker processes; 0: threads of this process.
    num_threads: decoding threads per worker.
    prefetch_batches: batches that each worker prefetches.
    memory_gib: limit of the batches in all workers together, for which `within_memory` reduces the
      number of workers.
  """

  num_workers: int = 2
  num_threads: int = 1
  prefetch_batches: int = 2
  memory_gib: float = 32.0

  def __post_init__(self):
    check_at_least(0, num_workers=self.num_workers)
    check_at_least(1, num_threads=self.num_threads, prefetch_batches=self.prefetch_batches)
    check_at_least(0, memory_gib=self.memory_gib)


def train_batches(
  records: VideoRecords,
  spec: ClipSpec,
  *,
  batch_size: int,
  seed: int,
  start_step: int,
  num_steps: int,
  options: LoaderOptions,
  rows: Sequence[int] | None = None,
  repeats: int = 1,
) -> "grain.DatasetIterator":
  """Loads batches of training clips for steps `start_step` to `num_steps - 1`.

  Each epoch visits all records once in its own order. A batch may span two epochs. A visit takes
  `repeats` independently augmented clips, which are neighbors in the batch (repeated augmentation,
  arXiv 1901.09335).

  Args:
    records: the training split.
    spec: sampling and cropping of clips.
    batch_size: clips per batch over all hosts.
    seed: seed of order and augmentation.
    rows: indices in the batch that this host loads, ascending; None: all.
    repeats: clips per video and epoch.

  Returns:
    An iterator (close it at the end) of dicts with "video" uint8 `[rows, time, height, width, 3]`,
    "position_ids" int32 `[rows, time]` (see `clips.train_clip`), "label" int32 `[rows]`, or uint8
    `[rows, classes]` of 0 and 1 for multi-label data sets, and "failed" int32 `[rows]`: the record
    that could not be decoded and was substituted by another, or -1. It raises any error of loading
    in the place of the clip.

  Raises:
    ValueError: fewer than one repeat.
  """
  check_at_least(1, repeats=repeats)
  load = functools.partial(_load_train_clip, records=records, spec=spec, seed=seed, repeats=repeats)
  rows = range(batch_size) if rows is None else rows
  options = within_memory(options, len(rows) * spec.num_frames * 3 * spec.size**2)
  return _batches(load, range(start_step, num_steps), batch_size, rows, options)


def eval_batches(
  records: VideoRecords,
  spec: ClipSpec,
  views: Views,
  *,
  batch_size: int,
  seed: int,
  options: LoaderOptions,
  rows: Sequence[int] | None = None,
) -> "grain.DatasetIterator":
  """Loads batches of all views of each record, each record exactly once over all hosts.

  Args:
    records: the split to evaluate.
    spec: sampling and cropping of clips.
    views: views (clips x crops) of each video.
    batch_size: videos per batch over all hosts.
    seed: seed of random frame orders.
    rows: as in `train_batches`.

  Returns:
    An iterator (close it at the end) of dicts with "video" uint8 `[rows, views, time, height,
    width, 3]`, "position_ids" int32 `[rows, views, time]` (see `clips.eval_clips`), "label" and
    "failed" as in `train_batches`, "record" int32 `[rows]` (its index) and "weight" float32
    `[rows]`: 0 for padding and for videos that can't be decoded.
  """
  num_batches = -(-len(records) // batch_size)
  load = functools.partial(_load_eval_clips, records=records, spec=spec, views=views, seed=seed)
  frames = count_views(spec, views) * view_frames(spec, views)
  rows = range(batch_size) if rows is None else rows
  options = within_memory(options, len(rows) * frames * 3 * spec.size**2)
  return _batches(load, range(num_batches), batch_size, rows, options)


def within_memory(options: LoaderOptions, batch_bytes: int) -> LoaderOptions:
  """Reduces prefetched batches, then workers, until their batches fit into `memory_gib`.

  A worker holds its prefetched batches, one that it fills and one that is being fetched.
  """
  room = int(options.memory_gib * 2**30) // max(batch_bytes, 1)
  ready = max(min(options.prefetch_batches, room // max(options.num_workers, 1) - 2), 1)
  workers = min(options.num_workers, max(room // (ready + 2), 1))
  return dataclasses.replace(options, prefetch_batches=ready, num_workers=workers)


def _batches(
  load: Callable[[int], dict],
  steps: range,
  batch_size: int,
  rows: Sequence[int],
  options: LoaderOptions,
) -> "grain.DatasetIterator":
  """Loads the batch rows of this host; `load` maps a position in the stream to a clip."""
  load_row = functools.partial(_load_row, load=load, rows=tuple(rows), batch_size=batch_size)
  clips = grain.MapDataset.range(steps.start * len(rows), steps.stop * len(rows)).map(load_row)
  return iterate(clips.batch(len(rows), drop_remainder=True), options)


def epoch_and_record(position: int, num_records: int, seed: int) -> tuple[int, int]:
  """Returns the epoch and the record of a position in the endless stream of visits."""
  epoch, offset = divmod(position, num_records)
  return epoch, int(_epoch_order(num_records, seed, epoch)[offset])


@functools.lru_cache(maxsize=2)
def _epoch_order(num_records: int, seed: int, epoch: int) -> np.ndarray:
  return np.random.default_rng((seed, epoch)).permutation(num_records)


def _load_train_clip(position: int, *, records, spec, seed, repeats) -> dict:
  visit, repeat = divmod(position, repeats)
  epoch, first = epoch_and_record(visit, len(records), seed)
  # The first clip of a visit is the same as without repeats.
  random = np.random.default_rng((seed, epoch, first, repeat) if repeat else (seed, epoch, first))
  index = first
  for _ in range(_MAX_ATTEMPTS):
    record = records[index]
    try:
      video, position_ids = train_clip(record, spec, random)
    except VideoError:
      index = int(random.integers(len(records)))
      continue
    return {
      "video": np.ascontiguousarray(video),
      "position_ids": position_ids,
      "label": _label(records, record),
      "failed": np.int32(-1 if index == first else first),
    }
  raise VideoError(
    f"{_MAX_ATTEMPTS} records in a row can't be decoded, the first is "
    f"{records.video_id(first)!r}; check the data set"
  )


def _load_eval_clips(position: int, *, records, spec, views, seed) -> dict:
  shape = (count_views(spec, views), view_frames(spec, views))
  loaded = {
    "video": np.zeros((*shape, spec.size, spec.size, 3), np.uint8),
    "position_ids": np.zeros(shape, np.int32),
    "label": _label(records),
    "record": np.int32(position),
    "failed": np.int32(-1),
    "weight": np.float32(0.0),
  }
  if position >= len(records):
    return loaded
  record = records[position]
  loaded["label"] = _label(records, record)
  try:
    random = np.random.default_rng((seed, position))
    loaded["video"], loaded["position_ids"] = eval_clips(record, spec, views, random)
    loaded["weight"] = np.float32(1.0)
  except VideoError:
    loaded["failed"] = np.int32(position)
  return loaded


def _label(records: VideoRecords, record: dict | None = None) -> np.ndarray | np.int32:
  """Returns the label of a record in the form of `train_batches`, or that of padding."""
  if not records.multi_label:
    return np.int32(0 if record is None else record["label"])
  multi_hot = np.zeros(len(records.class_names), np.uint8)
  if record is not None:
    multi_hot[np.asarray(record["label"], int)] = 1
  return multi_hot


class LostWorkerError(RuntimeError):
  """Raised when a worker process that loads data died."""

  exit_status = TRANSIENT


def iterate(batches: grain.MapDataset, options: LoaderOptions) -> Iterator[dict]:
  """Yields `batches`, which workers or threads load ahead; close it to end them.

  Raises:
    LostWorkerError: a worker died.
  """
  if not flags.FLAGS.is_parsed():
    # grain reads its flags when it starts workers, also in programs that parse none.
    flags.FLAGS.mark_as_parsed()
  reading = grain.ReadOptions(
    num_threads=options.num_threads, prefetch_buffer_size=options.prefetch_batches
  )
  dataset = batches.to_iter_dataset(reading)
  if options.num_workers:
    dataset = dataset.mp_prefetch(
      grain.MultiprocessingOptions(
        num_workers=options.num_workers, per_worker_buffer_size=options.prefetch_batches
      ),
      worker_init_fn=_end_with_parent,
    )
  iterator = iter(dataset)
  try:
    yield from iterator
  except RuntimeError as error:
    # grain's error for a worker process that was killed from outside.
    if "terminated unexpectedly" not in str(error):
      raise
    raise LostWorkerError(
      f"a data worker died: {one_line(error)}. It may have run out of memory, or of shared memory "
      "in /dev/shm; lower the number of workers (--config.loader.num_workers, of predict "
      "--num_workers) or --config.loader.prefetch_batches, and run the same command again"
    ) from error
  finally:
    iterator.close()


def _load_row(
  index: int, *, load: Callable[[int], dict], rows: tuple[int, ...], batch_size: int
) -> dict:
  """Loads the clip at `index` of the clips of this host, and replaces errors that grain would lose.

  StopIteration would end the stream, SystemExit would silently end the worker, and the parent would
  wait forever for an error that can't be pickled.
  """
  step, place = divmod(index, len(rows))
  position = step * batch_size + rows[place]
  try:
    return load(position)
  except BaseException as error:
    if isinstance(error, Exception) and not isinstance(error, StopIteration) and _pickles(error):
      raise
    reason = one_line(error)
    raise RuntimeError(
      f"loading clip {position} raised {type(error).__name__}: {reason}"
    ) from error


def _pickles(error: Exception) -> bool:
  try:
    pickle.loads(pickle.dumps(error))
  except Exception:
    return False
  return True


def _end_with_parent(worker: int, num_workers: int) -> None:
  del worker, num_workers
  end_with_parent()
