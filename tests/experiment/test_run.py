"""Whole runs through the command line: train, kill, resume, evaluate, and errors."""

import json
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.helpers.runs import (
  ROOT,
  TINY,
  assert_same_run,
  command,
  environment,
  final_arrays,
  metrics,
  run,
  run_command,
)
from vswin_jax.conversion.convert import convert_file
from vswin_jax.conversion.export import export_file
from vswin_jax.conversion.families import ConversionOptions


@pytest.fixture(scope="module")
def finished(tiny_data_dir, tmp_path_factory):
  """An uninterrupted run."""
  workdir = tmp_path_factory.mktemp("finished")
  result = run(tiny_data_dir, workdir)
  assert result.returncode == 0, result.stderr
  return workdir, result


def test_a_tiny_run_from_config_to_report(tiny_data_dir, tmp_path):
  options = (
    "--config.train.epochs=0.5",
    "--config.train.log_every=1",
    "--config.train.eval_every=3",
    "--profile=2:2",
  )
  result = run(tiny_data_dir, tmp_path, *options)
  assert result.returncode == 0, result.stderr
  assert [line["step"] for line in metrics(tmp_path)] == [1, 2, 3, 3]
  evaluation = json.loads((tmp_path / "evaluation.json").read_text())
  assert evaluation["step"] == 3 and 0 <= evaluation["top1"] <= evaluation["top5"] <= 1
  assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
  assert int(final_arrays(tmp_path)["step"]) == 3
  cost = r"the training step .*in [\d.]+ s .*: [\d.e-]+ TFLOP a step, peak of the devices - TFLOP/s"
  assert re.search(cost, result.stderr)
  assert "TFLOP/s  MFU -  memory -  waiting for data" in result.stderr
  (trace,) = (tmp_path / "profile/plugins/profile/steps_2_2").glob("*.xplane.pb")
  names = trace.read_bytes()
  for scope in (
    rb"stage0\)*/block1/attention",
    rb"stage1\)*/block0/mlp",
    rb"patch_embed",
    rb"optimizer",
  ):
    assert re.search(scope, names), scope


@pytest.mark.slow
def test_a_run_leaves_all_it_promises(finished):
  workdir, result = finished
  assert "training video_swin_t from random weights: 24 steps of 8 clips" in result.stderr
  assert "step 20/24  loss" in (workdir / "train.log").read_text()
  steps = [line["step"] for line in metrics(workdir)]
  assert steps == [5, 10, 12, 15, 20, 24]
  assert any("validation_ema/top1" in line for line in metrics(workdir))
  assert list((workdir / "tensorboard").glob("events*"))
  assert (workdir / "report.png").stat().st_size > 20_000
  evaluation = json.loads((workdir / "evaluation.json").read_text())
  assert evaluation["step"] == 24 and 0 <= evaluation["top1"] <= evaluation["top5"] <= 1
  table = (workdir / "predictions.csv").read_text().splitlines()
  assert table[0] == "id,label,prediction,probability" and len(table) == 1 + 21
  kept = sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())
  assert kept == [16, 20, 24]


@pytest.mark.slow
def test_a_finished_run_is_only_evaluated_again(finished, tiny_data_dir):
  workdir, _ = finished
  before = metrics(workdir), final_arrays(workdir), (workdir / "evaluation.json").read_text()
  result = run(tiny_data_dir, workdir, "--profile=2:3")
  assert result.returncode == 0, result.stderr
  assert "no profile: it was to end with step 3, and this run is at step 24" in result.stderr
  assert f"training is complete at step 24 of {workdir}" in result.stderr
  assert "loss" not in result.stderr
  assert metrics(workdir) == before[0]
  assert (workdir / "evaluation.json").read_text() == before[2]


