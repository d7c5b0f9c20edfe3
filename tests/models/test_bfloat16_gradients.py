"""Gradients of bfloat16 models: in float32, and close to those of float32 models."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vswin_jax import create_model
from vswin_jax.models.parameters import flatten, merge_model, split_model, unflatten

TEMPORAL = {
  "num_layers": 2, "num_heads": 2, "attention_window": 4, "intermediate_size": 48,
}  # fmt: skip
MODELS = {
  "video_swin_t": {
    "embed_dim": 16, "depths": (2, 2), "num_heads": (1, 2), "window_size": (2, 4, 4)
  },
  "vtn_deit_b_distilled": {
    "width": 32,
    "backbone_options": {
      "image_size": 32, "patch_size": 8, "width": 32, "depth": 2, "num_heads": 2
    },
  } | TEMPORAL,
  "vtn_r50": {"width": 64, "backbone_options": {"depths": (1, 1), "width": 8}} | TEMPORAL,
}  # fmt: skip


def random_params(shapes) -> dict:
  """Parameters of the size that keeps activations near 1."""
  random = np.random.default_rng(0)

  def draw(path, shape):
    values = random.normal(size=shape).astype(np.float32)
    if path.endswith(("scale", "running_variance")):
      return 1 + 0.1 * values
    return values / math.sqrt(math.prod(shape[:-1])) if path.endswith("kernel") else 0.1 * values

  return unflatten({path: draw(path, leaf.shape) for path, leaf in flatten(shapes).items()})


def gradients(name: str, dtype: str) -> dict[str, np.ndarray]:
  """Gradients of a loss over the logits, by path; parameters are the same in every dtype."""
  graph, shapes = split_model(
    nnx.eval_shape(lambda: create_model(name, num_classes=5, dtype=dtype, **MODELS[name]))
  )
  video = np.random.default_rng(1).normal(size=(4, 8, 32, 32, 3)).astype(np.float32)

  def loss(params):
    return (merge_model(graph, params)(jnp.asarray(video)) ** 2).mean()

  # Less optimization, because compilation takes most of the time.
  compiled = jax.jit(jax.grad(loss), compiler_options={"xla_backend_optimization_level": 0})
  gradient = compiled(random_params(shapes))
  return {path: np.asarray(leaf) for path, leaf in flatten(gradient).items()}


@pytest.mark.parametrize("name", MODELS)
def test_gradients_of_all_parameters_are_summed_in_float32(name):
  found, expected = gradients(name, "bfloat16"), gradients(name, "float32")
  assert found.keys() == expected.keys()
  total = math.sqrt(sum((leaf**2).sum() for leaf in expected.values()))
  rounded, errors = [], {}
  for path, leaf in found.items():
    assert leaf.dtype == np.float32
    # Biases of keys have no gradient but rounding errors, because softmax ignores them.
    is_zero = np.linalg.norm(expected[path]) < 1e-5 * total
    if not is_zero and (leaf == leaf.astype(jnp.bfloat16)).all():
      rounded.append(path)
    errors[path] = np.linalg.norm(leaf - expected[path]) / total
  assert not rounded
  worst = max(errors, key=errors.get)
  assert errors[worst] < 0.03, (worst, errors[worst])
