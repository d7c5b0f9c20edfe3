"""The TPU kernels, interpreted, against the implementation by XLA: values and all gradients."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.attention import values_and_gradients
from vswin_jax.attention import tpu, tpu_windows, window_attention
from vswin_jax.attention.relative_position import table_rows
from vswin_jax.attention.tpu_core import dropout_factors
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


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 3e-6), ("bfloat16", 2e-2)])
@pytest.mark.parametrize("case", CASES)
def test_kernels_equal_xla(case, dtype, tolerance):
  qkv, table, window, layout = inputs_of(case, dtype)
  assert tpu.why_not(layout, window, qkv.shape[-1] // 3, table.shape[1], dtype, True) is None

  def kernels(qkv, table):
    parts = jnp.split(qkv.reshape(-1, *qkv.shape[2:]), 3, axis=-1)
    output = tpu.attend(jnp.stack(parts), table, window, layout, interpret=True)
    return output.reshape(*qkv.shape[:3], -1)

  def xla(qkv, table):
    return window_attention(qkv, table, window, layout, implementation="xla")

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


def test_dropout_is_even_and_differs_between_rows_and_seeds():
  seeds = jax.random.bits(jax.random.key(0), (3,)).astype(jnp.int32)
  draws = [dropout_factors(seed, (0, 0), (512, 128), 128, 0.25) for seed in seeds]
  for one, other in itertools.pairwise(draws):
    kept = np.stack([one > 0, other > 0, np.roll(one > 0, 1, 0), np.roll(one > 0, 1, 1)])
    np.testing.assert_allclose(kept.mean((1, 2)), 0.75, atol=0.01)
    correlations = np.corrcoef(kept.reshape(4, -1)) - np.eye(4)
    assert np.abs(correlations).max() < 0.02
  np.testing.assert_array_equal(
    dropout_factors(seeds[0], (256, 64), (8, 64), 128, 0.25), draws[0][256:264, 64:]
  )


def test_dropout_is_on_the_probabilities_of_each_example():
  qkv, table, window, layout = inputs_of("shifted", "float32")
  key = jax.random.key(0)

  def attend(rate, qkv):
    return window_attention(
      qkv, table, window, layout, dropout_rate=rate, dropout_key=key,
      implementation="pallas_tpu_interpret",
    )  # fmt: skip

  # Averages of ones: the sum of the probabilities that remain.
  query, key_of_token, value = jnp.split(jnp.broadcast_to(qkv[:1], qkv.shape), 3, axis=-1)
  same = jnp.concatenate([query, key_of_token, jnp.ones_like(value)], axis=-1)
  dropped = attend(0.5, same)
  assert np.abs(dropped[0] - dropped[1]).max() > 0.1
  np.testing.assert_allclose(dropped.mean(), 1.0, atol=0.02)
  np.testing.assert_allclose(attend(0.0, same), 1.0, atol=1e-6)


def test_without_a_tpu_xla_computes():
  qkv, table, window, layout = inputs_of("shifted", "float32")
  actual, expected = (
    window_attention(qkv, table, window, layout, implementation=implementation)
    for implementation in ("pallas_tpu", "xla")
  )
  np.testing.assert_array_equal(actual, expected)
  assert tpu.why_not(layout, window, 64, 2, "float32") == "cpu is no TPU"


def test_what_kernels_cannot_compute_is_computed_by_the_next_best(monkeypatch):
  messages = []
  monkeypatch.setattr("vswin_jax.attention.window.log_once", messages.append)

  def chosen(window, grid, dtype="float32"):
    layout = window_layout(grid, window, shifted=True)
    qkv = jax.ShapeDtypeStruct((1, layout.windows, layout.tokens, 3 * 128), dtype)
    table = jax.ShapeDtypeStruct((table_rows(window), 4), "float32")
    messages.clear()
    jax.eval_shape(
      lambda *x: window_attention(*x, window, layout, implementation="pallas_tpu_interpret"),
      qkv,
      table,
    )
    return messages[0] if messages else None

  grid = (16, 56, 56)
  for window in ((8, 7, 7), (16, 7, 7), (8, 12, 12)):
    assert chosen(window, grid) is None
  assert chosen((8, 7, 7), (5, 56, 56)) is None
  assert "chunked, because a kernel needs about" in chosen((16, 16, 16), grid)
  assert "xla, because a window (8, 7, 7) that shrank" in chosen((8, 7, 7), (8, 4, 4))
  assert "xla, because TPUs do not compute in float16" in chosen((8, 7, 7), grid, "float16")
