"""Batches are a function of the step: the same for any workers, hosts and restarts."""

import contextlib
import dataclasses
import functools
import subprocess
import sys
import time

import grain
import numpy as np
import pytest

from tests.data.batches import CENTER, SPEC, assert_same, collect, rows_of, training
from tests.helpers import multi_label
from vswin_jax.data import pipeline
from vswin_jax.data.clips import (
  ClipSpec,
  Views,
  count_views,
  eval_clips,
  train_clip,
)
from vswin_jax.data.pipeline import LoaderOptions, epoch_and_record, eval_batches
from vswin_jax.data.records import DatasetError, VideoRecords, open_records
from vswin_jax.data.video.decoding import VideoError, decode_frames


@pytest.fixture(scope="module")
def several_labels_dir(tmp_path_factory) -> str:
  folder = tmp_path_factory.mktemp("several_labels")
  multi_label.prepare(folder)
  return str(folder)


def test_batches_have_the_documented_form(reference_batches):
  assert reference_batches["video"].shape == (9, 8, 8, 24, 24, 3)
  assert reference_batches["video"].dtype == np.uint8
  assert reference_batches["position_ids"].dtype == np.int32
  # 16 frames leave one clip: every second frame.
  positions = np.broadcast_to(np.arange(0, 16, 2), (9, 8, 8))
  np.testing.assert_array_equal(reference_batches["position_ids"], positions)
  assert reference_batches["label"].dtype == np.int32
  assert (reference_batches["failed"] == -1).all()


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_nothing(train_records, reference_batches, workers):
  assert_same(training(train_records, workers=workers), reference_batches)


@pytest.mark.parametrize("start, workers", [(1, 0), (5, 2)])
def test_starting_later_continues_the_same_stream(train_records, reference_batches, start, workers):
  rest = training(train_records, start=start, workers=workers)
  assert_same(rest, {name: value[start:] for name, value in reference_batches.items()})


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_share_every_global_batch(train_records, reference_batches, hosts):
  parts = [training(train_records, host=host, hosts=hosts) for host in range(hosts)]
  joined = {
    name: np.concatenate([part[name] for part in parts], axis=1) for name in reference_batches
  }
  assert_same(joined, reference_batches)


def test_a_host_may_hold_any_rows_of_a_batch(train_records, reference_batches):
  rows = [1, 2, 5, 7]
  part = training(train_records, rows=rows)
  assert_same(part, {name: value[:, rows] for name, value in reference_batches.items()})


def test_seed_changes_order_and_augmentation(train_records, reference_batches):
  other = training(train_records, seed=1)
  assert (other["label"] != reference_batches["label"]).any()
  record = train_records[0]
  first, again, another = (
    train_clip(record, SPEC, np.random.default_rng(seed))[0] for seed in (0, 0, 1)
  )
  np.testing.assert_array_equal(first, again)
  assert (first != another).any()


def test_every_epoch_visits_every_record_once_in_another_order():
  epochs = [
    [epoch_and_record(position, 48, 7) for position in range(48 * epoch, 48 * (epoch + 1))]
    for epoch in range(3)
  ]
  for number, visited in enumerate(epochs):
    assert {epoch for epoch, _ in visited} == {number}
    assert sorted(record for _, record in visited) == list(range(48))
  orders = [[record for _, record in visited] for visited in epochs]
  assert orders[0] != orders[1] != orders[2] != list(range(48))


@pytest.fixture(scope="module")
def repeated_batches(train_records):
  """27 visits of 3 clips in batches of 8, the 17th to 19th visit across two batches."""
  return training(train_records, repeats=3, steps=10)


def test_repeats_stand_together_and_differ(train_records, reference_batches, repeated_batches):
  visits = [epoch_and_record(visit, 48, 0) for visit in range(27)]
  clips = repeated_batches["video"].reshape(80, 8, 24, 24, 3)
  labels = [train_records[record]["label"] for _, record in visits]
  np.testing.assert_array_equal(repeated_batches["label"].ravel(), np.repeat(labels, 3)[:80])
  # The first of each three is the clip that there is without repeats.
  np.testing.assert_array_equal(
    clips[::3], reference_batches["video"].reshape(72, *clips[0].shape)[:27]
  )
  for first in range(0, 78, 3):
    one, two, three = clips[first : first + 3]
    assert (one != two).any() and (one != three).any() and (two != three).any()
  # They are crops of the same video: the records of this data set differ in more than crops.
  for place in (0, 1, 2):
    epoch, record = visits[0]
    key = (0, epoch, record, place) if place else (0, epoch, record)
    expected, _ = train_clip(train_records[record], SPEC, np.random.default_rng(key))
    np.testing.assert_array_equal(clips[place], expected)


