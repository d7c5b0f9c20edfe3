"""LayerNorm and GELU for CPUs against autodiff of their definitions in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vswin_jax.models import cpu_layers


def layer_norm(x, scale, bias):
  centered = x - x.mean(-1, keepdims=True)
  return centered / jnp.sqrt(jnp.square(centered).mean(-1, keepdims=True) + 1e-5) * scale + bias


def gelu(x):
  return x * (1 + jax.lax.erf(x / np.sqrt(2))) / 2


@pytest.mark.parametrize(
  ("function", "definition", "shapes"),
  [
    (lambda *args: cpu_layers.layer_norm(*args, 1e-5), layer_norm, [(50, 24), (24,), (24,)]),
    (cpu_layers.gelu, gelu, [(50, 24)]),
  ],
)
def test_values_and_gradients_equal_the_definition(function, definition, shapes):
  random = np.random.default_rng(0)
  inputs = [3 * random.normal(size=shape) for shape in shapes]
  inputs[0] += 5 * random.normal(size=(50, 1))
  weights = random.normal(size=shapes[0])

  def results(function, dtype):
    arrays = [jnp.asarray(array, dtype) for array in inputs]
    output, vjp = jax.vjp(function, *arrays)
    return output, *vjp(jnp.asarray(weights, dtype))

  with jax.enable_x64(True):
    expected = results(definition, jnp.float64)
  for actual, exact in zip(jax.jit(lambda: results(function, jnp.float32))(), expected):
    scale = np.abs(exact).max()
    np.testing.assert_allclose(actual, exact, rtol=0, atol=2e-6 * scale)
