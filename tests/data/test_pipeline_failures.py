"""Damaged videos, failing loads and killed workers: clips are substituted, or errors raised."""

import dataclasses
import os
import shutil
import signal
import sys

import numpy as np
import pytest

from tests.data.batches import CENTER, SPEC, assert_same, collect, training
from vswin_jax.data.pipeline import LoaderOptions, LostWorkerError, eval_batches
from vswin_jax.data.records import DatasetError, VideoRecords, open_records
from vswin_jax.data.video.decoding import VideoError


@dataclasses.dataclass(frozen=True)
class Damaged(VideoRecords):
  """Records with some unreadable videos."""

  damaged: frozenset = frozenset()

  @classmethod
  def of(cls, records, damaged):
    return cls(records.source, records.class_names, damaged=frozenset(damaged))

  def __getitem__(self, index):
    record = super().__getitem__(index)
    return record | {"video": b"damaged"} if index in self.damaged else record


class NotPickled(Exception):
  """An error that a worker can send, but its parent can't receive."""

  def __init__(self, first, second):
    super().__init__(f"{first} {second}")


@dataclasses.dataclass(frozen=True)
class Failing(VideoRecords):
  """Records of which one raises an error that is not about its video."""

  reason: str = ""

  def __getitem__(self, index):
    if index == 13:
      if self.reason == "stop":
        next(iter(()))
      if self.reason == "exit":
        sys.exit(0)
      if self.reason == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
      raise {"value": ValueError("odd value"), "unpickled": NotPickled("odd", "value")}[self.reason]
    return super().__getitem__(index)


FAILURES = {
  "value": (ValueError, "odd value"),
  "stop": (RuntimeError, "raised StopIteration"),
  "exit": (RuntimeError, "raised SystemExit"),
  "unpickled": (RuntimeError, "raised NotPickled: odd value"),
}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("reason", FAILURES)
def test_a_failing_load_is_an_error_in_training(train_records, reason, workers):
  records = Failing(train_records.source, train_records.class_names, reason=reason)
  error, message = FAILURES[reason]
  with pytest.raises(error, match=message):
    training(records, workers=workers)


@pytest.mark.parametrize("reason, workers", [("value", 0), ("stop", 2)])
def test_a_failing_load_is_an_error_in_evaluation(eval_records, reason, workers):
  records = Failing(eval_records.source, eval_records.class_names, reason=reason)
  batches = eval_batches(
    records, SPEC, CENTER, batch_size=8, seed=0, options=LoaderOptions(workers)
  )
  error, message = FAILURES[reason]
  with pytest.raises(error, match=message):
    collect(batches)


def test_a_killed_worker_is_an_error(train_records):
  records = Failing(train_records.source, train_records.class_names, reason="kill")
  with pytest.raises(LostWorkerError, match="terminated unexpectedly with exit code -9"):
    training(records, workers=2)


def test_damaged_clips_are_named_and_substituted(train_records, reference_batches):
  damaged = Damaged.of(train_records, {5, 11, 40})
  batches = training(damaged)
  assert_same(training(damaged, workers=2), batches)
  assert_same(training(damaged, start=4), {name: value[4:] for name, value in batches.items()})
  failed = batches["failed"][batches["failed"] >= 0]
  first_epoch = batches["failed"].ravel()[:48]
  assert sorted(first_epoch[first_epoch >= 0]) == [5, 11, 40]
  assert set(failed) == {5, 11, 40}
  same = (batches["video"] == reference_batches["video"]).all((2, 3, 4, 5))
  np.testing.assert_array_equal(same, batches["failed"] < 0)


def test_damaged_videos_do_not_count_in_evaluation(eval_records):
  damaged = Damaged.of(eval_records, {2, 20})
  whole = dataclasses.replace(CENTER, whole_frames=5)
  batches = collect(
    eval_batches(damaged, SPEC, whole, batch_size=8, seed=0, options=LoaderOptions(0))
  )
  assert batches["video"].shape == (3, 8, 1, 5, 24, 24, 3)
  assert batches["position_ids"].dtype == np.int32
  # The first 5 frames, at the video's own rate.
  expected = np.where((batches["weight"] == 1)[..., None, None], np.arange(5), 0)
  np.testing.assert_array_equal(batches["position_ids"], expected)
  counted = batches["record"][batches["weight"] == 1]
  assert sorted(counted) == [i for i in range(21) if i not in (2, 20)]
  assert sorted(batches["failed"][batches["failed"] >= 0]) == [2, 20]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_data_set_without_a_readable_video_stops_with_a_clear_error(train_records, workers):
  damaged = Damaged.of(train_records, range(48))
  with pytest.raises(VideoError, match="20 records in a row can't be decoded"):
    training(damaged, workers=workers)


def test_damaged_data_sets_are_explained(tiny_data_dir, tmp_path):
  shutil.copytree(tiny_data_dir / "tiny_motion", tmp_path / "tiny_motion")
  (folder,) = (tmp_path / "tiny_motion").iterdir()
  (shard,) = folder.glob("*train.array_record*")
  shard.write_bytes(shard.read_bytes()[:5000])
  with pytest.raises(DatasetError, match=r"can't (be )?read"):
    open_records("tiny_motion", str(tmp_path), "train")[0]
  (folder / "dataset_info.json").write_text('{"name": ')
  with pytest.raises(DatasetError, match="can't read the data set 'tiny_motion'"):
    open_records("tiny_motion", str(tmp_path), "train")