def test_an_epoch_shows_every_video_as_often_as_asked(train_records):
  """Labels are replaced by record numbers."""
  numbered = Numbered(train_records.source, train_records.class_names)
  shown = training(numbered, repeats=2, steps=24)["label"].ravel()
  for epoch in (shown[:96], shown[96:]):
    assert sorted(epoch) == sorted([*range(48), *range(48)])
    np.testing.assert_array_equal(epoch[::2], epoch[1::2])
  assert (shown[:96] != shown[96:]).any()


@pytest.mark.parametrize("hosts, workers, start", [(4, 0, 3), (1, 2, 7)])
def test_repeats_depend_on_nothing_but_the_step(
  train_records, repeated_batches, hosts, workers, start
):
  parts = [
    training(
      train_records, repeats=3, steps=10, host=host, hosts=hosts, workers=workers, start=start
    )
    for host in range(hosts)
  ]
  joined = {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}
  assert_same(joined, {name: value[start:] for name, value in repeated_batches.items()})


def test_train_clip_is_the_stated_composition(train_records):
  """Without resizing, cropping and flipping, the clip is the decoded frames."""
  spec = dataclasses.replace(
    SPEC, size=48, train_short_side=48, area_range=(1.0, 1.0), aspect_ratio_range=(1.0, 1.0),
    flip_probability=0.0,
  )  # fmt: skip
  record = train_records[3]
  clip, _ = train_clip(record, spec, np.random.default_rng(0))
  frames = decode_frames(record["video"], range(0, 16, 2))
  np.testing.assert_array_equal(clip, frames)
  flipped, _ = train_clip(
    record, dataclasses.replace(spec, flip_probability=1.0), np.random.default_rng(0)
  )
  np.testing.assert_array_equal(flipped, frames[:, :, ::-1])


def test_dense_clips_of_a_resampled_video(train_records):
  """16 frames at 12 frames/s, resampled to 8: frames 0, 1.5, 3, 4.5 and so on, 10 of them."""
  spec = dataclasses.replace(
    SPEC, num_frames=3, frame_interval=3, frame_rate=8.0, size=48, train_short_side=48,
    area_range=(1.0, 1.0), aspect_ratio_range=(1.0, 1.0), flip_probability=0.0,
  )  # fmt: skip
  record = {**train_records[3], "fps_numerator": 24, "fps_denominator": 2}
  views = Views(num_clips=1, crops="center", short_side=48)
  assert record["num_frames"] == 16
  random = np.random.default_rng(0)
  # Clips span 9 of the 10 frames: they start at frame 0 or 1, the one of an evaluation at 1.
  expected = decode_frames(record["video"], [1, 6, 10])
  np.testing.assert_array_equal(eval_clips(record, spec, views, random)[0][0], expected)
  starts = {tuple(clip) for clip in ([0, 4, 9], [1, 6, 10])}
  trained = [train_clip(record, spec, random)[0] for _ in range(12)]
  for clip in trained:
    assert any((clip == decode_frames(record["video"], start)).all() for start in starts)
  assert any((clip != trained[0]).any() for clip in trained)
  with pytest.raises(VideoError, match="no frame rate, which is needed to resample it to 8"):
    train_clip({**record, "fps_numerator": 0, "fps_denominator": 1}, spec, random)


