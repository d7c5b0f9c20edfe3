"""Training runs against those of the reference implementations, step for step;
`python -m tests.tables.golden_training` prints the table."""

import os

if __name__ == "__main__":
  os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np

from tests.helpers.golden import golden, reference_model, reference_name
from tests.tables.golden import relative_error
from tests.tables.vtn_parity import reference_vtn
from vswin_jax.conversion.layouts import vtn_names
from vswin_jax.experiment.recipes import kinetics_vtn_config, video_swin_config
from vswin_jax.models.parameters import flatten, split_model
from vswin_jax.training.optimizer import OptimizerOptions, make_optimizer
from vswin_jax.training.schedules import ScheduleOptions, make_schedule
from vswin_jax.training.step import create_state, make_train_step

CASES = ("train_nano_swin", "train_nano_vtn")


def _swin(meta: dict):
  """The model without dropout, the published recipe with the sizes of the file, the names."""
  meta = meta | {"patch_size": (2, 4, 4)}
  model = reference_model(meta, head_dropout_rate=0.0, drop_path_rate=0.0)
  config = video_swin_config("video_swin_t", "")
  config.schedule.update({"warmup_epochs": meta["warmup_epochs"]})
  return model, config, reference_name


def _vtn(meta: dict):
  """The model without dropout, the published recipe with the sizes of the file, the names."""
  no_dropout = dict.fromkeys(("dropout_rate", "attention_dropout_rate", "head_dropout_rate"), 0.0)
  model = reference_vtn("vtn_nano_7f", **no_dropout)
  config = kinetics_vtn_config("vtn_vit_b", "")
  config.schedule.decay_epochs = tuple(map(float, meta["steps"][1:]))
  return model, config, vtn_names("vit")


def _batch(meta: dict, step: int) -> dict[str, np.ndarray]:
  random = np.random.RandomState(meta["data_seed"] + step)
  clips, frames = meta["batch_shape"][:2]
  video = random.randint(0, 256, meta["batch_shape"]).astype(np.uint8)
  positions = np.arange(frames) * meta.get("position_stride", 1) + step
  return {
    "video": video,
    "label": random.randint(0, meta["num_classes"], clips),
    "position_ids": np.tile(positions, (clips, 1)),
    "failed": np.full(clips, -1),
  }


def training_errors(case: str) -> dict[str, float]:
  """Returns the largest errors of a training run by quantity.

  "losses", "learning rates" and "gradient norms" over all steps, relative to the largest value;
  "norms" of the trained parameters, relative to each; "moved", the distance of each parameter from
  its start, and "final", whole parameters, relative to the largest distance in the model.
  """
  meta, expected = golden(case)
  model, config, name_of = {"train_nano_swin": _swin, "train_nano_vtn": _vtn}[case](meta)
  config.schedule.learning_rate = meta["learning_rate"]
  config.optimizer.weight_decay = meta["weight_decay"]
  num_steps, steps_per_epoch = meta["epochs"] * meta["steps_per_epoch"], meta["steps_per_epoch"]
  schedule = make_schedule(
    ScheduleOptions(**config.schedule), num_steps=num_steps, steps_per_epoch=steps_per_epoch
  )
  graph, params = split_model(model)
  optimizer = make_optimizer(params, schedule, OptimizerOptions(**config.optimizer))
  pixels = {name: tuple(meta[name]) for name in ("mean", "std")}
  step = jax.jit(make_train_step(graph, optimizer, schedule, seed=0, log_every=1, **pixels))
  state, history = create_state(params, optimizer, with_ema=False), []
  for number in range(num_steps):
    state, metrics = step(state, _batch(meta, number))
    history.append(metrics)

  # The first column of several is the head, which trains at the full rate.
  rates = expected["learning_rates"].reshape(num_steps, -1)[:, 0]
  errors = {
    "losses": relative_error([metrics["loss"] for metrics in history], expected["losses"]),
    "learning rates": relative_error([metrics["learning_rate"] for metrics in history], rates),
    "gradient norms": relative_error(
      [metrics["mean_grad_norm"] for metrics in history], expected["grad_norms"]
    ),
  }
  start = flatten(params)
  errors |= {"norms": 0.0, "moved": 0.0, "final": 0.0}
  largest = max(value for name, value in expected.items() if name.startswith("moved/"))
  for path, leaf in flatten(state.params).items():
    name, value = name_of(path), np.asarray(leaf, np.float64)
    moved = np.linalg.norm(value - np.asarray(start[path]))
    differences = {
      "norms": abs(np.linalg.norm(value) / expected[f"norm/{name}"] - 1),
      "moved": abs(moved - expected[f"moved/{name}"]) / largest,
    }
    final = expected.get(f"final/{name}")
    if final is not None:
      ours = (value.T if path.endswith(".kernel") else value).reshape(final.shape)
      differences["final"] = np.abs(ours - final).max() / largest
    errors |= {kind: max(errors[kind], error) for kind, error in differences.items()}
  return errors


def main():
  for case in CASES:
    for kind, error in training_errors(case).items():
      print(f"| `{case}` | {kind} | {error:.1e} |", flush=True)


if __name__ == "__main__":
  main()
