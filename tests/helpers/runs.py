"""Whole runs through the command line, and what they leave behind."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np

from tests.helpers.compiler import FAST_COMPILATION

ROOT = pathlib.Path(__file__).parents[2]


TINY_RUN = [
  "--config=configs/quickstart.py",
  "--config.data.name=tiny_motion",
  "--config.model.drop_path_rate=0.2",
  "--config.train.batch_size=8",
  "--config.train.epochs=4.0",  # 24 steps
  "--config.train.log_every=5",
  "--config.train.eval_every=12",
  "--config.train.save_every=4",
  "--config.train.ema_decay=0.9",
  "--config.schedule.warmup_epochs=0.5",
  "--config.eval_batch_size=8",
  "--config.loader.num_workers=0",
]


TINY = [
  *TINY_RUN,
  "--config.model.depths=(2,1)",
  "--config.model.num_heads=(1,2)",
  "--config.model.embed_dim=8",
]


def command(data_dir, workdir, *options) -> list[str]:
  return [
    sys.executable,
    "-m",
    "vswin_jax.main",
    *TINY,
    f"--config.data.dir={data_dir}",
    f"--workdir={workdir}",
    *options,
  ]


def environment(data_dir, *, compile_anew=False) -> dict[str, str]:
  """One CPU device; programs compiled once for all runs of the session, unless asked not to."""
  variables = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": FAST_COMPILATION}
  if not compile_anew:
    variables["JAX_ENABLE_COMPILATION_CACHE"] = "true"
    variables["JAX_COMPILATION_CACHE_DIR"] = str(data_dir / "compiled")
    variables["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
  return variables


def run_command(command: list[str], variables: dict[str, str]) -> subprocess.CompletedProcess:
  return subprocess.run(
    command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=300, check=False
  )


def run(data_dir, workdir, *options, compile_anew=False) -> subprocess.CompletedProcess:
  variables = environment(data_dir, compile_anew=compile_anew)
  return run_command(command(data_dir, workdir, *options), variables)


def final_arrays(workdir) -> dict[str, np.ndarray]:
  """Every array of the newest checkpoint, by path."""
  import jax
  from orbax.checkpoint import v1 as ocp

  from vswin_jax.models.parameters import flatten, with_shardings

  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  with ocp.training.Checkpointer(workdir / "checkpoints") as checkpoints:
    step = checkpoints.latest.step
    shapes = with_shardings(checkpoints.metadata(step).metadata, here)
    tree = checkpoints.load(step, shapes)
  return {path: np.asarray(leaf) for path, leaf in flatten(tree).items()}


def metrics(workdir) -> list[dict]:
  """Lines of metrics.jsonl without the figures that depend on the clock."""
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return [
    {name: value for name, value in json.loads(line).items() if not name.startswith("speed/")}
    for line in lines
  ]


def assert_same_run(actual, expected):
  assert metrics(actual) == metrics(expected)
  ours, theirs = final_arrays(actual), final_arrays(expected)
  assert ours.keys() == theirs.keys()
  for path, array in theirs.items():
    np.testing.assert_array_equal(ours[path], array, err_msg=path)
  for name in ("evaluation.json", "predictions.csv"):
    assert (actual / name).read_text() == (expected / name).read_text()
