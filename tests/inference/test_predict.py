import csv
import dataclasses
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

from tests.helpers.runs import environment
from vswin_jax import create_model, load_model
from vswin_jax.checkpoints.errors import CheckpointError
from vswin_jax.checkpoints.manager import write_params
from vswin_jax.checkpoints.metadata import CheckpointMetadata
from vswin_jax.data import transforms
from vswin_jax.data.clips import ClipSpec, Views, eval_clips
from vswin_jax.data.preprocessing import Preprocessing
from vswin_jax.data.video.decoding import decode_frames, frame_times
from vswin_jax.data.video.encoding import encode_mp4
from vswin_jax.data.video_files import file_record, find_videos
from vswin_jax.inference.output_files import parse_views, predict_files
from vswin_jax.inference.timeline import iterate_timelines
from vswin_jax.inference.video_model import iterate_outputs
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


def write_checkpoint(folder: pathlib.Path, params: dict | None = None, **metadata) -> pathlib.Path:
  if params is None:
    _, params = split_model(create_model(**MODEL))
    params["head"]["kernel"] *= 30.0
  stated = CheckpointMetadata(MODEL, PREPROCESSING, tuple(LABELS))
  write_params(folder, params, dataclasses.replace(stated, **metadata))
  return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> pathlib.Path:
  return write_checkpoint(tmp_path_factory.mktemp("model") / "checkpoint")


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


def views_of(path: str, views: Views = PREPROCESSING.views) -> np.ndarray:
  """The views of a video, normalized: float32 `[views, time, height, width, 3]`."""
  clips, _ = eval_clips(file_record(path), PREPROCESSING.clip, views, np.random.default_rng(0))
  return normalize(clips, PREPROCESSING.mean, PREPROCESSING.std)


def test_a_loaded_model_carries_its_metadata(model):
  assert model.labels == model.class_names == LABELS
  assert model.preprocessing == PREPROCESSING
  assert not model.multi_label


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"rematerialisation": "none"}, "video_swin_t has no option 'rematerialisation'"),
    ({"name": "video_swin_xxl"}, "unknown model 'video_swin_xxl'"),
    ({"window_size": "small"}, "window_size must be positive integers"),
  ],
)
def test_models_of_other_versions_are_refused_with_one_line(tmp_path, change, message):
  write_checkpoint(tmp_path / "model", {"a": np.zeros(1)}, model=MODEL | change)
  with pytest.raises(CheckpointError, match=message) as error:
    load_model(tmp_path / "model")
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(("batch_size", "num_workers"), [(1, 0), (8, 0), (2, 2)])
def test_predictions_are_means_over_views(model, videos, batch_size, num_workers):
  results = model.predict(videos, batch_size=batch_size, num_workers=num_workers)
  assert [result.path for result in results] == videos
  for result in results:
    expected = np.asarray(jax.nn.softmax(model(views_of(result.path)))).mean(0)
    np.testing.assert_allclose(result.probabilities, expected, rtol=1e-5, atol=1e-7)
    names = [name for name, _ in result.top(3)]
    assert names == [LABELS[index] for index in np.argsort(-expected)[:3]]
  spread = np.ptp([result.probabilities for result in results], axis=0).max()
  assert spread > 0.01, "the videos can't be told apart, so the test shows nothing"


def test_repeated_use_of_a_model_compiles_once(checkpoint, videos):
  model = load_model(checkpoint)
  for _ in range(3):
    model.predict(videos[0])
  (step,) = model._jitted.values()
  assert step._cache_size() == 1


def test_multi_label_models_give_sigmoids(model, videos, tmp_path):
  _, params = split_model(model.network)
  write_checkpoint(tmp_path / "checkpoint", params, multi_label=True)
  several = load_model(tmp_path / "checkpoint")
  assert several.multi_label
  (result,) = several.predict(videos[0])
  expected = np.asarray(jax.nn.sigmoid(model(views_of(videos[0])))).mean(0)
  np.testing.assert_allclose(result.probabilities, expected, rtol=1e-5, atol=1e-7)
  assert abs(expected.sum() - 1) > 0.1, "a softmax would pass too"
  (timeline,) = iterate_timelines(several, [videos[1]], batch_size=2, num_workers=0)
  logits = model(crops_of(decode_frames(videos[1], np.arange(0, 12, 3) % 5)))
  np.testing.assert_allclose(
    timeline.probabilities[0], jax.nn.sigmoid(logits).mean(0), rtol=1e-5, atol=1e-7
  )


