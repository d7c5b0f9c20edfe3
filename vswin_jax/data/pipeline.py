"""grain pipelines: batches of clips as a pure function of the step.

Which record stands where, and every random choice about it, follows from (seed, epoch, record)
alone. A pipeline therefore has no state to save: started at step k, it yields what an
uninterrupted one yields at step k, for any number of workers and hosts. (NumPy's generators make
the choices: another version of NumPy may choose otherwise.)
"""

import dataclasses
import functools
import multiprocessing
import os
import signal
import threading

import grain
import numpy as np

from vswin_jax.checks import check_at_least
from vswin_jax.data.clips import (
  ClipSpec,
  Views,
  count_views,
  eval_clips,
  train_clip,
  view_frames,
)
from vswin_jax.data.decoding import VideoError
from vswin_jax.data.records import VideoRecords

_MOST_ATTEMPTS = 20


@dataclasses.dataclass(frozen=True)
class LoaderOptions:
  """How clips are loaded; none of it changes what is loaded.

  Attributes:
    num_workers: worker processes; 0 loads in threads of this process.
    num_threads: decoding threads per worker.
    prefetch_batches: batches that each worker keeps ready.
  """

  num_workers: int = 2
  num_threads: int = 1
  prefetch_batches: int = 2

  def __post_init__(self):
    check_at_least(0, num_workers=self.num_workers)
    check_at_least(1, num_threads=self.num_threads, prefetch_batches=self.prefetch_batches)


def train_batches(
  records: VideoRecords,
  spec: ClipSpec,
  *,
  batch_size: int,
  seed: int,
  start_step: int,
  num_steps: int,
  options: LoaderOptions,
  host: int = 0,
  num_hosts: int = 1,
) -> "grain.DatasetIterator":
  """Batches of training clips for steps `start_step` to `num_steps - 1`.

  Every epoch visits every record once in an order of its own; epochs follow each other without a
  gap, so a batch may hold clips of two.

  Args:
    records: the training split.
    spec: how clips are cut.
    batch_size: clips of a batch over all hosts, divisible by `num_hosts`.
    seed: of order and augmentation.
    host: index of this host, which gets its own contiguous part of every batch.

  Returns:
    An iterator (close it at the end) of dicts with "video" uint8 `[batch_size / num_hosts, time,
    height, width, 3]`, "position_ids" int32 `[..., time]` (see `clips.train_clip`), "label" int32
    `[...]` and "failed" int32 `[...]`: the record that could not be decoded and was replaced by
    another one, or -1.
  """
  local = batch_size // num_hosts
  position = functools.partial(_position, local=local, batch_size=batch_size, host=host)
  load = functools.partial(_load_train_clip, records=records, spec=spec, seed=seed)
  clips = grain.MapDataset.range(start_step * local, num_steps * local)
  batches = clips.map(position).map(load).batch(local, drop_remainder=True)
  return iterate(batches, options)


def eval_batches(
  records: VideoRecords,
  spec: ClipSpec,
  views: Views,
  *,
  batch_size: int,
  seed: int,
  options: LoaderOptions,
  host: int = 0,
  num_hosts: int = 1,
) -> "grain.DatasetIterator":
  """Batches of all views of every record, each record exactly once over all hosts.

  Args:
    records: the split to evaluate.
    spec: how clips are cut.
    views: the views of each video.
    batch_size: videos of a batch over all hosts, divisible by `num_hosts`.
    seed: of the frame orders that are random; others do not use it.

  Returns:
    An iterator (close it at the end) of dicts with "video" uint8 `[batch_size / num_hosts, views,
    time, height, width, 3]`, "position_ids" int32 `[..., views, time]` (see `clips.eval_clips`),
    "label" int32, "record" int32 (its index), "failed" int32 (as in `train_batches`) and "weight"
    float32: 0 for padding and for videos that can't be decoded.
  """
  local = batch_size // num_hosts
  num_batches = -(-len(records) // batch_size)
  position = functools.partial(_position, local=local, batch_size=batch_size, host=host)
  load = functools.partial(_load_eval_clips, records=records, spec=spec, views=views, seed=seed)
  clips = grain.MapDataset.range(num_batches * local).map(position).map(load)
  return iterate(clips.batch(local, drop_remainder=True), options)


def _position(index: int, *, local: int, batch_size: int, host: int) -> int:
  """Place in the global stream of the clip that stands at `index` of this host's part of it."""
  step, place = divmod(index, local)
  return step * batch_size + host * local + place


def epoch_and_record(position: int, num_records: int, seed: int) -> tuple[int, int]:
  """Epoch and record of a position in the endless stream of training clips."""
  epoch, offset = divmod(position, num_records)
  return epoch, int(_epoch_order(num_records, seed, epoch)[offset])


@functools.lru_cache(maxsize=2)
def _epoch_order(num_records: int, seed: int, epoch: int) -> np.ndarray:
  return np.random.default_rng((seed, epoch)).permutation(num_records)


def _load_train_clip(position: int, *, records, spec, seed) -> dict:
  epoch, first = epoch_and_record(position, len(records), seed)
  random = np.random.default_rng((seed, epoch, first))
  index = first
  for _ in range(_MOST_ATTEMPTS):
    record = records[index]
    try:
      video, position_ids = train_clip(record, spec, random)
    except VideoError:
      index = int(random.integers(len(records)))
      continue
    return {
      "video": np.ascontiguousarray(video),
      "position_ids": position_ids,
      "label": np.int32(record["label"]),
      "failed": np.int32(-1 if index == first else first),
    }
  raise VideoError(
    f"none of {_MOST_ATTEMPTS} records in a row could be decoded, the first being "
    f"{records.video_id(first)!r}; check the data set"
  )


def _load_eval_clips(position: int, *, records, spec, views, seed) -> dict:
  shape = (count_views(spec, views), view_frames(spec, views))
  loaded = {
    "video": np.zeros((*shape, spec.size, spec.size, 3), np.uint8),
    "position_ids": np.zeros(shape, np.int32),
    "label": np.int32(0),
    "record": np.int32(position),
    "failed": np.int32(-1),
    "weight": np.float32(0.0),
  }
  if position >= len(records):
    return loaded
  record = records[position]
  loaded["label"] = np.int32(record["label"])
  try:
    random = np.random.default_rng((seed, position))
    loaded["video"], loaded["position_ids"] = eval_clips(record, spec, views, random)
    loaded["weight"] = np.float32(1.0)
  except VideoError:
    loaded["failed"] = np.int32(position)
  return loaded


def iterate(batches: grain.MapDataset, options: LoaderOptions):
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
  return iter(dataset)


def _end_with_parent(worker: int, num_workers: int) -> None:
  """Ends a worker with its parent, and not before.

  Without its parent it would wait forever; an interrupt from the terminal is for the parent alone.
  """
  del worker, num_workers
  signal.signal(signal.SIGINT, signal.SIG_IGN)

  def watch():
    multiprocessing.parent_process().join()
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()
