"""Training speed with the real input pipeline: clips per second, and the share of time that the
devices wait for data.

Generates videos as `input_pipeline` does (10 s of 340 x 256 pixels, transcoded), trains on them for
some steps from random weights, and prints the median over the steps after the first two. Arguments
after `--` are passed to `vswin_jax.main`.

  python -m benchmarks.end_to_end --config=configs/k400_swin_t.py --batch_size=2 --steps=6 -- \
    --config.model.dtype=float32
"""

import pathlib
import shlex
import subprocess
import sys
import tempfile

import numpy as np
from absl import app, flags, logging

from benchmarks.input_pipeline import KINDS, make_videos, write_records
from vswin_jax.training.metrics import read_metrics

# Steps that use batches which were decoded during the compilation.
_WARM_UP = 2


def train(folder: str, kind: str, options: list[str]) -> list[dict]:
  """Trains on the prepared data set `kind` under `folder`, and returns the metrics by step."""
  arguments = flags.FLAGS
  workdir = pathlib.Path(folder, "run")
  epochs = arguments.steps * arguments.batch_size / arguments.videos
  command = [
    *(sys.executable, "-m", "vswin_jax.main", f"--config={arguments.config}"),
    *(f"--workdir={workdir}", f"--config.data.dir={folder}", f"--config.data.name={kind}"),
    *("--config.data.train_split=train", "--config.data.eval_split=train"),
    *("--config.init_from=random", f"--config.train.batch_size={arguments.batch_size}"),
    *(f"--config.train.epochs={epochs}", "--config.train.log_every=1"),
    f"--config.train.eval_every={2 * arguments.steps}",
    f"--config.loader.num_workers={arguments.workers}",
    # Only training is measured; the evaluation at its end is kept short.
    *("--config.test.num_clips=1", "--config.test.crops=center"),
    *options,
  ]
  print(shlex.join(command), flush=True)
  subprocess.run(command, check=True)
  return read_metrics(workdir / "metrics.jsonl")


def main(options: list[str]) -> None:
  logging.set_verbosity(logging.WARNING)
  arguments = flags.FLAGS
  with tempfile.TemporaryDirectory() as folder:
    videos = [make_videos(seed) for seed in range(arguments.videos)]
    write_records(folder, arguments.kind, videos)
    lines = train(folder, arguments.kind, options[1:])
  lines = [line for line in lines if "speed/clips_per_second" in line and line["step"] > _WARM_UP]

  def median(name: str) -> float:
    return float(np.median([line.get(f"speed/{name}", np.nan) for line in lines]))

  columns = ["config", "batch", "workers", "clips/s", "waiting for data", "model TFLOP/s", "MFU"]
  cells = [
    f"`{arguments.config}`",
    f"{arguments.batch_size}",
    f"{arguments.workers}",
    f"{median('clips_per_second'):.3g}",
    f"{median('data_wait_share'):.1%}",
    f"{median('model_tflops'):.3g}",
    f"{median('mfu'):.1%}".replace("nan%", "-"),
  ]
  print(f"\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|\n| {' | '.join(cells)} |")


if __name__ == "__main__":
  flags.DEFINE_string("config", "configs/k400_swin_t.py", "Config file of the training.")
  flags.DEFINE_integer("batch_size", 8, "Clips of a step, over all devices.", lower_bound=1)
  flags.DEFINE_integer("steps", 20, "Steps to train.", lower_bound=4)
  flags.DEFINE_integer("workers", 2, "Decoding processes of each host.", lower_bound=1)
  flags.DEFINE_integer("videos", 12, "Videos to generate.", lower_bound=1)
  flags.DEFINE_enum("kind", "transcoded", KINDS, "Videos as they are, or transcoded.")
  app.run(main)
