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


@pytest.mark.parametrize("param_dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(
  ("function", "definition", "shapes"),
  [
    (lambda *args: cpu_layers.layer_norm(*args, 1e-5), layer_norm, [(50, 24), (24,), (24,)]),
    (cpu_layers.gelu, gelu, [(50, 24)]),
  ],
)
def test_values_and_gradients_equal_the_definition(function, definition, shapes, param_dtype):
  random = np.random.default_rng(0)
  x, *parameters = (3 * random.normal(size=shape) for shape in shapes)
  x = jnp.asarray(x + 5 * random.normal(size=(50, 1)), jnp.float32)
  inputs = [x, *(jnp.asarray(parameter, param_dtype) for parameter in parameters)]
  weights = random.normal(size=shapes[0]).astype(np.float32)

  def results(function, inputs):
    output, vjp = jax.vjp(function, *inputs)
    return output, *vjp(jnp.asarray(weights, output.dtype))

  with jax.enable_x64(True):
    expected = results(definition, [np.asarray(array, np.float64) for array in inputs])
  actual = jax.jit(lambda: results(function, inputs))()
  for one, exact, dtype in zip(actual, expected, [x.dtype, *(x.dtype for x in inputs)]):
    assert one.dtype == dtype
    tolerance = max(2e-6, float(jnp.finfo(dtype).eps) / 2) * np.abs(exact).max()
    np.testing.assert_allclose(np.asarray(one, np.float64), exact, rtol=0, atol=tolerance)
