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

from vswin_jax.common.checks import check_at_least, fields
from vswin_jax.common.cli import TRANSIENT
from vswin_jax.common.messages import describe_error, one_line
from vswin_jax.data.clips import ClipSpec, Views, blank_clips, eval_clips, sliding_clip, train_clip
from vswin_jax.data.records import VideoRecords
from vswin_jax.data.video.decoding import VideoError
from vswin_jax.data.video_files import file_record
from vswin_jax.data.worker_processes import end_with_parent

_MAX_ATTEMPTS = 20
_MAX_ERROR_BYTES = 400


@dataclasses.dataclass(frozen=True)
class LoaderOptions:
  """Resources for loading clips; they do not change the clips.

  Attributes:
    num_workers: worker processes; 0: threads of this process.
    num_threads: decoding threads per worker.
    prefetch_batches: batches that each worker prefetches.
    memory_gib: limit of the batches in all workers together, see `within_memory`.
  """

  num_workers: int = 2
  num_threads: int = 1
  prefetch_batches: int = 2
  memory_gib: float = 32.0

  def __post_init__(self):
    check_at_least(0, **fields(self, "num_workers", "memory_gib"))
    check_at_least(1, **fields(self, "num_threads", "prefetch_batches"))


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
) -> Iterator[dict]:
  """Loads batches of training clips for steps `start_step` to `num_steps - 1`.

  Each epoch visits all records once in its own order. A batch may span two epochs. A visit takes
  `repeats` independently augmented clips, which are neighbors in the batch (repeated augmentation,
  arXiv 1901.09335).

  Args:
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
  """

  def load(position: int) -> dict:
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
        "video": video,
        "position_ids": position_ids,
        "label": _label(records, record),
        "failed": np.int32(-1 if index == first else first),
      }
    raise VideoError(
      f"{_MAX_ATTEMPTS} records in a row can't be decoded, the first is "
      f"{records.video_id(first)!r}; check the data set"
    )

  frames = spec.num_frames * spec.size**2
  return _batches(load, range(start_step, num_steps), batch_size, rows, options, 3 * frames)


