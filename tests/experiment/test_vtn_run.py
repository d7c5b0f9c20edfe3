"""Runs of a VTN through the command lines: train, resume, evaluate, convert, predict."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from tests.conversion.checkpoints import fill, golden_keys, save_vtn
from tests.helpers.runs import (
  environment,
  final_arrays,
  run_command,
)
from vswin_jax import load_model
from vswin_jax.data.records import open_records
from vswin_jax.data.video.encoding import encode_mp4


def run(data_dir, module, *options) -> subprocess.CompletedProcess:
  command = [sys.executable, "-m", module, *map(str, options)]
  return run_command(command, environment(data_dir))


def train(data_dir, workdir, *options) -> subprocess.CompletedProcess:
  return run(
    data_dir,
    "vswin_jax.main",
    "--config=configs/quickstart_vtn.py",
    "--config.data.name=tiny_motion",
    f"--config.data.dir={data_dir}",
    f"--workdir={workdir}",
    *options,
  )


@pytest.mark.slow
def test_a_vtn_trains_resumes_and_is_evaluated_on_whole_videos(tiny_data_dir, tmp_path):
  options = (
    "--config.clip.num_frames=4",
    "--config.clip.frame_interval=2",
    "--config.clip.frame_rate=25.0",
    "--config.clip.sampling=time",
    "--config.clip.train_crop=jittered",
    "--config.clip.short_side_range=(34,40)",
    "--config.test.whole_frames=16",
    "--config.model.dropout_rate=0.1",
    "--config.model.num_layers=1",
    "--config.model.backbone_options.depth=1",
    "--config.model.frames_per_chunk=3",
    "--config.model.rematerialization=chunk",
    "--config.train.batch_size=8",
    "--config.train.save_every=2",
    "--config.loader.num_workers=0",
    "--config.train.epochs=0.8",
  )

  def train_whole(workdir):
    done = train(tiny_data_dir, workdir, *options)
    assert done.returncode == 0, done.stderr

  train_whole(tmp_path / "once")
  shutil.copytree(tmp_path / "once", tmp_path / "resumed")
  newest = max((tmp_path / "resumed" / "checkpoints").iterdir(), key=lambda path: int(path.name))
  shutil.rmtree(newest)
  (tmp_path / "resumed" / "evaluation.json").unlink()
  train_whole(tmp_path / "resumed")
  expected = final_arrays(tmp_path / "once")
  for path, leaf in final_arrays(tmp_path / "resumed").items():
    np.testing.assert_array_equal(leaf, expected[path], err_msg=path)

  # What the run predicted of its videos, the loaded model predicts of them as files.
  rows = (tmp_path / "once" / "predictions.csv").read_text().splitlines()[1:4]
  records = open_records("tiny_motion", tiny_data_dir, "validation")
  model = load_model(tmp_path / "once")
  assert model.preprocessing.views.whole_frames == 16
  for index, row in enumerate(rows):
    (tmp_path / "video.mp4").write_bytes(records[index]["video"])
    (result,) = model.predict(tmp_path / "video.mp4")
    name, _, label, probability = row.split(",")
    assert name == records.video_id(index)
    assert result.top(1)[0][0] == label
    np.testing.assert_allclose(result.probabilities.max(), float(probability), atol=2e-6)


def test_clips_that_do_not_fit_the_backbone_are_refused_at_once(tiny_data_dir, tmp_path):
  done = train(tiny_data_dir, tmp_path, "--config.clip.size=36")
  assert done.returncode == 1
  assert "error: images must be [batch, 32, 32, 3]" in done.stderr
  assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_released_file_is_converted_and_labels_videos(tiny_data_dir, tmp_path):
  source = save_vtn(tmp_path / "vtn.pyth", fill(golden_keys("vtn_nano_7f")))
  flags = ("--num_heads=3", "--backbone_heads=3", "--attention_window=6", "--num_frames=20")
  done = run(tiny_data_dir, "vswin_jax.convert", source, tmp_path / "vtn", *flags)
  assert done.returncode == 0, done.stderr
  assert re.search("num_layers +2\nnum_heads +3\nattention_window +6\n", done.stdout)
  assert "20 frames of 32 x 32" in done.stdout
  random = np.random.default_rng(0)
  video = tmp_path / "video.mp4"
  pixels = random.integers(0, 255, (60, 5, 6, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
  video.write_bytes(encode_mp4(np.ascontiguousarray(pixels), fps=25))
  model = ("--model", tmp_path / "vtn", "--num_workers=0", "--top=11")
  done = run(tiny_data_dir, "vswin_jax.predict", *model, "--json", video)
  assert done.returncode == 0, done.stderr
  best = {entry["label"]: entry["probability"] for entry in json.loads(done.stdout)["top"]}
  (expected,) = load_model(tmp_path / "vtn").predict(video)
  assert best.keys() == {name for name, _ in expected.top(11)}
  for name, probability in expected.top(11):
    np.testing.assert_allclose(best[name], probability, rtol=1e-4)
  done = run(
    tiny_data_dir, "vswin_jax.predict", *model, "--whole", f"--output_dir={tmp_path}", video
  )
  assert done.returncode == 0, done.stderr
  assert len((tmp_path / "video.timeline.csv").read_text().splitlines()) == 1 + 2 * 11