@pytest.mark.parametrize("order", ["shuffled", "single"])
def test_frame_orders_take_the_motion_away(train_records, order):
  plain = dataclasses.replace(
    SPEC, num_frames=16, frame_interval=1, size=48, train_short_side=48, area_range=(1.0, 1.0),
    aspect_ratio_range=(1.0, 1.0), flip_probability=0.0,
  )  # fmt: skip
  spec = dataclasses.replace(plain, frame_order=order)
  record = train_records[0]
  frames, positions = train_clip(record, plain, np.random.default_rng(0))
  clip, unmoved = train_clip(record, spec, np.random.default_rng(0))
  np.testing.assert_array_equal(unmoved, positions)
  match = (clip[:, None] == frames[None]).all((2, 3, 4))
  assert (match.sum(1) == 1).all()
  used = match.argmax(1)
  if order == "shuffled":
    assert sorted(used) == list(range(16)) != list(used)
  else:
    assert len(set(used)) == 1


def test_uniform_sampling_takes_one_clip_over_the_video(train_records):
  spec = dataclasses.replace(SPEC, sampling="uniform", num_frames=4)
  assert train_clip(train_records[0], spec, np.random.default_rng(0))[0].shape == (4, 24, 24, 3)
  assert count_views(spec, Views(num_clips=4, crops="three", short_side=24)) == 3


def test_views_are_crop_major(train_records):
  spec = dataclasses.replace(SPEC, num_frames=4, frame_interval=1, size=32)
  views = Views(num_clips=3, crops="three", short_side=32)
  clips, _ = eval_clips(train_records[0], spec, views, np.random.default_rng(0))
  assert clips.shape == (9, 4, 32, 32, 3)
  assert (clips[0] != clips[1]).any() and (clips[1] != clips[2]).any()
  # Square frames: the three crops coincide.
  np.testing.assert_array_equal(clips[:3], clips[3:6])
  np.testing.assert_array_equal(clips[:3], clips[6:])


@pytest.mark.parametrize("batch_size, hosts, workers", [(8, 1, 0), (4, 4, 0), (32, 1, 2)])
def test_evaluation_visits_every_video_once(eval_records, batch_size, hosts, workers):
  parts = [
    collect(
      eval_batches(
        eval_records,
        SPEC,
        CENTER,
        batch_size=batch_size,
        seed=0,
        options=LoaderOptions(num_workers=workers),
        rows=rows_of(host, hosts, batch_size),
      )
    )
    for host in range(hosts)
  ]
  # Every host must run the same number of steps, or the others would wait for it forever.
  assert len({len(part["record"]) for part in parts}) == 1
  records = np.concatenate([part["record"].ravel() for part in parts])
  weights = np.concatenate([part["weight"].ravel() for part in parts])
  labels = np.concatenate([part["label"].ravel() for part in parts])
  assert sorted(records[weights == 1]) == list(range(21))
  for record, label in zip(records[weights == 1], labels[weights == 1]):
    assert eval_records[int(record)]["label"] == label


@pytest.mark.parametrize("hosts", [2, 4])
def test_several_labels_of_a_video_arrive_as_zeros_and_ones(several_labels_dir, hosts):
  records = open_records(multi_label.NAME, several_labels_dir, "validation")
  assert records.multi_label and records.class_names == multi_label.CLASSES
  parts = [
    collect(
      eval_batches(
        records, SPEC, CENTER, batch_size=4, seed=0, options=LoaderOptions(hosts == 2),
        rows=rows_of(host, hosts, 4),
      )
    )
    for host in range(hosts)
  ]  # fmt: skip
  flat = {
    name: np.concatenate([part[name].reshape(-1, *part[name].shape[2:]) for part in parts])
    for name in ("record", "weight", "label")
  }
  counted = flat["weight"] == 1
  assert sorted(flat["record"][counted]) == list(range(11))
  assert flat["label"].dtype == np.uint8 and not flat["label"][~counted].any()
  for record, label in zip(flat["record"][counted], flat["label"][counted]):
    expected = multi_label.labels_of(records, int(record), "validation")
    np.testing.assert_array_equal(np.flatnonzero(label == 1), expected)
    assert label.sum() == len(expected)


def test_training_clips_carry_several_labels(several_labels_dir):
  records = open_records(multi_label.NAME, several_labels_dir, "train")
  batches = training(records, steps=4)
  assert batches["label"].shape == (4, 8, 6) and batches["label"].dtype == np.uint8
  for place, label in enumerate(batches["label"].reshape(32, 6)):
    _, record = epoch_and_record(place, 16, 0)
    expected = multi_label.labels_of(records, record, "train")
    np.testing.assert_array_equal(np.flatnonzero(label), expected)


