import csv
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests.helpers.runs import (
  environment,
)
from vswin_jax import create_model, load_model
from vswin_jax.checkpoints.manager import write_params
from vswin_jax.checkpoints.metadata import CheckpointMetadata
from vswin_jax.data import transforms
from vswin_jax.data.clips import ClipSpec, Views, eval_clips
from vswin_jax.data.files import file_record, find_videos
from vswin_jax.data.preprocessing import Preprocessing
from vswin_jax.data.video.decoding import decode_frames, frame_times
from vswin_jax.data.video.encoding import encode_mp4
from vswin_jax.inference.output_files import parse_views
from vswin_jax.inference.predictor import iterate_features, predict
from vswin_jax.inference.timeline import iterate_timelines
from vswin_jax.models.normalization import normalize
from vswin_jax.models.parameters import split_model

ROOT = str(pathlib.Path(__file__).parents[2])
LABELS = ("left", "right", "up", "down", "in", "out")
MODEL = {
  "name": "video_swin_t",
  "num_classes": len(LABELS),
  "embed_dim": 8,
  "depths": (1, 1),
  "num_heads": (1, 2),
  "window_size": (2, 2, 2),
  # Strong enough that probabilities tell videos apart.
  "init_std": 0.3,
}
PREPROCESSING = Preprocessing(
  clip=ClipSpec(num_frames=4, frame_interval=3, size=32), views=Views(2, "three", 32)
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> pathlib.Path:
  folder = tmp_path_factory.mktemp("model") / "checkpoint"
  _, params = split_model(create_model(**MODEL))
  params["head"]["kernel"] *= 30.0
  write_params(folder, params, CheckpointMetadata(MODEL, PREPROCESSING, tuple(LABELS)))
  return folder


@pytest.fixture(scope="module")
def model(checkpoint):
  return load_model(checkpoint)


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> list[str]:
  """Videos of several lengths and sizes, one of them shorter than a clip."""
  folder = tmp_path_factory.mktemp("videos")
  random = np.random.default_rng(0)
  paths = []
  for index, (frames, height, width) in enumerate([(40, 48, 64), (5, 36, 36), (77, 90, 50)]):
    steps = random.integers(0, 255, (frames, 6, 6, 3), dtype=np.uint8)
    pixels = steps.repeat(-(-height // 6), 1).repeat(-(-width // 6), 2)[:, :height, :width]
    path = folder / f"video{index}.mp4"
    path.write_bytes(encode_mp4(np.ascontiguousarray(pixels), fps=10))
    paths.append(str(path))
  return paths


def direct_probabilities(model, clips: np.ndarray) -> np.ndarray:
  """Of clips uint8 `[clips, time, height, width, 3]`, without any of the machinery."""
  pixels = normalize(clips, PREPROCESSING.mean, PREPROCESSING.std)
  return np.asarray(jax.nn.softmax(model(pixels)))


def test_a_loaded_model_carries_labels_and_preprocessing(model):
  assert model.labels == LABELS
  assert model.preprocessing == PREPROCESSING


@pytest.mark.parametrize(("batch_size", "num_workers"), [(1, 0), (2, 0), (8, 0), (2, 2)])
def test_predictions_are_means_over_views_of_the_models_probabilities(
  model, videos, batch_size, num_workers
):
  results = predict(model, videos, batch_size=batch_size, num_workers=num_workers)
  assert [result.path for result in results] == videos
  for result in results:
    views, _ = eval_clips(
      file_record(result.path), PREPROCESSING.clip, PREPROCESSING.views, np.random.default_rng(0)
    )
    expected = direct_probabilities(model, views).mean(0)
    np.testing.assert_allclose(result.probabilities, expected, rtol=1e-5, atol=1e-7)
    names = [name for name, _ in result.top(3)]
    assert names == [LABELS[index] for index in np.argsort(-expected)[:3]]
  spread = np.ptp([result.probabilities for result in results], axis=0).max()
  assert spread > 0.01, "the videos can't be told apart, so the test shows nothing"


def test_a_model_of_several_labels_gives_sigmoids(model, videos, tmp_path):
  _, params = split_model(model)
  metadata = CheckpointMetadata(MODEL, PREPROCESSING, tuple(LABELS), multi_label=True)
  write_params(tmp_path / "checkpoint", params, metadata)
  several = load_model(tmp_path / "checkpoint")
  # A checkpoint that does not say so gives one label.
  assert several.multi_label and not model.multi_label
  (result,) = predict(several, videos[0])
  views, _ = eval_clips(
    file_record(videos[0]), PREPROCESSING.clip, PREPROCESSING.views, np.random.default_rng(0)
  )
  logits = model(normalize(views, PREPROCESSING.mean, PREPROCESSING.std))
  expected = np.asarray(jax.nn.sigmoid(logits)).mean(0)
  np.testing.assert_allclose(result.probabilities, expected, rtol=1e-5, atol=1e-7)
  assert abs(expected.sum() - 1) > 0.1, "a softmax would pass too"
  (timeline,) = iterate_timelines(several, [videos[1]], PREPROCESSING, batch_size=2, num_workers=0)
  frames = decode_frames(videos[1], np.arange(0, 12, 3) % 5)
  logits = model(normalize(eval_clips_of(frames), PREPROCESSING.mean, PREPROCESSING.std))
  np.testing.assert_allclose(
    timeline.probabilities[0], jax.nn.sigmoid(logits).mean(0), rtol=1e-5, atol=1e-7
  )


def test_views_can_be_chosen(model, videos):
  (result,) = predict(model, videos[0], views=Views(1, "center", 40))
  views, _ = eval_clips(
    file_record(videos[0]), PREPROCESSING.clip, Views(1, "center", 40), np.random.default_rng(0)
  )
  np.testing.assert_allclose(
    result.probabilities, direct_probabilities(model, views)[0], rtol=1e-5, atol=1e-7
  )
  with pytest.raises(ValueError, match="short side"):
    predict(model, videos[0], views=Views(1, "three", 40))
  assert parse_views("5x1", PREPROCESSING) == Views(5, "center", 32)
  assert parse_views("1x3", PREPROCESSING) == Views(1, "three", 32)
  for text in ("4", "0x1", "4x2", "x"):
    with pytest.raises(ValueError, match="CLIPSxCROPS"):
      parse_views(text, PREPROCESSING)


def test_features_are_those_of_the_model(model, videos):
  for output in ("pooled", "map"):
    results = list(
      iterate_features(model, videos[:2], PREPROCESSING, output, batch_size=2, num_workers=0)
    )
    for path, features, error in results:
      assert error is None
      views, _ = eval_clips(
        file_record(path), PREPROCESSING.clip, PREPROCESSING.views, np.random.default_rng(0)
      )
      pixels = normalize(views, PREPROCESSING.mean, PREPROCESSING.std)
      expected = model.features(pixels) if output == "pooled" else model.feature_map(pixels)
      np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)


def test_a_timeline_covers_a_video_without_gap(model, videos):
  span = 4 * 3
  timelines = list(iterate_timelines(model, videos, PREPROCESSING, batch_size=3, num_workers=0))
  for path, timeline in zip(videos, timelines):
    times = frame_times(path)
    count = max(1, -(-len(times) // span))
    assert timeline.error is None
    assert timeline.probabilities.shape == (count, len(LABELS))
    assert timeline.start[0] == 0.0
    np.testing.assert_array_equal(timeline.start[1:], timeline.end[:-1])
    np.testing.assert_allclose(timeline.end[-1], len(times) / 10)
    np.testing.assert_allclose(timeline.start, np.arange(count) * span / 10)
    for clip in range(count):
      first = max(min(clip * span, len(times) - span), 0)
      frames = decode_frames(path, (first + np.arange(4) * 3) % len(times))
      views = eval_clips_of(frames)
      np.testing.assert_allclose(
        timeline.probabilities[clip],
        direct_probabilities(model, views).mean(0),
        rtol=1e-5,
        atol=1e-7,
      )


def eval_clips_of(frames: np.ndarray) -> np.ndarray:
  """The three crops of one clip."""
  frames = np.stack([transforms.resize_short_side(frame, 32) for frame in frames])
  boxes = transforms.three_crop_boxes(*frames.shape[1:3], 32)
  return np.stack([transforms.crop(frames, box) for box in boxes])


def test_folders_and_globs_stand_for_their_videos(tmp_path):
  for name in ("b.mp4", "a.MOV", "notes.txt", "deep/c.webm"):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
  inside = [str(tmp_path / name) for name in ("a.MOV", "b.mp4", "deep/c.webm")]
  assert find_videos([tmp_path]) == inside
  assert find_videos([tmp_path / "*.mp4", tmp_path]) == [inside[1], inside[0], inside[2]]
  (tmp_path / "deep" / "folder.mp4").mkdir()
  assert find_videos(str(tmp_path / "d*")) == [inside[2]]
  long = "x" * 400
  assert find_videos([long, "~no such user/v.mp4"]) == [long, "~no such user/v.mp4"]
  assert find_videos([tmp_path / "notes.txt"]) == [str(tmp_path / "notes.txt")]
  assert find_videos([tmp_path / "no*thing"]) == [str(tmp_path / "no*thing")]


def variables(checkpoint) -> dict[str, str]:
  return environment(checkpoint.parent) | {"PYTHONPATH": ROOT}


def command(checkpoint, *arguments, cwd, **more) -> subprocess.CompletedProcess:
  return subprocess.run(
    [sys.executable, "-m", "vswin_jax.predict", f"--model={checkpoint}", *map(str, arguments)],
    capture_output=True,
    text=True,
    cwd=cwd,
    env=variables(checkpoint) | more,
  )


@pytest.mark.slow
def test_the_command_keeps_good_results_and_names_bad_files(checkpoint, model, videos, tmp_path):
  (tmp_path / "bad.mp4").write_bytes(b"this is no video")
  arguments = [videos[0], tmp_path / "bad.mp4", tmp_path / "absent.mp4", videos[2]]
  expected = {result.path: result.top(2) for result in predict(model, [videos[0], videos[2]])}

  done = command(checkpoint, "--json", "--top=2", *arguments, cwd=tmp_path)
  assert done.returncode == 1, done.stderr
  assert "Traceback" not in done.stderr
  errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
  assert [("bad.mp4" in line, "absent.mp4" in line) for line in errors] == [
    (True, False),
    (False, True),
  ]
  lines = [json.loads(line) for line in done.stdout.splitlines()]
  assert [line["video"] for line in lines] == list(expected)
  for line in lines:
    assert [best["label"] for best in line["top"]] == [name for name, _ in expected[line["video"]]]
    np.testing.assert_allclose(
      [best["probability"] for best in line["top"]],
      [value for _, value in expected[line["video"]]],
      rtol=1e-5,
    )

  done = command(checkpoint, "--csv", "--top=2", videos[0], cwd=tmp_path)
  assert done.returncode == 0, done.stderr
  rows = list(csv.DictReader(io.StringIO(done.stdout)))
  assert [(row["rank"], row["label"]) for row in rows] == [
    (str(rank), name) for rank, (name, _) in enumerate(expected[videos[0]], 1)
  ]

  done = command(checkpoint, "--top=2", videos[0], cwd=tmp_path)
  assert done.stdout.splitlines()[0] == videos[0]
  name, probability = expected[videos[0]][0]
  assert f"{100 * probability:.1f} %" in done.stdout
  assert name in done.stdout


@pytest.mark.slow
def test_odd_file_names_and_a_narrow_terminal_stop_nothing(checkpoint, videos, tmp_path):
  odd = [os.fsdecode(b"bad\xff.mp4"), "gr\u00f6\u00dfe\u65e5.mp4", "$x_{$.mp4"]
  for name in odd:
    shutil.copy(videos[0], tmp_path / name)
  plain = {"cwd": tmp_path, "PYTHONIOENCODING": "ascii"}
  done = command(checkpoint, "--top=1", "--num_workers=0", *odd, "x" * 400, **plain)
  assert done.returncode == 1, done.stderr
  assert done.stdout.count(" %  ") == 3
  done = command(checkpoint, "--json", "--num_workers=0", *odd, **plain)
  assert [json.loads(line)["video"] for line in done.stdout.splitlines()] == odd
  done = command(checkpoint, "--whole", "--num_workers=0", *odd, **plain)
  assert done.returncode == 0, done.stderr
  assert len(list(tmp_path.glob("*.timeline.png"))) == 3


@pytest.mark.slow
def test_the_command_writes_timelines_and_features(checkpoint, videos, tmp_path):
  done = command(checkpoint, "--whole", "--output_dir=out", videos[2], cwd=tmp_path)
  assert done.returncode == 0, done.stderr
  rows = list(csv.DictReader((tmp_path / "out/video2.timeline.csv").open()))
  assert len(rows) == 7 * 5
  assert (rows[0]["start_seconds"], rows[-1]["end_seconds"]) == ("0.000", "7.700")
  assert (tmp_path / "out/video2.timeline.png").stat().st_size > 10_000
  done = command(checkpoint, "--features=pooled", "--output_dir=out", videos[2], cwd=tmp_path)
  assert done.returncode == 0, done.stderr
  with np.load(tmp_path / "out/video2.npz") as arrays:
    assert arrays["features"].shape == (6, 16)
    assert str(arrays["video"]) == videos[2]
  assert sorted(os.listdir(tmp_path / "out")) == [
    "video2.npz",
    "video2.timeline.csv",
    "video2.timeline.png",
  ]


@pytest.mark.slow
def test_bad_requests_get_one_line(checkpoint, tmp_path):
  for arguments, message in (
    (["--json", "--whole", "x.mp4"], "choose one of"),
    (["--views=7", "x.mp4"], "CLIPSxCROPS"),
    ([f"--model={tmp_path}", "x.mp4"], "no checkpoints"),
  ):
    done = command(checkpoint, *arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert message in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_python_call_needs_no_flags_and_no_guard(checkpoint, videos, tmp_path):
  (tmp_path / "script.py").write_text(
    "import vswin_jax\n"
    f"model = vswin_jax.load_model({str(checkpoint)!r})\n"
    f"for result in vswin_jax.predict(model, [{videos[0]!r}]):\n"
    "  print(result.top(1)[0][0])\n"
  )
  done = subprocess.run(
    [sys.executable, "script.py"],
    capture_output=True,
    text=True,
    cwd=tmp_path,
    env=variables(checkpoint),
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.strip() in LABELS
