"""Streams and timelines of VTN, against one pass over the same frames."""

import dataclasses
import weakref

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vswin_jax import create_model, load_model
from vswin_jax.checkpoints.manager import write_params
from vswin_jax.checkpoints.metadata import CheckpointMetadata
from vswin_jax.data.clips import ClipSpec, Views
from vswin_jax.data.preprocessing import Preprocessing
from vswin_jax.data.video.decoding import decode_frames
from vswin_jax.data.video.encoding import encode_mp4
from vswin_jax.inference.output_files import parse_views
from vswin_jax.inference.streaming import Stream
from vswin_jax.inference.timeline import iterate_timelines
from vswin_jax.inference.video_model import VideoModel
from vswin_jax.models.normalization import normalize
from vswin_jax.models.parameters import split_model

MODEL = {
  "name": "vtn_vit_b",
  "num_classes": 5,
  "backbone_options": {
    "image_size": 16, "patch_size": 8, "width": 24, "depth": 1, "num_heads": 2, "init_std": 0.3
  },
  "width": 24,
  "num_layers": 2,
  "num_heads": 2,
  "attention_window": 4,
  "intermediate_size": 32,
  "num_positions": 40,
  # Strong enough that probabilities tell videos and positions apart.
  "init_std": 0.3,
  "embedding_std": 0.5,
}  # fmt: skip
PREPROCESSING = Preprocessing(
  mean=(110.0, 100.0, 90.0),
  std=(60.0, 50.0, 40.0),
  clip=ClipSpec(
    num_frames=4, frame_interval=2, frame_rate=10.0, sampling="time", size=16, rounding="pyslowfast"
  ),
  # 31 x 21 pixels, in whose middle there is no place for 16 x 16.
  views=Views(1, "center", 21, whole_frames=25),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  folder = tmp_path_factory.mktemp("model") / "checkpoint"
  _, params = split_model(create_model(**MODEL))
  params["head"]["fc2"]["kernel"] *= 10.0
  write_params(folder, params, CheckpointMetadata(MODEL, PREPROCESSING))
  return load_model(folder)


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
  random = np.random.default_rng(0)
  scenes = random.integers(0, 255, (9, 5, 5, 3), dtype=np.uint8)
  return np.ascontiguousarray(scenes.repeat(8, 0).repeat(4, 1).repeat(6, 2)[:70])


@pytest.fixture(scope="module")
def video(pixels, tmp_path_factory) -> str:
  """70 frames of 20 x 30 at 10 a second."""
  path = tmp_path_factory.mktemp("videos") / "video.mp4"
  path.write_bytes(encode_mp4(pixels, fps=10))
  return str(path)


def inputs_of(frames: np.ndarray) -> np.ndarray:
  resized = np.stack([cv2.resize(frame, (31, 21)) for frame in frames])
  return normalize(resized[None, :, 3:19, 8:24], PREPROCESSING.mean, PREPROCESSING.std)


@pytest.fixture(scope="module")
def one_pass(model):
  """Probabilities of frames uint8 `[count, 20, 30, 3]` with their numbers, all in one call."""
  call = jax.jit(lambda *inputs: jax.nn.softmax(model(*inputs))[0])

  def run(frames, numbers):
    return np.asarray(call(inputs_of(frames), jnp.asarray(numbers)[None]))

  return run


def test_at_any_moment_a_stream_equals_one_pass_over_all_frames(model, pixels, one_pass):
  stream = Stream(model, frames_per_call=4)
  results = []
  for start, stop in [(0, 1), (1, 2), (2, 9), (9, 40)]:
    stream.add_frames(pixels[start:stop])
    assert stream.num_frames == stop
    results.append(stream.probabilities())
    expected = one_pass(pixels[:stop], np.arange(stop))
    np.testing.assert_allclose(results[-1], expected, atol=2e-6)
    np.testing.assert_array_equal(stream.probabilities(), results[-1])
  assert np.ptp(results, axis=0).max() > 0.05, "the moments can't be told apart"
  mean = tuple(value + 40 for value in PREPROCESSING.mean)
  darker = dataclasses.replace(model.preprocessing, mean=mean)
  for other, changes in [(model, False), (dataclasses.replace(model, preprocessing=darker), True)]:
    stream = Stream(other)
    stream.add_frames(pixels[:40])
    assert changes == (np.abs(stream.probabilities() - expected).max() > 1e-5)


def test_a_model_of_several_labels_gives_sigmoids(model, video, tmp_path):
  _, params = split_model(model.network)
  metadata = CheckpointMetadata(MODEL, PREPROCESSING, multi_label=True)
  write_params(tmp_path / "checkpoint", params, metadata)
  several = load_model(tmp_path / "checkpoint")
  (timeline,) = iterate_timelines(several, [video], batch_size=2, num_workers=0)
  frames = decode_frames(video, range(70))
  stream = Stream(several)
  stream.add_frames(frames)
  call = jax.jit(lambda *inputs: jax.nn.sigmoid(model(*inputs))[0])
  expected = call(inputs_of(frames), jnp.arange(70)[None])
  assert abs(float(expected.sum()) - 1) > 0.1, "a softmax would pass too"
  np.testing.assert_allclose(stream.probabilities(), expected, atol=2e-6)
  np.testing.assert_allclose(timeline.probabilities[-1], expected, atol=2e-6)


def test_frames_keep_their_numbers(model, pixels, one_pass):
  numbers = np.array([3, 7, 8, 20, 33, 90])
  stream = Stream(model)
  stream.add_frames(pixels[:4], numbers[:4])
  stream.add_frames(pixels[4:6], numbers[4:])
  expected = one_pass(pixels[:6], numbers)
  np.testing.assert_allclose(stream.probabilities(), expected, atol=2e-6)
  assert np.abs(expected - one_pass(pixels[:6], np.arange(6))).max() > 1e-3
  # The next frame counts on from the last.
  stream.add_frames(pixels[6:7])
  expected = one_pass(pixels[:7], np.append(numbers, 91))
  np.testing.assert_allclose(stream.probabilities(), expected, atol=2e-6)


@pytest.mark.parametrize("max_frames", [1, 5, 8])
def test_a_bounded_stream_sees_the_newest_frames(model, pixels, one_pass, max_frames):
  stream = Stream(model, max_frames=max_frames, frames_per_call=4)
  for start in range(0, 30, 3):
    stream.add_frames(pixels[start : start + 3])
  assert stream.num_frames == max_frames
  expected = one_pass(pixels[30 - max_frames : 30], np.arange(30 - max_frames, 30))
  np.testing.assert_allclose(stream.probabilities(), expected, atol=2e-6)


def test_a_bounded_stream_frees_what_it_no_longer_needs(model):
  features = np.zeros((1000, model.network.config.width), np.float32)
  freed = weakref.ref(features)
  stream = Stream(model, max_frames=10)
  stream.add_features(features)
  del features
  assert freed() is None


def test_features_can_be_given_instead_of_frames(model, pixels, one_pass):
  features = np.asarray(model.network.frame_features(inputs_of(pixels[:12])))[0]
  stream = Stream(model)
  stream.add_frames(pixels[:3])
  stream.add_features(features[3:12])
  expected = one_pass(pixels[:12], np.arange(12))
  np.testing.assert_allclose(stream.probabilities(), expected, atol=2e-6)


def test_what_does_not_fit_a_stream_is_refused(model, pixels):
  with pytest.raises(ValueError, match="a Stream needs a VTN, got a VideoSwin"):
    network = create_model("video_swin_t", embed_dim=8, depths=(1,), num_heads=(1,))
    Stream(VideoModel(network, PREPROCESSING))
  with pytest.raises(ValueError, match="max_frames must be at least 1"):
    Stream(model, max_frames=0)
  with pytest.raises(ValueError, match="no frames yet"):
    Stream(model).probabilities()
  with pytest.raises(ValueError, match=r"frames must be uint8 \[count, height, width, 3\], got fl"):
    Stream(model).add_frames(np.zeros((1, 16, 16, 3)))
  with pytest.raises(ValueError, match="position_ids must be 2 integers, got float64"):
    Stream(model).add_frames(pixels[:2], np.array([0.0, 1.0]))
  with pytest.raises(ValueError, match=r"features must be \[count, 24\], got \[2, 23\]"):
    Stream(model).add_features(np.zeros((2, 23)))


def test_a_prediction_is_one_pass_over_frames_of_the_whole_video(model, video, one_pass):
  (result,) = model.predict(video)
  # 25 frames at 10 a second: the first 2.5 seconds.
  frames = decode_frames(video, range(25))
  expected = one_pass(frames, np.arange(25))
  np.testing.assert_allclose(result.probabilities, expected, atol=2e-6)
  assert parse_views("1x1", PREPROCESSING) == PREPROCESSING.views
  assert parse_views("3x1", PREPROCESSING) == Views(3, "center", 21)
  (other,) = model.predict(video, views=Views(3, "center", 21))
  assert np.abs(other.probabilities - expected).max() > 1e-3


@pytest.mark.parametrize("crops", ["center", "three"])
def test_a_timeline_says_what_all_of_the_video_so_far_amounts_to(model, video, one_pass, crops):
  views = Views(1, crops, 21 if crops == "center" else 16)
  (timeline,) = iterate_timelines(model, [video], views=views, batch_size=2, num_workers=0)
  assert timeline.error is None
  np.testing.assert_allclose(timeline.start, [0.0, 3.2, 6.4], atol=1e-6)
  np.testing.assert_allclose(timeline.end, [3.2, 6.4, 7.0], atol=1e-6)
  if crops == "center":
    frames = decode_frames(video, range(70))
    for row, count in zip(timeline.probabilities, (32, 64, 70)):
      np.testing.assert_allclose(row, one_pass(frames[:count], np.arange(count)), atol=2e-6)
  else:
    np.testing.assert_allclose(timeline.probabilities.sum(-1), 1.0, rtol=1e-5)


def test_a_video_shorter_than_a_part_has_one_row(model, pixels, one_pass, tmp_path):
  path = tmp_path / "short.mp4"
  path.write_bytes(encode_mp4(pixels[:6], fps=10))
  (timeline,) = iterate_timelines(model, [str(path)], batch_size=2, num_workers=0)
  expected = one_pass(decode_frames(str(path), range(6)), np.arange(6))
  np.testing.assert_allclose(timeline.probabilities, [expected], atol=2e-6)


def test_rows_of_long_videos_are_longer(model, video, one_pass, monkeypatch):
  monkeypatch.setattr("vswin_jax.inference.timeline._MAX_VTN_ROWS", 2)
  (timeline,) = iterate_timelines(model, [video], batch_size=2, num_workers=0)
  np.testing.assert_allclose(timeline.start, [0.0, 6.4], atol=1e-6)
  np.testing.assert_allclose(timeline.end, [6.4, 7.0], atol=1e-6)
  frames = decode_frames(video, range(70))
  for row, count in zip(timeline.probabilities, (64, 70)):
    np.testing.assert_allclose(row, one_pass(frames[:count], np.arange(count)), atol=2e-6)
