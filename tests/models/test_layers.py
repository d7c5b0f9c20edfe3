"""Layers that several models share."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vswin_jax.models.layers import linear


@dataclasses.dataclass(frozen=True)
class Config:
  dtype: str = "bfloat16"
  param_dtype: str = "float32"
  init_std: float = 0.02


@pytest.mark.parametrize("use_bias", [True, False])
def test_gradients_of_bfloat16_layers_are_summed_in_float32(use_bias):
  """Sums over many tokens, against float64 sums of the same rounded factors."""
  layer = linear(16, 8, Config(), nnx.Rngs(0), use_bias=use_bias)
  draw = np.random.default_rng(0).normal
  x = jnp.asarray(draw(size=(2, 3, 500, 16)), jnp.bfloat16)
  weights = jnp.asarray(draw(size=(2, 3, 500, 8)), jnp.bfloat16)
  graph, params = nnx.split(layer)

  def loss(params, x):
    y = nnx.merge(graph, params)(x)
    assert y.dtype == jnp.bfloat16
    return (y * weights).astype(jnp.float32).sum()

  by_params, by_x = jax.grad(loss, (0, 1))(params, x)
  exact_x = np.asarray(x, np.float64).reshape(-1, 16)
  exact_weights = np.asarray(weights, np.float64).reshape(-1, 8)
  expected = {"kernel": exact_x.T @ exact_weights, "bias": exact_weights.sum(0)}
  for name in ("kernel", "bias") if use_bias else ("kernel",):
    gradient = by_params[name][...]
    assert gradient.dtype == jnp.float32
    np.testing.assert_allclose(gradient, expected[name], rtol=1e-5, atol=1e-4)
  assert by_x.dtype == jnp.bfloat16
  kernel = np.asarray(params["kernel"][...].astype(jnp.bfloat16), np.float64)
  np.testing.assert_allclose(
    np.asarray(by_x, np.float64).reshape(-1, 16), exact_weights @ kernel.T, rtol=1e-2, atol=1e-3
  )


def test_bfloat16_layers_agree_with_float32_layers():
  reduced = linear(16, 8, Config(), nnx.Rngs(0))
  full = linear(16, 8, Config(dtype="float32"), nnx.Rngs(0))
  x = np.random.default_rng(0).normal(size=(5, 16)).astype(np.float32)
  np.testing.assert_allclose(reduced(x).astype(jnp.float32), full(x), rtol=2e-2, atol=1e-3)