def test_views_can_be_chosen(model, videos):
  one = Views(1, "center", 40)
  (result,) = model.predict(videos[0], views=one)
  expected = jax.nn.softmax(model(views_of(videos[0], one)))[0]
  np.testing.assert_allclose(result.probabilities, expected, rtol=1e-5, atol=1e-7)
  with pytest.raises(ValueError, match="short side"):
    model.predict(videos[0], views=Views(1, "three", 40))
  assert parse_views("5x1", PREPROCESSING) == Views(5, "center", 32)
  assert parse_views("1x3", PREPROCESSING) == Views(1, "three", 32)
  for text in ("4", "0x1", "4x2", "x"):
    with pytest.raises(ValueError, match="CLIPSxCROPS"):
      parse_views(text, PREPROCESSING)


@pytest.mark.parametrize("output", ["pooled", "map"])
def test_features_are_those_of_the_model(model, videos, output):
  clips = [(path, None) for path in videos[:2]]
  outputs = iterate_outputs(model, clips, output, batch_size=2, num_workers=0)
  function = model.features if output == "pooled" else model.feature_map
  for path, (values, error) in zip(videos, outputs):
    assert error is None
    np.testing.assert_allclose(values, function(views_of(path)), rtol=1e-4, atol=1e-5)


def test_a_timeline_covers_a_video_without_gap(model, videos):
  span = 4 * 3
  timelines = iterate_timelines(model, videos, batch_size=3, num_workers=0)
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
      expected = np.asarray(jax.nn.softmax(model(crops_of(frames)))).mean(0)
      np.testing.assert_allclose(timeline.probabilities[clip], expected, rtol=1e-5, atol=1e-7)


def crops_of(frames: np.ndarray) -> np.ndarray:
  """The three crops of one clip, normalized."""
  frames = np.stack([transforms.resize_short_side(frame, 32) for frame in frames])
  boxes = transforms.three_crop_boxes(*frames.shape[1:3], 32)
  clips = np.stack([transforms.crop(frames, box) for box in boxes])
  return normalize(clips, PREPROCESSING.mean, PREPROCESSING.std)


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


def output_of(checkpoint, capsys, paths, kind, **options) -> tuple[bool, str, str]:
  """Success, stdout and stderr of `predict_files`."""
  defaults = {
    "views": None, "dtype": None, "output_dir": ".", "top": 2, "batch_size": 4, "num_workers": 0
  }  # fmt: skip
  success = predict_files(str(checkpoint), map(str, paths), kind=kind, **defaults | options)
  return success, *capsys.readouterr()


def test_bad_files_are_named_and_the_others_labeled(checkpoint, model, videos, tmp_path, capsys):
  (tmp_path / "bad.mp4").write_bytes(b"this is no video")
  paths = [videos[0], tmp_path / "bad.mp4", tmp_path / "absent.mp4", videos[2]]
  expected = {result.path: result.top(2) for result in model.predict([videos[0], videos[2]])}
  success, out, err = output_of(checkpoint, capsys, paths, "json")
  assert not success
  bad, absent = (line for line in err.splitlines() if line.startswith("error: "))
  assert "bad.mp4" in bad and "absent.mp4" in absent
  lines = [json.loads(line) for line in out.splitlines()]
  assert [line["video"] for line in lines] == list(expected)
  for line in lines:
    labels, values = zip(*expected[line["video"]])
    assert tuple(best["label"] for best in line["top"]) == labels
    np.testing.assert_allclose([best["probability"] for best in line["top"]], values, rtol=1e-5)

  success, out, _ = output_of(checkpoint, capsys, paths[::3], "csv")
  rows = [
    (path, str(rank), name, f"{value:.6f}")
    for path, best in expected.items()
    for rank, (name, value) in enumerate(best, 1)
  ]
  assert success
  assert list(csv.reader(io.StringIO(out))) == [
    ["video", "rank", "label", "probability"], *map(list, rows)
  ]  # fmt: skip

  success, out, _ = output_of(checkpoint, capsys, paths[::3], "table", top=1)
  assert success
  first, second, end = out.split("\n\n")
  assert not end
  assert first.splitlines()[0] == videos[0] and second.splitlines()[0] == videos[2]
  name, probability = expected[videos[0]][0]
  assert first.splitlines()[1].split()[:2] == [f"{100 * probability:.1f}", "%"]
  assert first.endswith(f"  {name}")


