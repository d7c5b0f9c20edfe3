"""Clips, views and positions of their frames, against values worked out by hand."""

import contextlib
import dataclasses

import cv2
import numpy as np
import pytest

from vswin_jax.data import transforms
from vswin_jax.data.clips import (
  ClipSpec,
  Views,
  central_view,
  check_views,
  count_views,
  describe_views,
  eval_clips,
  sliding_clip,
  train_clip,
)
from vswin_jax.data.pipeline import LoaderOptions, clip_batches
from vswin_jax.data.preprocessing import Preprocessing
from vswin_jax.data.video.decoding import VideoError, decode_frames, probe
from vswin_jax.data.video.encoding import encode_mp4

# Frames of the video below keep their size in an evaluation.
SPEC = ClipSpec(num_frames=4, frame_interval=3, size=32)
THREE = Views(num_clips=2, crops="three", short_side=32)


@pytest.fixture(scope="module")
def record():
  """40 frames of 32 x 44 at 10 frames/s, no two alike."""
  frames = np.random.default_rng(0).integers(0, 256, (40, 32, 44, 3), np.uint8)
  video = encode_mp4(frames, 10)
  return {"video": video, **dataclasses.asdict(probe(video))}


@pytest.mark.parametrize(
  ("options", "starts", "expected"),
  [
    ({}, [7, 21], [0, 3, 6, 9]),
    # Resampled: 0, 3, 6, 10, 13 and so on, 12 frames; clips start at numbers 1 and 3 of them.
    ({"frame_rate": 3.0, "frame_interval": 2}, [3, 10], [[0, 7, 13, 20], [0, 6, 13, 20]]),
    ({"sampling": "dense_to_ends", "frame_order": "single"}, [0, 30], [0, 3, 6, 9]),
    # Segments between 0, 10, 20, 29 and 39: frames 5, 15, 24 and 34.
    ({"sampling": "uniform", "frame_order": "shuffled"}, [5], [0, 10, 19, 29]),
    # Clips of 24 frames: 0, 23 / 3, 46 / 3, 23.
    ({"sampling": "time", "frame_rate": 5.0}, [0, 8], [0, 7, 15, 23]),
    # Clips of less than a frame are one frame.
    ({"sampling": "time", "frame_rate": 50.0, "frame_interval": 1}, [0, 19], [0, 0, 0, 0]),
  ],
)
def test_positions_of_views_count_from_the_first_frame_of_each(record, options, starts, expected):
  spec = dataclasses.replace(SPEC, **options)
  views, positions = eval_clips(record, spec, THREE, np.random.default_rng(0))
  assert positions.dtype == np.int32
  expected = np.broadcast_to(expected, (len(starts), 4))
  np.testing.assert_array_equal(positions, [*expected, *expected, *expected])
  frames = decode_frames(record["video"], (np.array(starts)[:, None] + expected).ravel())
  # Other frame orders change the frames.
  if spec.frame_order == "ordered":
    first_crops = views[: len(starts)].reshape(-1, 32, 32, 3)
    np.testing.assert_array_equal(first_crops, frames[:, :, :32])


def test_positions_of_a_short_video_go_back_to_its_start(record):
  five = record | {"num_frames": 5}
  _, positions = train_clip(five, SPEC, np.random.default_rng(0))
  assert (positions.dtype, positions.tolist()) == (np.int32, [0, 3, 1, 4])


@pytest.mark.parametrize(
  ("options", "start", "expected"),
  [
    ({}, 12, [12, 15, 18, 21]),
    ({"frame_rate": 5.0, "sampling": "uniform"}, 5, [10, 16, 22, 28]),
    ({"frame_rate": 5.0, "sampling": "time"}, 16, [16, 23, 31, 39]),
  ],
)
def test_positions_in_a_timeline_are_those_in_the_video(record, options, start, expected):
  spec = dataclasses.replace(SPEC, **options)
  views = dataclasses.replace(THREE, whole_frames=9)
  crops, positions = sliding_clip(record, spec, views, start)
  assert positions.dtype == np.int32
  np.testing.assert_array_equal(positions, [expected] * 3)
  frames = decode_frames(record["video"], expected)
  np.testing.assert_array_equal(crops, [frames[:, :, left : left + 32] for left in (0, 12, 6)])


