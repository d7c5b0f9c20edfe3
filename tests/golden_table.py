"""Prints the README's table of agreement with the reference: `python -m tests.golden_table`."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tests.models.test_video_swin import logits_and_stages, relative_error
from tests.reference_weights import golden, golden_video, reference_model, reference_name
from vswin_jax.models.parameters import merge_model, parameter_path, split_model

CASES = [
  "nano_16x56x56",
  "nano_10x60x72_padding",
  "nano_32x64x64_time_shift",
  "nano_window16_32x56x56",
  "swin_t_k400",
  "swin_b_k400",
]


def forward_errors(meta: dict, expected: dict) -> tuple[float, float]:
  """Errors of the logits and of the worst stage."""
  logits, stages = jax.jit(logits_and_stages)(reference_model(meta), golden_video(meta))
  worst = 0.0
  for index, features in enumerate(stages):
    for name, value in (
      ("mean_over_tokens", features.mean((1, 2, 3))),
      ("corner", features[0, 0, 0, 0]),
      ("last", features[-1, -1, -1, -1]),
    ):
      worst = max(worst, relative_error(value, expected[f"stage{index}_{name}"]))
  return relative_error(logits, expected["logits"]), worst


def gradient_norm_error(meta: dict, expected: dict) -> float:
  """Relative error of the worst parameter's gradient norm."""
  video = golden_video(meta)
  label = jnp.arange(len(video)) % meta["num_classes"]
  graph, params = split_model(reference_model(meta))

  def loss(params):
    logits = merge_model(graph, params)(video)
    return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()

  errors = []
  for path, leaf in jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(loss))(params)):
    norm = expected[f"gradnorm/{reference_name(parameter_path(path))}"]
    errors.append(abs(np.linalg.norm(np.asarray(leaf, np.float64)) - norm) / norm)
  return max(errors)


def main():
  print("| case | logits | features of the worst stage | gradient norm of the worst parameter |")
  print("|---|---|---|---|")
  for case in CASES:
    meta, expected = golden(case)
    logits, stage = forward_errors(meta, expected)
    has_gradient = "loss" in expected
    gradient = f"{gradient_norm_error(meta, expected):.1e}" if has_gradient else "not in the file"
    print(f"| `{case}` | {logits:.1e} | {stage:.1e} | {gradient} |", flush=True)


if __name__ == "__main__":
  main()
