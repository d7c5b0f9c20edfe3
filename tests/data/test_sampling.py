"""Frame sampling against indices of the reference implementation, or worked out by hand."""

import fractions
import json

import numpy as np
import pytest

from tests.reference_weights import GOLDEN
from vswin_jax.data import sampling
from vswin_jax.data.clips import ClipSpec, sliding_starts

EVALUATION = json.loads((GOLDEN / "sample_frames_eval.json").read_text())
TRAINING = json.loads((GOLDEN / "sample_frames_train_range.json").read_text())


@pytest.mark.parametrize("uniform", [False, True])
def test_evaluation_equals_the_reference(uniform):
  cases = [case for case in EVALUATION if case["uniform"] == uniform]
  assert cases
  for case in cases:
    if uniform:
      frames = sampling.uniform_eval(case["total_frames"], case["clip_len"])
    else:
      frames = sampling.dense_eval(
        case["total_frames"], case["clip_len"], case["frame_interval"], case["num_clips"]
      )
    np.testing.assert_array_equal(frames.ravel(), np.ravel(case["indices"]), err_msg=str(case))


@pytest.mark.parametrize("case", TRAINING, ids=lambda case: str(case["total_frames"]))
def test_training_starts_cover_the_range_of_the_reference(case):
  random = np.random.default_rng(0)
  total, length, interval = case["total_frames"], case["clip_len"], case["frame_interval"]
  clips = [sampling.dense_train(total, length, interval, random)[0] for _ in range(4000)]
  starts = [clip[0] for clip in clips]
  assert (min(starts), max(starts)) == (case["first_frame_min"], case["first_frame_max"])
  for clip in clips[:50]:
    np.testing.assert_array_equal(clip, (clip[0] + interval * np.arange(length)) % total)


def test_training_with_several_clips_keeps_each_in_its_range():
  random = np.random.default_rng(0)
  starts = np.stack([sampling.dense_train(300, 32, 2, random, 3)[:, 0] for _ in range(3000)])
  length = (300 - 64 + 1) // 3
  np.testing.assert_array_equal(starts.min(0), np.arange(3) * length)
  np.testing.assert_array_equal(starts.max(0), np.arange(1, 4) * length - 1)


@pytest.mark.parametrize("total", [20, 33, 40, 300])
def test_uniform_training_stays_inside_its_segments(total):
  random = np.random.default_rng(0)
  edges = [round((total - 1) / 32 * i) for i in range(33)]
  frames = np.stack([sampling.uniform_train(total, 32, random)[0] for _ in range(2000)])
  np.testing.assert_array_equal(frames.min(0), edges[:-1])
  np.testing.assert_array_equal(frames.max(0), edges[1:])


@pytest.mark.parametrize(
  ("num_frames", "fps", "frame_rate", "expected"),
  [
    # Step 2; the odd frame at the end does not fill one of the slower video.
    (9, "30", 15.0, [0, 2, 4, 6]),
    # Step 1.2: 0, 1.2, 2.4, 3.6, 4.8, then 6 exactly.
    (12, "30", 25.0, [0, 1, 2, 3, 4, 6, 7, 8, 9, 10]),
    # Step 2.5.
    (11, "25", 10.0, [0, 2, 5, 7]),
    # Step 0.5 repeats frames.
    (3, "15", 30.0, [0, 0, 1, 1, 2, 2]),
    # Step 1.998: 0, 1.998, 3.996, 5.994; 9 / 1.998 is 4.5.
    (9, "30000/1001", 15.0, [0, 1, 3, 5]),
    # The same rate, given as a float.
    (5, "30000/1001", 30000 / 1001, [0, 1, 2, 3, 4]),
    (5, "2997/100", 29.97, [0, 1, 2, 3, 4]),
    # Less than one frame is one.
    (3, "30", 0.5, [0]),
    (1, "25", 25.0, [0]),
  ],
)
def test_resampling(num_frames, fps, frame_rate, expected):
  frames = sampling.resample(num_frames, fractions.Fraction(fps), frame_rate)
  np.testing.assert_array_equal(frames, expected)


def test_resampling_does_not_round():
  """Frame 120 is source frame 125, where single precision arrives below it."""
  assert np.floor(np.float32(120) * np.float32(25 / 24)) == 124
  assert sampling.resample(1000, fractions.Fraction(25), 24.0)[120] == 125


def test_clips_to_the_ends_are_those_of_mmaction2():
  """Starts worked out by hand from its rule: 0 to 300 - 63, in three equal steps, rounded."""
  clips = sampling.dense_eval_to_ends(300, 32, 2, 4)
  assert clips[:, 0].tolist() == [0, 79, 158, 237]
  assert clips[3, -1] == 299
  assert sampling.dense_eval_to_ends(300, 32, 2, 1)[0, 0] == 118
  short = sampling.dense_eval_to_ends(40, 32, 2, 4)
  assert short[:, 0].tolist() == [0, 0, 0, 0]
  assert short[0].tolist() == [2 * i % 40 for i in range(32)]


def test_clips_of_a_timeline_follow_each_other_and_the_last_one_ends_with_the_video():
  record = {"num_frames": 77, "fps_numerator": 10, "fps_denominator": 1}
  starts, parts = sliding_starts(record, ClipSpec(num_frames=4, frame_interval=3))
  assert starts.tolist() == [0, 12, 24, 36, 48, 60, 65]
  assert parts.tolist() == [0, 12, 24, 36, 48, 60, 72]
  # At half the frame rate, 38 frames are left, every second one of the video.
  starts, parts = sliding_starts(record, ClipSpec(num_frames=4, frame_interval=3, frame_rate=5.0))
  assert starts.tolist() == [0, 12, 24, 26]
  assert parts.tolist() == [0, 24, 48, 72]
  starts, parts = sliding_starts(record | {"num_frames": 5}, ClipSpec(num_frames=4))
  assert (starts.tolist(), parts.tolist()) == ([0], [0])
