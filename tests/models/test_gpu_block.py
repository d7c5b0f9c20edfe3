"""Blocks with GPU kernels, interpreted, against those by XLA: values and all gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vswin_jax.models import create_model, layers
from vswin_jax.models.gpu_layer_norm import norm_and_input
from vswin_jax.models.parameters import merge_model, split_model
from vswin_jax.training.sharding import batch_sharding, in_context, make_mesh


# Channels that are a power of two, and others.
@pytest.mark.parametrize(("rows", "channels"), [(96, 32), (10, 48)])
def test_layer_norm_equals_autodiff(rows, channels):
  random = np.random.default_rng(0)
  x, weight, residual_weight = (
    jnp.asarray(random.normal(size=(2, rows, channels)) + 0.5, jnp.float32) for _ in range(3)
  )
  parameters = tuple(jnp.asarray(random.normal(size=(2, channels)), jnp.float32))

  def kernel(x, parameters):
    normal, x = norm_and_input(x, parameters, 1e-5, True)
    return (normal * weight).sum() + (x * residual_weight).sum(), normal

  def plain(x, parameters):
    centered = x - x.mean(-1, keepdims=True)
    normal = centered / jnp.sqrt((centered**2).mean(-1, keepdims=True) + 1e-5)
    normal = normal * parameters[0] + parameters[1]
    return (normal * weight).sum() + (x * residual_weight).sum(), normal

  (_, actual), gradients = jax.value_and_grad(kernel, (0, 1), has_aux=True)(x, parameters)
  (_, expected), expected_gradients = jax.value_and_grad(plain, (0, 1), has_aux=True)(x, parameters)
  for one, other in zip(
    jax.tree.leaves((actual, gradients)),
    jax.tree.leaves((expected, expected_gradients)),
    strict=True,
  ):
    np.testing.assert_allclose(one, other, rtol=0, atol=2e-6 * np.abs(other).max())


def test_gelu_equals_autodiff(monkeypatch):
  monkeypatch.setattr(layers, "current_platform", lambda: "gpu")
  x = jnp.linspace(-4.0, 4.0, 101)
  expected, pull = jax.vjp(lambda x: jax.nn.gelu(x, approximate=False), x)
  actual, own_pull = jax.vjp(layers.gelu, x)
  np.testing.assert_array_equal(actual, expected)
  np.testing.assert_allclose(own_pull(jnp.cos(x))[0], pull(jnp.cos(x))[0], rtol=0, atol=1e-6)


def test_a_model_with_kernels_equals_one_by_xla():
  """The second stage has a padded grid. Each of two devices computes its own clips."""
  options = {
    "num_classes": 5, "embed_dim": 32, "depths": (2, 1), "num_heads": (2, 2),
    "window_size": (4, 2, 2), "drop_path_rate": 0.5, "init_std": 0.2,
  }  # fmt: skip
  video = jax.random.normal(jax.random.key(0), (2, 16, 24, 16, 3), jnp.float32)

  def values_and_gradients(attention):
    graph, params = split_model(create_model("video_swin_t", **options, attention=attention))

    def loss(params, video):
      logits = merge_model(graph, params)(video, key=jax.random.key(1))
      return (logits * jnp.arange(5)).sum(), logits

    batch = jax.device_put(video, batch_sharding(mesh))
    return jax.tree.leaves(jax.jit(in_context(mesh, jax.grad(loss, has_aux=True)))(params, batch))

  mesh = make_mesh(1, jax.devices()[:2])
  actual = values_and_gradients("pallas_gpu_interpret")
  for one, other in zip(actual, values_and_gradients("xla"), strict=True):
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * max(np.abs(other).max(), 1e-2))