@pytest.mark.parametrize("sampling", ["dense", "uniform", "time"])
@pytest.mark.parametrize(
  ("frame_rate", "expected"),
  # At its own rate, the first 6 frames; 12 frames, 11 / 5 apart; all 40, 40 / 5 apart; one frame.
  [
    (0.0, [0, 1, 2, 3, 4, 5]),
    (5.0, [0, 2, 4, 6, 8, 11]),
    (1.0, [0, 8, 16, 24, 32, 39]),
    (100.0, [0] * 6),
  ],
)
def test_a_whole_video_is_one_clip_whatever_the_sampling(record, sampling, frame_rate, expected):
  spec = dataclasses.replace(SPEC, sampling=sampling, frame_rate=frame_rate)
  whole = dataclasses.replace(THREE, whole_frames=6)
  views, positions = eval_clips(record, spec, whole, np.random.default_rng(0))
  assert (count_views(spec, whole), describe_views(spec, whole)) == (3, "1x3")
  np.testing.assert_array_equal(positions, [expected] * 3)
  frames = decode_frames(record["video"], expected)
  np.testing.assert_array_equal(views, [frames[:, :, left : left + 32] for left in (0, 12, 6)])


def test_seconds_need_a_frame_rate(record):
  unknown = record | {"fps_numerator": 0, "fps_denominator": 1}
  random = np.random.default_rng(0)
  spec = dataclasses.replace(SPEC, sampling="time")
  whole = dataclasses.replace(THREE, whole_frames=6)
  assert train_clip(unknown, spec, random)[1].tolist() == [0, 3, 7, 11]
  with pytest.raises(VideoError, match="the video has no frame rate"):
    train_clip(unknown, dataclasses.replace(spec, frame_rate=5.0), random)
  with pytest.raises(VideoError, match="the video has no frame rate"):
    eval_clips(unknown, dataclasses.replace(SPEC, frame_rate=5.0), whole, random)


def test_jittered_crops_have_a_random_size_and_place_each(record):
  spec = dataclasses.replace(
    SPEC, num_frames=2, frame_interval=20, size=24, train_crop="jittered", flip_probability=0.0,
    rounding="pyslowfast",
    short_side_range=(24, 27),
  )  # fmt: skip
  frames = decode_frames(record["video"], [0, 20])
  # 44 / 32 of 24, 25, 26 and 27 is 33, 34.4, 35.75 and 37.1.
  places = {}
  for short, long in ((24, 33), (25, 34), (26, 35), (27, 37)):
    resized = np.stack([cv2.resize(frame, (long, short)) for frame in frames])
    for top in range(max(short - 24, 1)):
      for left in range(long - 24):
        clip = resized[:, top : top + 24, left : left + 24]
        places[clip.tobytes()] = short, top, left
  random = np.random.default_rng(0)
  found = [places[train_clip(record, spec, random)[0].tobytes()] for _ in range(80)]
  shorts, tops, lefts = zip(*found)
  assert set(shorts) == {24, 25, 26, 27}
  assert set(tops) == {0, 1, 2}
  assert len(set(lefts)) > 8


@pytest.mark.parametrize(
  ("rounding", "width", "top", "left"), [("openmmlab", 47, 1, 8), ("pyslowfast", 46, 2, 8)]
)
def test_fractions_of_pixels_are_rounded_as_in_the_references(record, rounding, width, top, left):
  """34 / 32 of 44 pixels are 46.75; 34 - 31 leaves 1.5 pixels, 46 - 31 leaves 7.5 on a side."""
  spec = dataclasses.replace(SPEC, size=31, rounding=rounding)
  center = Views(num_clips=1, crops="center", short_side=34)
  views, _ = eval_clips(record, spec, center, np.random.default_rng(0))
  (picture,) = decode_frames(record["video"], [14])
  resized = cv2.resize(picture, (width, 34))
  expected = resized[top : top + 31, left : left + 31]
  np.testing.assert_array_equal(views[0, 0], expected)
  np.testing.assert_array_equal(central_view(picture, spec, center), expected)


