"""The generated data set: only the order of the frames tells the class."""

import numpy as np
import pytest

from vswin_jax.data import motion
from vswin_jax.data.records import open_records
from vswin_jax.data.video.decoding import decode_frames, probe


@pytest.mark.parametrize("name", motion.MOTIONS)
def test_every_component_takes_the_same_values_in_every_class(name):
  component, direction = motion.MOTIONS[name]
  clips = np.stack([motion.poses(name, np.random.default_rng(seed)) for seed in range(500)])
  assert clips.shape == (500, motion.NUM_FRAMES, 3)
  # Evenly spaced, each once: only the offset, drawn alike for all classes, differs.
  steps = np.diff(np.sort(clips, axis=1), axis=1)
  np.testing.assert_allclose(steps, 2 / motion.NUM_FRAMES, atol=1e-12)
  assert (np.diff(clips[:, :, component], axis=1) * direction > 0).all()
  for other in set(range(3)) - {component}:
    # A uniformly random order: no value prefers a place in time, no trend.
    ranks = clips[:, :, other].argsort(1).argsort(1)
    spread = np.sqrt((motion.NUM_FRAMES**2 - 1) / 12 / len(clips))
    assert np.abs(ranks.mean(0) - (motion.NUM_FRAMES - 1) / 2).max() < 4.5 * spread
    assert (np.diff(clips[:, :, other], axis=1) > 0).mean() == pytest.approx(0.5, abs=0.03)


def test_without_order_the_classes_are_distributed_alike():
  """Checks that the values of any two components are matched uniformly at random in every class.

  Then the rank correlation between components has mean 0 and variance 1 / (frames - 1).
  """
  for name in motion.MOTIONS:
    clips = np.stack([motion.poses(name, np.random.default_rng(seed)) for seed in range(800)])
    ranks = clips.argsort(1).argsort(1) - (motion.NUM_FRAMES - 1) / 2
    ranks = ranks / ranks.std(1, keepdims=True)
    for a in range(3):
      for b in range(a):
        correlation = (ranks[:, :, a] * ranks[:, :, b]).mean(1)
        variance = 1 / (motion.NUM_FRAMES - 1)
        assert abs(correlation.mean()) < 4.5 * np.sqrt(variance / len(clips))
        assert correlation.var() == pytest.approx(variance, rel=0.25)


def test_rendered_shape_follows_the_pose():
  def shape_pixels(*pose):
    """(column, row, number) of the bright pixels; the same look every time."""
    frame = motion.render(np.array([pose, pose]), np.random.default_rng(3))[0]
    rows, columns = np.nonzero(frame.max(-1) > 128)
    return np.array([columns.mean(), rows.mean(), len(rows)])

  still = shape_pixels(0, 0, 0)
  for component in (0, 1):
    distance = 0.5 * 0.25 * motion.SIZE * np.eye(2)[component]
    moved = shape_pixels(*np.eye(3)[component] * 0.5)
    np.testing.assert_allclose((moved - still)[:2], distance, atol=0.7)
  larger, smaller = shape_pixels(0, 0, 0.5), shape_pixels(0, 0, -0.5)
  assert larger[2] / still[2] == pytest.approx(np.exp(0.35), rel=0.1)
  assert still[2] / smaller[2] == pytest.approx(np.exp(0.35), rel=0.1)


def test_data_set_is_reproducible_balanced_and_decodable(tiny_data_dir):
  records = open_records("tiny_motion", str(tiny_data_dir), "train")
  assert records.class_names == tuple(motion.MOTIONS)
  assert len(records) == 48
  labels = [int(records[i]["label"]) for i in range(48)]
  np.testing.assert_array_equal(np.bincount(labels), np.full(6, 8))
  ids = {records.video_id(i) for i in range(48)}
  assert len(ids) == 48
  for index in (0, 17):
    record = records[index]
    metadata = probe(record["video"])
    assert (metadata.num_frames, metadata.height, metadata.width) == (16, motion.SIZE, motion.SIZE)
    assert (record["num_frames"], record["fps_numerator"]) == (16, motion.FPS)
    assert decode_frames(record["video"], range(16)).std() > 10
    number = int(record["id"].decode().split("_")[-1])
    assert motion.make_record((0, number))["video"] == record["video"]
  other = open_records("tiny_motion", str(tiny_data_dir), "validation")
  assert not ids & {other.video_id(i) for i in range(len(other))}