def eval_batches(
  records: VideoRecords,
  spec: ClipSpec,
  views: Views,
  *,
  batch_size: int,
  seed: int,
  options: LoaderOptions,
  rows: Sequence[int] | None = None,
) -> Iterator[dict]:
  """Loads batches of all views of each record, each record exactly once over all hosts.

  Args:
    batch_size: videos per batch over all hosts.
    seed: seed of random frame orders.
    rows: as in `train_batches`.

  Returns:
    An iterator (close it at the end) of dicts with "video" uint8 `[rows, views, time, height,
    width, 3]`, "position_ids" int32 `[rows, views, time]` (see `clips.eval_clips`), "label" and
    "failed" as in `train_batches`, "record" int32 `[rows]` (its index) and "weight" float32
    `[rows]`: 0 for padding and for videos that can't be decoded.
  """

  def load(position: int) -> dict:
    # Padding has the form of the last record.
    record = records[min(position, len(records) - 1)]
    label, failed, weight = _label(records, record), -1, 0.0
    video, position_ids = blank_clips(spec, views)
    if position >= len(records):
      label = np.zeros_like(label)
    else:
      try:
        random = np.random.default_rng((seed, position))
        video, position_ids = eval_clips(record, spec, views, random)
        weight = 1.0
      except VideoError:
        failed = position
    return {
      "video": video,
      "position_ids": position_ids,
      "label": label,
      "record": np.int32(position),
      "failed": np.int32(failed),
      "weight": np.float32(weight),
    }

  steps = range(-(-len(records) // batch_size))
  return _batches(load, steps, batch_size, rows, options, blank_clips(spec, views)[0].nbytes)


def clip_batches(
  clips: Sequence[tuple[str, int | None]],
  spec: ClipSpec,
  views: Views,
  *,
  batch_size: int,
  options: LoaderOptions,
) -> Iterator[dict]:
  """Loads clips of video files in batches, in order.

  Args:
    clips: (path, start): all with the start of a single clip as in `clips.sliding_clip`, which has
      one view per crop, or all with None for the views of the whole video.
    batch_size: clips per batch; the last batch is padded.

  Returns:
    An iterator (close it at the end) of dicts with "video" uint8 `[batch_size, views, time,
    height, width, 3]`, "position_ids" int32 `[batch_size, views, time]` (see `clips.eval_clips` and
    `clips.sliding_clip`), "index" int32 `[batch_size]` (into `clips`, -1 for padding) and "error"
    bytes `[batch_size]`: why the clip could not be decoded, or empty.
  """
  if clips and clips[0][1] is not None:
    views = dataclasses.replace(views, num_clips=1, whole_frames=0)

  def load(index: int) -> dict:
    video, position_ids = blank_clips(spec, views)
    message, is_padding = "", index >= len(clips)
    # One bad file must not stop the others, whatever is wrong with it.
    try:
      if not is_padding:
        path, start = clips[index]
        record = file_record(path)
        if start is None:
          video, position_ids = eval_clips(record, spec, views, np.random.default_rng(0))
        else:
          video, position_ids = sliding_clip(record, spec, views, start)
    except VideoError as error:
      message = one_line(error)
    except Exception as error:
      message = describe_error(error)
    return {
      "video": video,
      "position_ids": position_ids,
      "index": np.int32(-1 if is_padding else index),
      "error": np.asarray(message.encode(errors="backslashreplace"), f"S{_MAX_ERROR_BYTES}"),
    }

  steps = range(-(-len(clips) // batch_size))
  return _batches(load, steps, batch_size, None, options, blank_clips(spec, views)[0].nbytes)


def _batches(
  load: Callable[[int], dict],
  steps: range,
  batch_size: int,
  rows: Sequence[int] | None,
  options: LoaderOptions,
  clip_bytes: int,
) -> Iterator[dict]:
  """Loads the batch rows of this host; `load` maps a position in the stream to a clip."""
  rows = tuple(range(batch_size) if rows is None else rows)

  def load_row(index: int) -> dict:
    step, place = divmod(index, len(rows))
    position = step * batch_size + rows[place]
    # grain would lose some errors: StopIteration would end the stream, SystemExit would silently
    # end the worker, and the parent would wait forever for an error that can't be pickled.
    try:
      return load(position)
    except BaseException as error:
      try:
        pickle.loads(pickle.dumps(error))
        is_lost = isinstance(error, StopIteration) or not isinstance(error, Exception)
      except Exception:
        is_lost = True
      if not is_lost:
        raise
      raise RuntimeError(f"loading clip {position} raised {describe_error(error)}") from error

  clips = grain.MapDataset.range(steps.start * len(rows), steps.stop * len(rows)).map(load_row)
  batches = clips.batch(len(rows), drop_remainder=True)
  return iterate(batches, within_memory(options, len(rows) * clip_bytes))


def within_memory(options: LoaderOptions, batch_bytes: int) -> LoaderOptions:
  """Reduces prefetched batches, then workers, until their batches fit into `memory_gib`.

  grain buffers the batches of a worker in three places (its threads, its queue and the parent);
  each holds the prefetched ones and another one.
  """
  room = int(options.memory_gib * 2**30) // max(3 * batch_bytes, 1)
  prefetch = max(min(options.prefetch_batches, room // max(options.num_workers, 1) - 1), 1)
  workers = min(options.num_workers, max(room // (prefetch + 1), 1))
  return dataclasses.replace(options, prefetch_batches=prefetch, num_workers=workers)


def epoch_and_record(position: int, num_records: int, seed: int) -> tuple[int, int]:
  """Returns the epoch and the record of a position in the endless stream of visits."""
  epoch, offset = divmod(position, num_records)
  return epoch, int(_epoch_order(num_records, seed, epoch)[offset])


@functools.lru_cache(maxsize=2)
def _epoch_order(num_records: int, seed: int, epoch: int) -> np.ndarray:
  return np.random.default_rng((seed, epoch)).permutation(num_records)


def _label(records: VideoRecords, record: dict) -> np.ndarray:
  if not records.multi_label:
    return np.int32(record["label"])
  return np.isin(np.arange(len(records.class_names)), record["label"]).astype(np.uint8)


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
  prefetch = options.prefetch_batches
  dataset = batches.to_iter_dataset(grain.ReadOptions(options.num_threads, prefetch))
  if options.num_workers:
    dataset = dataset.mp_prefetch(
      grain.MultiprocessingOptions(options.num_workers, per_worker_buffer_size=prefetch),
      worker_init_fn=lambda worker, num_workers: end_with_parent(),
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