def test_five_crops_are_of_three_kinds(record):
  """Of frames 32 x 44: three crops of 24 x 33, all of the frame, and its center."""
  spec = dataclasses.replace(SPEC, size=24, num_frames=2)
  five = Views(num_clips=2, crops="five", short_side=32)
  views, positions = eval_clips(record, spec, five, np.random.default_rng(0))
  assert (count_views(spec, five), describe_views(spec, five)) == (10, "2x5")
  np.testing.assert_array_equal(positions, [[0, 3]] * 10)
  # Clips of 6 frames in halves of 35 places: 17.5 / 2 and 17.5 more.
  clips = decode_frames(record["video"], [8, 11, 26, 29]).reshape(2, 2, 32, 44, 3)
  small = np.stack([[cv2.resize(frame, (33, 24)) for frame in clip] for clip in clips])
  squeezed = np.stack([[cv2.resize(frame, (24, 24)) for frame in clip] for clip in clips])
  # 33 - 24 leaves 9 pixels: the middle begins at the 4th, the last at twice that.
  expected = [
    *(small[..., left : left + 24, :] for left in (0, 8, 4)), squeezed, clips[..., 4:28, 10:34, :]
  ]  # fmt: skip
  np.testing.assert_array_equal(views, np.concatenate(expected))


def test_five_crops_of_frames_of_the_clip_size_are_not_resized_again(record):
  five = Views(num_clips=1, crops="five", short_side=32)
  views, _ = eval_clips(record, SPEC, five, np.random.default_rng(0))
  three, _ = eval_clips(record, SPEC, dataclasses.replace(five, crops="three"), None)
  np.testing.assert_array_equal(views[:3], three)
  np.testing.assert_array_equal(views[4], three[2])


def test_crops_must_fit_into_the_frames():
  check_views(SPEC, Views(crops="five", short_side=32))
  check_views(SPEC, Views(crops="five", short_side=40))
  with pytest.raises(ValueError, match="five crops need a short side at least the clip size 32"):
    check_views(SPEC, Views(crops="five", short_side=31))
  with pytest.raises(ValueError, match="center crops need a short side at least the clip size 32"):
    check_views(SPEC, Views(crops="center", short_side=31))
  with pytest.raises(ValueError, match="three crops need a short side equal to the clip size 32"):
    check_views(SPEC, Views(crops="three", short_side=40))


@pytest.mark.parametrize("short_side", [32, 40])
def test_a_random_box_is_cut_out_of_every_frame(record, short_side):
  """The box and the flip are those that the generator draws."""
  spec = dataclasses.replace(SPEC, num_frames=3, train_short_side=short_side, size=20)
  mirrored = []
  for seed in range(6):
    clip, positions = train_clip(record, spec, np.random.default_rng(seed))
    assert clip.shape == (3, 20, 20, 3) and clip.flags.c_contiguous
    random = np.random.default_rng(seed)
    start = random.integers(40 - 3 * 3 + 1)
    frames = decode_frames(record["video"], start + positions)
    frames = np.stack([transforms.resize_short_side(frame, short_side) for frame in frames])
    box = transforms.random_resized_crop_box(*frames.shape[1:3], random)
    expected = np.stack([cv2.resize(frame, (20, 20)) for frame in transforms.crop(frames, box)])
    mirrored.append(random.random() < 0.5)
    np.testing.assert_array_equal(clip, expected[:, :, :: -1 if mirrored[-1] else 1])
  assert set(mirrored) == {False, True}


@pytest.mark.parametrize("start", [None, 7])
def test_batches_of_files_have_one_shape_whatever_happens(record, tmp_path, start):
  """A good file, a damaged one and padding."""
  (tmp_path / "good.mp4").write_bytes(record["video"])
  (tmp_path / "bad.mp4").write_bytes(b"this is no video")
  items = [(str(tmp_path / name), start) for name in ("good.mp4", "bad.mp4")]
  whole = dataclasses.replace(THREE, whole_frames=6)
  batches = clip_batches(items, SPEC, whole, batch_size=4, options=LoaderOptions(0))
  with contextlib.closing(batches):
    (batch,) = batches
  time = 6 if start is None else 4
  assert batch["video"].shape == (4, 3, time, 32, 32, 3)
  assert batch["position_ids"].dtype == np.int32
  expected = np.zeros((4, 3, time))
  expected[0] = range(6) if start is None else [7, 10, 13, 16]
  np.testing.assert_array_equal(batch["position_ids"], expected)
  assert batch["index"].tolist() == [0, 1, -1, -1]
  assert [bool(error) for error in batch["error"]] == [False, True, False, False]


def test_metadata_without_whole_videos_still_load():
  preprocessing = Preprocessing(clip=SPEC, views=dataclasses.replace(THREE, whole_frames=6))
  metadata = preprocessing.to_metadata()
  assert Preprocessing.from_metadata(metadata) == preprocessing
  del metadata["views"]["whole_frames"]
  assert Preprocessing.from_metadata(metadata).views == THREE