@dataclasses.dataclass(frozen=True)
class Numbered(VideoRecords):
  """Records labeled with their index."""

  def __getitem__(self, index):
    return super().__getitem__(index) | {"label": index}


@pytest.mark.parametrize(
  ("kind", "options", "message"),
  [
    (ClipSpec, {"frame_order": "random"}, "choose one of ordered, shuffled, single"),
    (ClipSpec, {"num_frames": 0}, "num_frames must be at least 1"),
    (ClipSpec, {"area_range": (0.5, 0.1)}, "area_range must be"),
    (ClipSpec, {"frame_rate": -1.0}, "frame_rate must be 0 or a positive number, got -1.0"),
    (ClipSpec, {"frame_rate": float("nan")}, "frame_rate must be 0 or a positive number, got nan"),
    (ClipSpec, {"frame_rate": float("inf")}, "frame_rate must be 0 or a positive number, got inf"),
    (
      ClipSpec,
      {"train_crop": "central"},
      "unknown train_crop .central.; choose",
    ),
    (ClipSpec, {"train_crop": "jittered", "size": 257}, "short_side_range must begin at size 257"),
    (ClipSpec, {"train_crop": "jittered", "short_side_range": (320, 256)}, "short_side_range must"),
    (Views, {"num_clips": 0}, "num_clips must be at least 1"),
    (Views, {"whole_frames": -1}, "whole_frames must be at least 0"),
    (LoaderOptions, {"num_workers": -1}, "num_workers must be at least 0"),
  ],
)
def test_impossible_options_are_refused(kind, options, message):
  with pytest.raises(ValueError, match=message):
    kind(**options)


def test_missing_data_is_explained(tiny_data_dir):
  with pytest.raises(DatasetError, match="no data set is named"):
    open_records("", str(tiny_data_dir), "train")
  with pytest.raises(DatasetError, match=r"split 'train\[:0\]' of .* are train, validation"):
    open_records("tiny_motion", str(tiny_data_dir), "train[:0]")
  with pytest.raises(DatasetError, match=r"no data set 'kinetics400' under .*vswin_jax.prepare"):
    open_records("kinetics400", str(tiny_data_dir), "train")
  with pytest.raises(DatasetError, match=r"split 'test' of .* are train, validation"):
    open_records("tiny_motion", str(tiny_data_dir), "test")


def test_data_modules_and_the_training_command_import_no_jax():
  code = (
    "import sys, vswin_jax.data.clips, vswin_jax.data.records, vswin_jax.data.motion,"
    "vswin_jax.main; sys.exit('jax' in sys.modules)"
  )
  assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
  "gibibytes, expected",
  [
    (72, (8, 2)),
    (71, (8, 1)),  # 9 batches of a gibibyte in each of eight workers are 72
    (47, (7, 1)),
    (14, (2, 1)),
    (1, (1, 1)),
  ],
)
def test_large_batches_are_loaded_by_fewer_workers(gibibytes, expected):
  options = LoaderOptions(num_workers=8, prefetch_batches=2, memory_gib=gibibytes)
  fitting = pipeline.within_memory(options, 2**30)
  assert (fitting.num_workers, fitting.prefetch_batches) == expected
  without = dataclasses.replace(options, num_workers=0)
  assert pipeline.within_memory(without, 2**30).num_workers == 0


def note(index: int, folder) -> dict:
  (folder / str(index)).touch()
  return {"index": np.int32(index)}


def test_a_worker_buffers_as_many_batches_as_the_memory_limit_counts(tmp_path):
  batches = grain.MapDataset.range(99).map(functools.partial(note, folder=tmp_path)).batch(1)
  options = LoaderOptions(num_workers=1, prefetch_batches=1)
  with contextlib.closing(pipeline.iterate(batches, options)) as loaded:
    next(loaded)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.iterdir())) < 6 and time.monotonic() < deadline:
      time.sleep(0.1)
    time.sleep(1)
    assert len(list(tmp_path.iterdir())) == 6