@pytest.mark.slow
def test_eval_mode_evaluates_a_checkpoint_by_itself(finished, tiny_data_dir, tmp_path):
  workdir, _ = finished
  views = ["--config.test.num_clips=2", "--config.test.crops=three", "--config.test.short_side=32"]
  result = run(
    tiny_data_dir,
    tmp_path,
    "--mode=eval",
    f"--checkpoint={workdir}",
    *views,
    "--config.clip.num_frames=8",
  )
  assert result.returncode == 0, result.stderr
  assert "21 videos, 6 views each" in result.stderr
  assert json.loads((tmp_path / "evaluation.json").read_text())["views"] == 6
  assert (tmp_path / "report.png").exists()
  assert not (tmp_path / "checkpoints").exists()


@pytest.mark.slow
def test_a_checkpoint_is_evaluated_with_its_own_preprocessing(finished, tiny_data_dir, tmp_path):
  workdir, _ = finished
  other = tmp_path / "other.py"
  other.write_text(
    "from configs import quickstart\n"
    "def get_config():\n"
    "  config = quickstart.get_config()\n"
    "  with config.unlocked():\n"
    "    config.data.mean = (1.0, 2.0, 3.0)\n"
    "    config.clip.frame_interval = 2\n"
    "    config.test.num_clips = 3\n"
    "  return config\n"
  )
  options = [option for option in TINY if not option.startswith("--config=")]
  done = subprocess.run(
    [
      sys.executable,
      "-m",
      "vswin_jax.main",
      f"--config={other}",
      *options,
      f"--config.data.dir={tiny_data_dir}",
      f"--workdir={tmp_path / 'eval'}",
      "--mode=eval",
      f"--checkpoint={workdir}",
    ],
    cwd=ROOT,
    env=environment(tiny_data_dir) | {"PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert "config.data.mean" in done.stderr
  evaluation = (tmp_path / "eval" / "evaluation.json").read_text()
  assert json.loads(evaluation) == json.loads((workdir / "evaluation.json").read_text())


@pytest.mark.slow
def test_a_trained_model_is_loaded_for_use(finished):
  from vswin_jax import load_model
  from vswin_jax.data.motion import MOTIONS
  from vswin_jax.models.parameters import flatten, split_model

  workdir, _ = finished
  model = load_model(workdir)
  assert model.labels == tuple(MOTIONS)
  ema = {
    path.removeprefix("ema_params."): leaf
    for path, leaf in final_arrays(workdir).items()
    if path.startswith("ema_params.")
  }
  loaded = flatten(split_model(model.network)[1])
  assert loaded.keys() == ema.keys()
  for path, leaf in loaded.items():
    np.testing.assert_array_equal(leaf, ema[path])


@pytest.mark.slow
def test_an_exported_and_converted_model_is_evaluated_as_the_original(
  finished, tiny_data_dir, tmp_path
):
  workdir, _ = finished
  export_file(workdir, tmp_path / "file.safetensors", "torchvision")
  convert_file(tmp_path / "file.safetensors", tmp_path / "converted", ConversionOptions())
  config = json.loads((workdir / "config.json").read_text())
  # A file tells nothing of preprocessing.
  own = {
    f"{section}.{name}": config[section][name]
    for section, names in (
      ("data", ("mean", "std")),
      ("clip", ("num_frames", "frame_interval", "frame_rate", "sampling", "size")),
      ("test", ("num_clips", "crops", "short_side")),
    )
    for name in names
  }
  result = run(
    tiny_data_dir,
    tmp_path / "eval",
    "--mode=eval",
    f"--checkpoint={tmp_path / 'converted'}",
    *(f"--config.{key}={tuple(v) if isinstance(v, list) else v}" for key, v in own.items()),
  )
  assert result.returncode == 0, result.stderr
  ours = json.loads((tmp_path / "eval" / "evaluation.json").read_text())
  original = json.loads((workdir / "evaluation.json").read_text())
  assert ours | {"step": original["step"]} == original


def start(data_dir, workdir, *options, compile_anew=False) -> subprocess.Popen:
  return subprocess.Popen(
    command(data_dir, workdir, *options),
    cwd=ROOT,
    env=environment(data_dir, compile_anew=compile_anew),
    stderr=subprocess.PIPE,
    text=True,
  )


@pytest.mark.slow
def test_a_run_that_was_killed_and_stopped_is_bit_identical_to_an_uninterrupted_one(
  finished, tiny_data_dir, tmp_path
):
  """Each time with another number of workers; the compiler, too, has to do the same again."""
  checkpoints = tmp_path / "checkpoints"
  process = start(tiny_data_dir, tmp_path, "--config.loader.num_workers=2", compile_anew=True)
  while not (checkpoints / "8").exists():
    assert process.poll() is None, process.communicate()[1]
    time.sleep(0.005)
  time.sleep(0.1)
  process.kill()
  process.communicate()
  assert process.returncode == -signal.SIGKILL
  assert not (tmp_path / "evaluation.json").exists()
  complete = max(int(path.name) for path in checkpoints.iterdir() if path.name.isdigit())
  assert 8 <= complete < 24

  process = start(tiny_data_dir, tmp_path, "--config.loader.num_workers=1")
  while "resuming from step" not in (tmp_path / "train.log").read_text():
    assert process.poll() is None, process.communicate()[1]
    time.sleep(0.005)
  process.terminate()
  _, said = process.communicate(timeout=120)
  assert process.returncode == 0, said
  assert f"resuming from step {complete} of 24" in said
  stopped = int(re.search(r"asked to stop: saved step (\d+)", said)[1])

  result = run(tiny_data_dir, tmp_path)
  assert result.returncode == 0, result.stderr
  assert f"resuming from step {stopped} of 24" in result.stderr
  assert_same_run(tmp_path, finished[0])


@pytest.mark.slow
@pytest.mark.skipif(not pathlib.Path("/proc").exists(), reason="lists child processes by /proc")
def test_workers_end_with_a_killed_parent(tiny_data_dir, tmp_path):
  options = ["--config.loader.num_workers=2", "--config.train.epochs=400.0"]
  process = subprocess.Popen(
    command(tiny_data_dir, tmp_path, *options),
    cwd=ROOT,
    env=environment(tiny_data_dir),
    stderr=subprocess.DEVNULL,
  )

  def child_processes() -> list[str]:
    threads = pathlib.Path(f"/proc/{process.pid}/task").glob("*/children")
    return [child for thread in threads for child in thread.read_text().split()]

  def wait_for(condition, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
      time.sleep(0.05)
    return condition()

  try:
    # Two workers and the tracker of their shared memory.
    assert wait_for(lambda: len(child_processes()) >= 3, 120)
    children = child_processes()
  finally:
    process.kill()
    process.wait()

  def is_running(child: str) -> bool:
    try:
      status = pathlib.Path(f"/proc/{child}/stat").read_text()
    except OSError:
      return False
    # Ended, though nobody may have asked for its exit status.
    return status.rsplit(")", 1)[1].split()[0] not in "ZX"

  assert wait_for(lambda: not any(map(is_running, children)), 60), "workers outlive their parent"


@pytest.mark.slow
def test_weights_of_another_run_start_a_new_one(finished, tiny_data_dir, tmp_path):
  result = run(
    tiny_data_dir, tmp_path, f"--config.init_from={finished[0]}", "--config.train.epochs=0.2"
  )
  assert result.returncode == 0, result.stderr
  assert f"loaded weights of step 24 of {finished[0]}" in result.stderr
  assert "randomly initialized" not in result.stderr
  other = run(
    tiny_data_dir,
    tmp_path / "b",
    f"--config.init_from={finished[0]}",
    "--config.model.embed_dim=16",
  )
  assert other.returncode == 1
  assert "holds a model with embed_dim 8, the config says 16" in other.stderr


@pytest.mark.slow
def test_resuming_with_another_config_is_said_or_refused(finished, tiny_data_dir, tmp_path):
  shutil.copytree(finished[0] / "checkpoints" / "16", tmp_path / "checkpoints" / "16")
  shutil.copy(finished[0] / "config.json", tmp_path)
  result = run(tiny_data_dir, tmp_path, "--config.train.label_smoothing=0.1")
  assert result.returncode == 0, result.stderr
  assert (
    "config.train.label_smoothing was 0.0 when this run was started and is 0.1" in result.stderr
  )
  shutil.rmtree(tmp_path / "checkpoints")
  shutil.copytree(finished[0] / "checkpoints" / "16", tmp_path / "checkpoints" / "16")
  result = run(tiny_data_dir, tmp_path, "--config.model.mlp_ratio=2.0")
  assert result.returncode == 1
  assert "holds a model with mlp_ratio 4.0, the config says 2.0" in result.stderr
  assert result.stderr.count("\n") <= 2


BAD_INPUT = [
  (["--config.trian.epochs=3"], 'Did you mean "train"'),
  (["--config.train.epoch=3"], 'Did you mean "epochs"'),
  (["--config.model.name=video_swin_tt"], "unknown model 'video_swin_tt': did you mean"),
  (["--config.model.attention=xlaa"], "unknown attention 'xlaa'"),
  (["--config.clip.frame_order=shuffle"], "unknown frame_order 'shuffle'; choose one of"),
  (["--config.train.batch_size=0"], "train.batch_size is 0"),
  (["--config.train.log_every=0"], "train.log_every must be at least 1, got 0"),
  (["--config.train.epochs=nan"], "train.epochs must be a positive number"),
  (["--workdir=s3://bucket/run"], "is not a file or folder of this machine"),
  (["--workdir=gs:///run"], "names no bucket; expected gs://BUCKET/FOLDER"),
  (["stray"], "unexpected argument 'stray'"),
  (["--checkpoint=elsewhere"], "--checkpoint goes with --mode=eval"),
  (["--config=configs/quickstrat.py"], "quickstrat.py"),
  (["--config.data.name=kinetics400"], "no data set 'kinetics400' under"),
  (
    ["--config.optimizer.learning_rate_multipliers=(('x',1.0),)"],
    "rule 'x' matches no parameter",
  ),
  (["--mode=eval"], "there is no checkpoint in"),
  (["--mode=eval", "--profile=1:2"], "--profile goes with --mode=train"),
  (["--profile=3"], "--profile=3 must be FIRST:LAST"),
  (["--profile=3:25"], "at most 24, the last step of this training"),
]


@pytest.fixture(scope="module")
def refusals(tiny_data_dir, tmp_path_factory):
  """Exit statuses and messages of runs with bad input."""
  folder = tmp_path_factory.mktemp("bad_input")
  arguments = [
    command(tiny_data_dir, folder / str(number), *options)[3:]
    for number, (options, _) in enumerate(BAD_INPUT)
  ]
  result = subprocess.run(
    [sys.executable, "-m", "tests.helpers.forked_runs"],
    cwd=ROOT,
    env=environment(tiny_data_dir),
    input=json.dumps(arguments),
    capture_output=True,
    text=True,
    timeout=300,
    check=True,
  )
  return json.loads(result.stdout)


@pytest.mark.parametrize("number", range(len(BAD_INPUT)), ids=lambda n: BAD_INPUT[n][1])
def test_bad_input_gets_one_clear_line(refusals, number):
  status, said = refusals[number]
  assert status == 1, said
  assert BAD_INPUT[number][1] in said
  assert "Traceback" not in said
  assert len([line for line in said.splitlines() if line.startswith("error: ")]) == 1


def test_a_recipe_does_not_start_from_random_weights_unasked(tiny_data_dir, tmp_path):
  result = run_command(
    [
      *(sys.executable, "-m", "vswin_jax.main", "--config=configs/k400_swin_t.py"),
      *(f"--workdir={tmp_path}", f"--config.data.dir={tiny_data_dir}"),
      *("--config.data.name=tiny_motion", "--config.train.batch_size=8"),
    ],
    environment(tiny_data_dir),
  )
  assert result.returncode == 1
  command = "python -m vswin_jax.convert swin_t_in1k_2d models/start"
  assert f"error: this recipe starts from pretrained weights: `{command}`, then" in result.stderr
  assert "Traceback" not in result.stderr
