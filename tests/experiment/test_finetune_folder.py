"""From a folder of video files to a fine-tuned model, by commands alone."""

import csv
import json
import re
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest

from tests.conversion.checkpoints import official_tensors, save_official
from tests.data.preparation.files import BROKEN, write_broken
from tests.helpers.runs import (
  ROOT,
  environment,
  run_command,
)
from tests.helpers.video_kinds import (
  encode,
)
from tests.helpers.videos import (
  FOOTAGE,
)
from vswin_jax.data.video.decoding import decode_frames

# File name -> encoder, options; the sizes and frame rates of a folder from everywhere.
KINDS = {
  "mp4": [("libx264", {"g": "250"}), ("libx265", {"x265-params": "log-level=none:pools=1"})],
  "webm": [("libvpx", {}), ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"})],
  "avi": [("mpeg4", {})],
}
SIZES = ((64, 80), (96, 64), (120, 160), (72, 128))
COPIES = 4
FINE_TUNE = [
  "--config=configs/finetune_folder.py",
  "--config.train.batch_size=8",
  "--config.train.epochs=12.0",
  "--config.eval_batch_size=8",
  "--config.schedule.learning_rate=0.003",
  "--config.loader.num_workers=0",
]


def scenes():
  """Real footage, 24 frames at a time."""
  for name in ("bikes.mp4", "bigbuckbunny.mp4", "carphone_pristine.mp4"):
    footage = decode_frames((FOOTAGE / name).read_bytes(), range(96))
    for start in range(0, 96, 24):
      yield footage[start : start + 24]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Two classes that differ in color, in every codec, size and frame rate, and broken files."""
  folder = tmp_path_factory.mktemp("mine")
  footage = list(scenes())
  # In each class every codec has every size.
  tints = {"warm": (1.0, 0.6, 0.4), "cold": (0.4, 0.6, 1.0)}
  for label, tint in tints.items():
    (folder / label).mkdir()
    number = 0
    for suffix, encoders in KINDS.items():
      for codec, options in encoders:
        for copy, (height, width) in enumerate(SIZES[:COPIES]):
          frames = footage[number % len(footage)] * np.array(tint)
          frames = [cv2.resize(frame.astype(np.uint8), (width, height)) for frame in frames]
          times = [position * (1 + copy % 2) for position in range(len(frames))]
          path = folder / label / f"{codec}_{copy}.{suffix}"
          encode(path, codec, "yuv420p", options, frames=frames, times=times)
          number += 1
  write_broken(folder / "warm")
  return folder


@pytest.fixture(scope="module")
def variables(tmp_path_factory):
  return environment(tmp_path_factory.mktemp("shared"))


def command(module: str, *options) -> list[str]:
  return [sys.executable, "-m", f"vswin_jax.{module}", *map(str, options)]


@pytest.fixture(scope="module")
def data_dir(folder, variables, tmp_path_factory):
  """The data set `mine`, prepared by a command that was killed on the way and repeated."""
  data_dir = tmp_path_factory.mktemp("data")
  prepare = command(
    "prepare", "--dataset=video_folder", f"--videos={folder}", f"--data_dir={data_dir}",
    "--name=mine", "--transcode=64", "--validation_share=0.2", "--max_minutes=1", "--workers=2",
  )  # fmt: skip
  refused = run_command(prepare, variables)
  assert refused.returncode == 1
  assert re.search(r"^error: \d of 46 videos have a problem so far", refused.stderr, re.M)

  prepare += ["--max_problem_share=0.2", "--shard_megabytes=1"]
  process = subprocess.Popen(prepare, cwd=ROOT, env=variables, stderr=subprocess.PIPE)
  staging = data_dir / "mine" / ".preparing"
  while not list(staging.glob("*.array_record*")) and process.poll() is None:
    time.sleep(0.02)
  process.send_signal(signal.SIGKILL)
  process.wait()
  assert not (data_dir / "mine" / "1.0.0").exists()

  finished = run_command(prepare, variables)
  assert finished.returncode == 0, finished.stderr
  assert "32 train, 8 validation" in finished.stdout
  assert "left out: " in finished.stdout
  return data_dir


@pytest.fixture(scope="module")
def weights(variables, tmp_path_factory):
  """Converted weights of another task, for clips of 8 frames of 32 x 32."""
  folder = tmp_path_factory.mktemp("weights")
  file = save_official(folder / "file.pth", official_tensors("nano_16x56x56"))
  convert = command(
    "convert", file, folder / "nano", "--num_frames=8", "--frame_interval=2", "--size=32"
  )
  result = run_command(convert, variables)
  assert result.returncode == 0, result.stderr
  return folder / "nano"


@pytest.mark.slow
def test_prepare_fine_tune_evaluate_predict(folder, data_dir, weights, variables, tmp_path):
  problems = list(csv.DictReader((data_dir / "mine" / "1.0.0" / "problems.csv").open()))
  names = [name for kind, names in BROKEN.items() if kind != "missing" for name in names]
  assert sorted(row["path"].rpartition("/")[2] for row in problems) == sorted(names)

  data = ["--config.data.name=mine", f"--config.data.dir={data_dir}"]
  workdir = tmp_path / "run"
  refused = run_command(
    command("main", *FINE_TUNE, *data, f"--workdir={tmp_path / 'refused'}"), variables
  )
  assert refused.returncode == 1
  assert "starts from pretrained weights: `python -m vswin_jax.convert" in refused.stderr

  train = command(
    "main", *FINE_TUNE, *data, f"--workdir={workdir}", f"--config.init_from={weights}"
  )
  result = run_command(train, variables)
  assert result.returncode == 0, result.stderr
  assert "randomly initialized: head" in result.stderr
  scores = json.loads((workdir / "evaluation.json").read_text())
  assert scores["views"] == 12 and scores["top1"] == 1.0

  # The checkpoint alone says which model it is and how it is used.
  evaluation = tmp_path / "evaluation"
  evaluate = command(
    "main", *FINE_TUNE, *data, "--mode=eval", f"--checkpoint={workdir}", f"--workdir={evaluation}"
  )
  result = run_command(evaluate, variables)
  assert result.returncode == 0, result.stderr
  for name in ("evaluation.json", "predictions.csv", "per_class.csv"):
    assert (evaluation / name).read_text() == (workdir / name).read_text()
  rows = {row["class"]: row for row in csv.DictReader((workdir / "per_class.csv").open())}
  assert set(rows) == {"warm", "cold"} and float(rows["warm"]["accuracy"]) == 1.0

  # Files as they are, the broken ones among them.
  predict = command("predict", f"--model={workdir}", "--json", "--views=1x1", folder)
  result = run_command(predict, variables)
  assert result.returncode == 1
  predictions = [json.loads(line) for line in result.stdout.splitlines()]
  sound = [one for one in predictions if not one.get("error")]
  assert len(sound) >= 40
  right = [one["video"].split("/")[-2] == one["top"][0]["label"] for one in sound]
  assert np.mean(right) > 0.95


@pytest.mark.slow
def test_inspect(data_dir, variables, tmp_path):
  picture = tmp_path / "sheet.png"
  inspect = command(
    "inspect", "--dataset=mine", f"--data_dir={data_dir}", f"--output={picture}", "--examples=3",
    "--config=configs/ssv2_swin_b.py", "--config.clip.size=56", "--config.clip.num_frames=8",
    "--config.validation.short_side=64", "--config.test.short_side=56",
  )  # fmt: skip
  result = run_command(inspect, variables)
  assert result.returncode == 0, result.stderr
  assert "train: 32 videos, 2 classes" in result.stdout
  assert "validation: 8 videos, 2 classes" in result.stdout
  assert "videos a class: 16 (cold) to 16 (warm), mean 16.0" in result.stdout
  assert "frames a second" in result.stdout and "width x height" in result.stdout
  drawn = cv2.imread(str(picture))
  assert drawn.shape[0] > 300 and drawn.shape[1] > 1000 and drawn.std() > 20
