"""The generated data set: only the order of the frames may tell the class."""

import numpy as np
import pytest

from vswin_jax.data import motion
from vswin_jax.data.decoding import decode_frames, probe
from vswin_jax.data.records import open_records


@pytest.mark.parametrize("name", motion.MOTIONS)
def test_every_component_takes_the_same_values_in_every_class(name):
  component, direction = motion.MOTIONS[name]
  clips = np.stack([motion.poses(name, np.random.default_rng(seed)) for seed in range(500)])
  assert clips.shape == (500, motion.NUM_FRAMES, 4)
  # Evenly spaced, each once: only the offset, drawn alike for all classes, differs.
  steps = np.diff(np.sort(clips, axis=1), axis=1)
  np.testing.assert_allclose(steps, 2 / motion.NUM_FRAMES, atol=1e-12)
  assert (np.diff(clips[:, :, component], axis=1) * direction > 0).all()
  for other in set(range(4)) - {component}:
    # A uniformly random order: no value prefers a place in time, no trend.
    ranks = clips[:, :, other].argsort(1).argsort(1)
    spread = np.sqrt((motion.NUM_FRAMES**2 - 1) / 12 / len(clips))
    assert np.abs(ranks.mean(0) - (motion.NUM_FRAMES - 1) / 2).max() < 4.5 * spread
    assert (np.diff(clips[:, :, other], axis=1) > 0).mean() == pytest.approx(0.5, abs=0.03)


def test_without_order_the_classes_are_distributed_alike():
  """How the values of any two components are matched in a clip is uniformly random: the mean rank
  correlation between components is zero and its variance 1 / (frames - 1), in every class."""
  for name in motion.MOTIONS:
    clips = np.stack([motion.poses(name, np.random.default_rng(seed)) for seed in range(800)])
    ranks = clips.argsort(1).argsort(1) - (motion.NUM_FRAMES - 1) / 2
    ranks = ranks / ranks.std(1, keepdims=True)
    for a in range(4):
      for b in range(a):
        correlation = (ranks[:, :, a] * ranks[:, :, b]).mean(1)
        variance = 1 / (motion.NUM_FRAMES - 1)
        assert abs(correlation.mean()) < 4.5 * np.sqrt(variance / len(clips))
        assert correlation.var() == pytest.approx(variance, rel=0.25)


def test_rendering_moves_the_shape_as_the_class_says():
  random = np.random.default_rng(0)
  still = np.zeros((2, 4))

  def bright(pose):
    frame = motion.render(np.stack([pose, pose]), np.random.default_rng(3))[0].max(-1) > 128
    rows, columns = np.nonzero(frame)
    return columns.mean(), rows.mean(), len(rows)

  del random
  column, row, area = bright(still[0])
  assert bright(np.array([1.0, 0, 0, 0]))[0] == pytest.approx(column + 12, abs=1)
  assert bright(np.array([0, 1.0, 0, 0]))[1] == pytest.approx(row + 12, abs=1)
  assert bright(np.array([0, 0, 0, 1.0]))[2] == pytest.approx(area * np.exp(0.7), rel=0.15)

  def nose(angle):
    frame = motion.render(np.array([[0, 0, angle, 0]] * 2), np.random.default_rng(3))[0].astype(int)
    rows, columns = np.nonzero(frame[..., 2] - frame[..., 0] > 60)
    return columns.mean()

  # Clockwise: the nose, on top of the shape, goes to the right.
  assert nose(-0.5) + 3 < nose(0.0) < nose(0.5) - 3


def test_data_set_is_reproducible_balanced_and_decodable(tiny_data_dir):
  records = open_records("tiny_motion", str(tiny_data_dir), "train")
  assert records.class_names == tuple(motion.MOTIONS)
  assert len(records) == 48
  labels = [int(records[i]["label"]) for i in range(48)]
  np.testing.assert_array_equal(np.bincount(labels), np.full(8, 6))
  ids = {records.video_id(i) for i in range(48)}
  assert len(ids) == 48
  for index in (0, 17):
    record = records[index]
    facts = probe(record["video"])
    assert (facts.num_frames, facts.height, facts.width) == (16, motion.SIZE, motion.SIZE)
    assert (record["num_frames"], record["fps_numerator"]) == (16, motion.FPS)
    assert decode_frames(record["video"], range(16)).std() > 10
    number = int(record["id"].decode().split("_")[-1])
    assert motion.make_record((0, number))["video"] == record["video"]
  other = open_records("tiny_motion", str(tiny_data_dir), "validation")
  assert not ids & {other.video_id(i) for i in range(len(other))}