def test_timelines_and_features_are_written(checkpoint, videos, tmp_path, capsys):
  (tmp_path / "video2.mp4").write_bytes(pathlib.Path(videos[2]).read_bytes())
  output = {"output_dir": tmp_path / "out", "top": 5}
  success, _, _ = output_of(checkpoint, capsys, [videos[2]], "whole", **output)
  assert success
  rows = list(csv.DictReader((tmp_path / "out/video2.timeline.csv").open()))
  assert len(rows) == 7 * 5
  assert (rows[0]["start_seconds"], rows[-1]["end_seconds"]) == ("0.000", "7.700")
  assert (tmp_path / "out/video2.timeline.png").stat().st_size > 10_000
  paths = [videos[2], tmp_path / "video2.mp4", tmp_path / "absent.mp4"]
  success, _, err = output_of(checkpoint, capsys, paths, "pooled", **output)
  assert not success and "absent.mp4" in err
  for name, path in (("video2", videos[2]), ("video2-2", tmp_path / "video2.mp4")):
    with np.load(tmp_path / f"out/{name}.npz") as arrays:
      assert arrays["features"].shape == (6, 16)
      assert str(arrays["video"]) == str(path)
  assert sorted(os.listdir(tmp_path / "out")) == [
    "video2-2.npz", "video2.npz", "video2.timeline.csv", "video2.timeline.png"
  ]  # fmt: skip


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
def test_odd_file_names_and_a_narrow_terminal_stop_nothing(checkpoint, videos, tmp_path):
  odd = [os.fsdecode(b"bad\xff.mp4"), "gr\u00f6\u00dfe\u65e5.mp4", "$x_{$.mp4"]
  for name in odd:
    shutil.copy(videos[0], tmp_path / name)
  plain = {"cwd": tmp_path, "PYTHONIOENCODING": "ascii"}
  done = command(checkpoint, "--json", "--num_workers=2", *odd, "x" * 400, **plain)
  assert done.returncode == 1, done.stderr
  assert "Traceback" not in done.stderr
  assert [json.loads(line)["video"] for line in done.stdout.splitlines()] == odd
  done = command(checkpoint, "--whole", "--num_workers=0", *odd, **plain)
  assert done.returncode == 0, done.stderr
  assert len(list(tmp_path.glob("*.timeline.png"))) == 3


@pytest.mark.slow
def test_bad_requests_get_one_line(checkpoint, tmp_path):
  for arguments, message in (
    (["--json", "--whole", "x.mp4"], "choose one of"),
    (["--views=7", "x.mp4"], "CLIPSxCROPS"),
    ([f"--model={tmp_path}", "x.mp4"], "no complete checkpoint"),
  ):
    done = command(checkpoint, *arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert message in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_python_call_needs_no_flags_and_no_guard(checkpoint, videos, tmp_path):
  """Importing the command changes nothing about the public names."""
  (tmp_path / "script.py").write_text(
    "import vswin_jax\n"
    "import vswin_jax.predict\n"
    "assert callable(vswin_jax.predict.main)\n"
    f"model = vswin_jax.load_model({str(checkpoint)!r})\n"
    f"for result in model.predict([{videos[0]!r}]):\n"
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
