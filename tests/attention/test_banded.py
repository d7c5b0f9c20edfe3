"""Banded attention against a dense one with an explicit mask."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vswin_jax.attention.banded import banded_attention, global_attention

HIGHEST = jax.lax.Precision.HIGHEST


def dense(query, key, value, global_key, global_value, reach, valid=None):
  """All logits at once, the global token as column 0."""
  tokens = query.shape[2]
  keys = jnp.concatenate([global_key[:, :, None], key], axis=2)
  values = jnp.concatenate([global_value[:, :, None], value], axis=2)
  logits = jnp.einsum("bhqd,bhkd->bhqk", query, keys, precision=HIGHEST)
  near = np.abs(np.arange(tokens)[:, None] - np.arange(tokens)[None]) <= reach
  seen = np.concatenate([np.ones((tokens, 1), bool), near], axis=1)[None, None]
  if valid is not None:
    column = jnp.concatenate([jnp.ones((len(valid), 1), bool), valid], axis=1)
    seen = seen & column[:, None, None]
  weights = jax.nn.softmax(jnp.where(seen, logits, -jnp.inf))
  return jnp.einsum("bhqk,bhkd->bhqd", weights, values, precision=HIGHEST)


def inputs(tokens, batch=2, heads=3, head_dim=8, seed=0):
  random = np.random.default_rng(seed)
  shapes = [(batch, heads, tokens, head_dim)] * 3 + [(batch, heads, head_dim)] * 2
  return [jnp.asarray(random.normal(size=shape), jnp.float32) for shape in shapes]


@pytest.mark.parametrize("reach", [1, 3, 9, 40])
@pytest.mark.parametrize("tokens", [1, 2, 9, 10, 31, 32, 33, 64, 65, 100, 131])
def test_values_and_gradients_equal_a_dense_mask(tokens, reach):
  arrays = inputs(tokens)
  weight = jnp.asarray(np.random.default_rng(1).normal(size=arrays[0].shape), jnp.float32)

  @jax.jit
  def gradients_and_outputs(arrays):
    def loss(attention, arrays):
      output = attention(*arrays, reach)
      return (output * weight).sum(), output

    return [
      jax.grad(functools.partial(loss, attention), has_aux=True)(arrays)
      for attention in (banded_attention, dense)
    ]

  (actual, output), (expected, reference) = gradients_and_outputs(arrays)
  np.testing.assert_allclose(output, reference, atol=2e-6)
  for ours, theirs in zip(actual, expected):
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("tokens", [7, 40, 70])
def test_padding_changes_nothing(tokens):
  arrays = inputs(tokens)
  lengths = np.array([tokens, max(1, tokens // 2)])
  valid = jnp.asarray(np.arange(tokens)[None] < lengths[:, None])
  output, reference = (
    np.asarray(jax.jit(attention, static_argnums=5)(*arrays, 5, valid))
    for attention in (banded_attention, dense)
  )
  np.testing.assert_allclose(output[:, :, : lengths[1]], reference[:, :, : lengths[1]], atol=2e-6)
  alone = [x[1:, :, : lengths[1]] if x.ndim == 4 else x[1:] for x in arrays]
  alone = jax.jit(banded_attention, static_argnums=5)(*alone, 5)
  np.testing.assert_allclose(output[1:, :, : lengths[1]], alone, atol=2e-6)
  assert np.isfinite(output).all()


def test_gradients_are_finite_where_a_whole_block_is_padding():
  arrays = inputs(100)
  valid = jnp.asarray(np.arange(100)[None] < np.array([[100], [3]]))

  def loss(arrays):
    return (banded_attention(*arrays, 4, valid) * valid[:, None, :, None]).sum()

  for gradient in jax.jit(jax.grad(loss))(arrays):
    assert np.isfinite(gradient).all()


def test_global_attention_equals_a_dense_softmax():
  query, key, value, *_ = inputs(23)
  valid = jnp.asarray(np.arange(23)[None] < np.array([[23], [11]]))
  output = global_attention(query[:, :, 0], key, value, valid)
  for example, length in enumerate((23, 11)):
    logits = jnp.einsum("hd,hkd->hk", query[example, :, 0], key[example, :, :length])
    expected = jnp.einsum("hk,hkd->hd", jax.nn.softmax(logits), value[example, :, :length])
    np.testing.assert_allclose(output[example], expected, atol=2e-6)


def test_dropout_keeps_the_mean():
  arrays = inputs(40, batch=1, heads=1)
  keys = jax.random.split(jax.random.key(0), 4000)
  run = jax.jit(
    jax.vmap(lambda key: banded_attention(*arrays, 5, dropout_rate=0.3, dropout_key=key))
  )
  outputs = run(keys)
  assert float(outputs.std(0).max()) > 0.1
  np.testing.assert_allclose(outputs.mean(0), banded_attention(*arrays, 5), atol=0.06)


def test_bfloat16_multiplies_in_bfloat16_in_both_directions():
  low = [x.astype(jnp.bfloat16) for x in inputs(40)]

  def loss(query, key, value, global_key, global_value):
    frames = banded_attention(query, key, value, global_key, global_value, 5)
    class_token = global_attention(query[:, :, 0], key, value)
    return frames.astype(jnp.float32).sum() + class_token.astype(jnp.float32).sum()

  text = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3, 4))).lower(*low).as_text()
  products = [line for line in text.splitlines() if "dot_general" in line]
  assert len(products) >= 13
  for line in products:
    left, right = re.search(r": \(tensor<(\S+)>, tensor<(\S+)>\)", line).groups()
    assert left.endswith("bf16") and right.endswith("bf16"), line


def test_the_program_grows_with_tokens_times_window_and_gathers_nothing():
  def compiled(tokens):
    arrays = inputs(tokens, batch=1, heads=1)
    program = jax.jit(jax.grad(lambda a: banded_attention(*a, 9).sum())).lower(arrays).compile()
    return program

  text = compiled(4096).as_text()
  for operation in (" gather(", " scatter(", "4096,4096", "dynamic-slice("):
    assert operation not in text
  small, large = (compiled(n).memory_analysis().temp_size_in_bytes for n in (4096, 16384))
  assert large < 4.5 * small
