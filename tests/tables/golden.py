"""Errors relative to the reference implementation; `python -m tests.tables.golden` prints them."""

import os

if __name__ == "__main__":
  os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tests.helpers.golden import golden, golden_video, reference_model, reference_name
from vswin_jax.models.parameters import merge_model, parameter_path, split_model

NANO = [
  "nano_16x56x56",
  "nano_10x60x72_padding",
  "nano_32x64x64_time_shift",
  "nano_window16_32x56x56",
]
LARGE = ["swin_t_k400", "swin_b_k400"]


def relative_error(actual, expected) -> float:
  """Returns the largest difference, relative to the largest expected value."""
  actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
  assert actual.shape == expected.shape
  return float(np.abs(actual - expected).max() / np.abs(expected).max())


def forward_errors(case: str) -> dict[str, float]:
  """Returns relative errors of the logits and of the outputs of every stage."""
  meta, expected = golden(case)

  @jax.jit
  def logits_and_stages(model, video):
    x = model.patch_embed(video)
    stages = []
    for stage in model.stages:
      x = stage(x)
      stages.append(x.transpose(0, 3, 1, 2, 4))
    return model(video), stages

  logits, stages = logits_and_stages(reference_model(meta), golden_video(meta))
  errors = {"logits": relative_error(logits, expected["logits"])}
  assert len(stages) == 4
  for index, features in enumerate(stages):
    assert features.shape == tuple(expected[f"stage{index}_shape"])
    for name, value in (
      ("mean_over_tokens", features.mean((1, 2, 3))),
      ("corner", features[0, 0, 0, 0]),
      ("last", features[-1, -1, -1, -1]),
    ):
      errors[f"stage{index}_{name}"] = relative_error(value, expected[f"stage{index}_{name}"])
  return errors


def has_gradients(case: str) -> bool:
  return "loss" in golden(case)[1]


def gradient_errors(case: str, **options) -> dict[str, float]:
  """Returns relative errors of the loss, of all gradient norms and of two whole gradients.

  Args:
    case: name of the golden file.
    **options: fields of the model's configuration, such as another implementation of attention.
  """
  meta, expected = golden(case)
  video = golden_video(meta)
  label = jnp.arange(len(video)) % meta["num_classes"]
  graph, params = split_model(reference_model(meta, **options))

  def loss(params):
    logits = merge_model(graph, params)(video)
    return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()

  value, gradient = jax.jit(jax.value_and_grad(loss))(params)
  errors = {"loss": relative_error(value, expected["loss"])}
  for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
    name = reference_name(parameter_path(path))
    norm = np.linalg.norm(np.asarray(leaf, np.float64))
    errors[f"norm of {name}"] = relative_error(norm, expected[f"gradnorm/{name}"])
    whole = expected.get(f"grad/{name}")
    if whole is not None:
      if name.endswith("patch_embed.proj.weight"):
        whole = whole.transpose(2, 3, 4, 1, 0).reshape(leaf.shape)
      errors[f"whole {name}"] = relative_error(leaf, whole)
  assert sum(name.startswith("whole ") for name in errors) == 2
  return errors


def main():
  print("| case | logits | worst stage output | worst gradient norm | worst whole gradient |")
  print("|---|---|---|---|---|")
  for case in NANO + LARGE:
    forward = forward_errors(case)
    cells = [forward.pop("logits"), max(forward.values())]
    if has_gradients(case):
      gradient = gradient_errors(case)
      for kind in ("norm of ", "whole "):
        cells.append(max(error for name, error in gradient.items() if name.startswith(kind)))
    cells = [f"{cell:.1e}" for cell in cells] + ["no golden value"] * (4 - len(cells))
    print(f"| `{case}` | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
  main()
