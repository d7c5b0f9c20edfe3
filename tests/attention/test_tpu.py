"""The TPU kernels, interpreted, against the implementation by XLA: values and all gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vswin_jax.attention import tpu, tpu_windows, window_attention
from vswin_jax.attention.relative_position import table_rows
from vswin_jax.attention.windows import to_windows, window_layout

# Grids, windows, channels and heads: whole windows, shifted along all axes; a window that shrank in
# time; a padded grid; several groups of heads; fewer lanes than a tile.
CASES = {
  "shifted": ((8, 4, 4), (4, 2, 2), 64, 2),
  "shrunk in time": ((4, 4, 8), (8, 2, 4), 32, 2),
  "padded": ((8, 3, 5), (4, 2, 2), 32, 1),
  "two groups": ((4, 4, 4), (4, 2, 2), 256, 8),
  "96 lanes": ((4, 4, 4), (4, 2, 2), 96, 3),
}


def inputs_of(case, dtype):
  grid, window, channels, heads = CASES[case]
  layout = window_layout(grid, window, shifted=True)
  random = np.random.default_rng(0)
  qkv = random.normal(size=(2, layout.windows, layout.tokens, 3 * channels))
  table = random.normal(size=(table_rows(window), heads))
  return jnp.asarray(qkv, dtype), jnp.asarray(table, jnp.float32), window, layout


def values_and_gradients(attend, qkv, table):
  def loss(qkv, table):
    output = attend(qkv, table)
    weight = jnp.sin(jnp.arange(output.size, dtype=jnp.float32)).reshape(output.shape)
    return (output.astype(jnp.float32) * weight).sum(), output

  (_, output), gradients = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(qkv, table)
  return [
    np.asarray(x, np.float32) for x in (output, *jnp.split(gradients[0], 3, -1), gradients[1])
  ]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 3e-6), ("bfloat16", 2e-2)])
@pytest.mark.parametrize("case", CASES)
def test_kernels_equal_xla(case, dtype, tolerance):
  qkv, table, window, layout = inputs_of(case, dtype)
  assert tpu.why_not(layout, window, qkv.shape[-1] // 3, table.shape[1], dtype) is None

  def kernels(qkv, table):
    parts = jnp.split(qkv.reshape(-1, *qkv.shape[2:]), 3, axis=-1)
    output = tpu.attend(*parts, table, window, layout, interpret=True)
    return output.reshape(*qkv.shape[:3], -1)

  def xla(qkv, table):
    return window_attention(qkv, table, window, layout)

  actual = values_and_gradients(kernels, qkv, table)
  # The reference is in float32 for both dtypes.
  expected = values_and_gradients(xla, qkv.astype(jnp.float32), table)
  for one, other in zip(actual, expected, strict=True):
    np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * np.abs(other).max())


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize(
  ("grid", "window"), [((8, 4, 6), (4, 2, 3)), ((4, 4, 4), (8, 2, 2)), ((4, 2, 9), (2, 4, 3))]
)
def test_windows_equal_those_by_xla(grid, window, shifted):
  layout = window_layout(grid, window, shifted=shifted)
  random = np.random.default_rng(0)
  x = jnp.asarray(random.normal(size=(2, *grid[1:], grid[0], 8)), jnp.bfloat16)
  windows = tpu_windows.to_windows(x, layout, True)
  np.testing.assert_array_equal(windows, to_windows(x, layout))
  np.testing.assert_array_equal(tpu_windows.from_windows(windows, layout, True), x)
  # Permutations: the gradient is the inverse.
  _, pull = jax.vjp(lambda x: tpu_windows.to_windows(x, layout, True), x)
  np.testing.assert_array_equal(pull(windows)[0], x)
