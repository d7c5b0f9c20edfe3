"""Frame sampling against indices of the reference implementation, or worked out by hand."""

import fractions
import json

import numpy as np
import pytest

from tests.helpers.golden import GOLDEN
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
      length, interval = case["clip_len"], case["frame_interval"]
      starts = sampling.middle_starts(case["total_frames"], length * interval, case["num_clips"])
      frames = sampling.dense_clips(starts, case["total_frames"], length, interval)
    np.testing.assert_array_equal(frames.ravel(), np.ravel(case["indices"]), err_msg=str(case))


@pytest.mark.parametrize("case", TRAINING, ids=lambda case: str(case["total_frames"]))
def test_training_starts_cover_the_range_of_the_reference(case):
  random = np.random.default_rng(0)
  total, length, interval = case["total_frames"], case["clip_len"], case["frame_interval"]
  starts = [sampling.random_start(total, length * interval, random) for _ in range(4000)]
  assert (min(starts), max(starts)) == (case["first_frame_min"], case["first_frame_max"])
  for start, clip in zip(starts, sampling.dense_clips(starts[:50], total, length, interval)):
    np.testing.assert_array_equal(clip, (start + interval * np.arange(length)) % total)


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
  step = sampling.source_step(fractions.Fraction(fps), frame_rate)
  frames = sampling.resample(num_frames, step)
  np.testing.assert_array_equal(frames, expected)


def test_resampling_does_not_round():
  """Frame 120 is source frame 125, where single precision arrives below it."""
  assert np.floor(np.float32(120) * np.float32(25 / 24)) == 124
  assert sampling.resample(1000, fractions.Fraction(25, 24))[120] == 125


def test_clips_to_the_ends_are_those_of_mmaction2():
  """Starts worked out by hand from its rule: 0 to 300 - 63, in three equal steps, rounded."""
  starts = sampling.starts_to_ends(300, 63, 4)
  assert starts.tolist() == [0, 79, 158, 237]
  assert sampling.dense_clips(starts, 300, 32, 2)[3, -1] == 299
  assert sampling.starts_to_ends(300, 63, 1).tolist() == [118]
  assert sampling.starts_to_ends(40, 63, 4).tolist() == [0, 0, 0, 0]
  assert sampling.dense_clips([0], 40, 32, 2)[0].tolist() == [2 * i % 40 for i in range(32)]


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


# Published positions of 16 frames that span 128 frames at 25 frames/s.
TIMES = {
  "24": [0, 8, 16, 24, 32, 40, 48, 56, 65, 73, 81, 89, 97, 105, 113, 121],
  "25": [0, 8, 16, 25, 33, 42, 50, 59, 67, 76, 84, 93, 101, 110, 118, 127],
  "30": [0, 10, 20, 30, 40, 50, 61, 71, 81, 91, 101, 111, 122, 132, 142, 152],
}


def span_at(fps: str | int, count: int) -> fractions.Fraction:
  """Returns the number of frames at `fps` that last as long as `count` at 25 frames/s."""
  return count * sampling.source_step(fractions.Fraction(fps), 25.0)


@pytest.mark.parametrize("fps", TIMES)
def test_time_sampling_equals_the_reference(fps):
  span = span_at(fps, 128)
  np.testing.assert_array_equal(sampling.time_clips([0], 400, 16, span), [TIMES[fps]])
  # Past the end the last frame repeats.
  expected = np.minimum(TIMES[fps], 99)
  np.testing.assert_array_equal(sampling.time_clips([0], 100, 16, span), [expected])


def test_clips_of_time_sampling_lie_evenly_from_the_beginning_on():
  """200 frames leave 200 - 153.6 starts at 30 frames/s; a fourth of that is 11.6."""
  span = span_at("30", 128)
  starts = sampling.even_starts(200, span, 4)
  clips = sampling.time_clips(starts, 200, 16, span)
  np.testing.assert_array_equal(clips, np.array([[0], [11], [23], [34]]) + TIMES["30"])


def test_training_clips_of_time_sampling_start_wherever_they_fit():
  span = span_at("30", 128)
  random = np.random.default_rng(0)
  starts = [sampling.random_start(160, span, random) for _ in range(200)]
  assert set(starts) == set(range(7))
  clips = sampling.time_clips(starts, 160, 16, span)
  np.testing.assert_array_equal(clips, np.array(starts)[:, None] + TIMES["30"])
  assert sampling.random_start(100, span, random) == 0


@pytest.mark.parametrize(("fps", "num_frames"), [(15, 150), (25, 250), (30, 300), (60, 600)])
def test_whole_videos_equal_the_reference(fps, num_frames):
  """250 frames of 10 s; longer videos are cut."""
  span = span_at(fps, 250)
  (frames,) = sampling.whole_clip(num_frames, 250, span)
  assert (frames[0], frames[-1]) == (0, num_frames - 1)
  # How many frames lie behind the last position that the reference knows.
  assert (frames >= 286).sum() == {15: 0, 25: 0, 30: 11, 60: 131}[fps]
  steps = {15: {0, 1}, 25: {1}, 30: {1, 2}, 60: {2, 3}}[fps]
  assert set(np.diff(frames)) == steps
  np.testing.assert_array_equal(sampling.whole_clip(4 * num_frames, 250, span), [frames])


def test_short_whole_videos_repeat_frames():
  span = fractions.Fraction(250)
  np.testing.assert_array_equal(sampling.whole_clip(249, 250, span), [[*range(249), 248]])
  # A third of a frame at a time, up to the frame after the last.
  thirds = [i // 3 for i in range(250)]
  np.testing.assert_array_equal(sampling.whole_clip(83, 250, span), [[*thirds[:-1], 82]])


def test_a_timeline_of_time_sampling():
  """Clips of 12.8 frames: 4 frames of 3.2."""
  record = {"num_frames": 77, "fps_numerator": 16, "fps_denominator": 1}
  spec = ClipSpec(num_frames=4, frame_interval=2, frame_rate=10.0, sampling="time")
  starts, parts = sliding_starts(record, spec)
  # 77 / 12.8 is 6.02. The frames of the last clip are 65, 68.9, 72.9 and 76.8.
  assert starts.tolist() == [0, 12, 25, 38, 51, 64, 65]
  assert parts.tolist() == [0, 12, 25, 38, 51, 64, 76]
  starts, parts = sliding_starts(record | {"num_frames": 5}, spec)
  assert (starts.tolist(), parts.tolist()) == ([0], [0])
