"""Attention among all tokens: the TPU kernels, interpreted, against float32 by XLA."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vswin_jax.attention import cudnn, dense, tpu_dense
from vswin_jax.attention.dense import dense_attention

# Queries, tokens, heads and channels of a head: an odd number of tokens; the class token alone;
# whole tiles, without padding; two groups of heads; heads that do not fill tiles.
CASES = {
  "odd": (37, 37, 2, 16),
  "class token": (1, 37, 2, 16),
  "whole tiles": (32, 32, 2, 16),
  "two groups": (21, 21, 4, 64),
  "three heads": (19, 19, 3, 64),
}


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 3e-6), ("bfloat16", 2e-2)])
@pytest.mark.parametrize("case", CASES)
def test_kernels_equal_xla(case, dtype, tolerance):
  queries, tokens, heads, head_dim = CASES[case]
  random = np.random.default_rng(0)
  inputs = [
    jnp.asarray(random.normal(size=(2, rows, heads, head_dim)), dtype)
    for rows in (queries, tokens, tokens)
  ]

  def values_and_gradients(implementation, *inputs):
    def loss(*inputs):
      output = dense_attention(*inputs, implementation=implementation)
      weight = jnp.sin(jnp.arange(output.size, dtype=jnp.float32)).reshape(output.shape)
      return (output.astype(jnp.float32) * weight).sum(), output

    run = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))
    (_, output), gradients = run(*inputs)
    return [np.asarray(x, np.float32) for x in (output, *gradients)]

  actual = values_and_gradients("pallas_tpu_interpret", *inputs)
  expected = values_and_gradients("xla", *[x.astype(jnp.float32) for x in inputs])
  for one, other in zip(actual, expected, strict=True):
    np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * np.abs(other).max())


@pytest.mark.parametrize("implementation", ["xla", "cudnn", "pallas_tpu_interpret"])
def test_padding_is_not_seen(implementation, monkeypatch):
  # There is no cuDNN on a CPU; JAX computes the same arguments by XLA.
  monkeypatch.setattr(cudnn, "why_not_heads", lambda *_: None)
  attend = jax.nn.dot_product_attention

  def by_xla(*inputs, implementation, **options):
    assert implementation == "xla" or all(x.shape[1] % 2 == 0 for x in inputs)
    return attend(*inputs, **options)

  monkeypatch.setattr(jax.nn, "dot_product_attention", by_xla)
  random = np.random.default_rng(0)
  query, key, value = (jnp.asarray(random.normal(size=(2, 21, 2, 8)), jnp.float32) for _ in "qkv")
  expected = attend(query[:, :3], key[:, :19], value[:, :19])
  if implementation != "xla":
    monkeypatch.setattr(dense, "_xla", None)  # nothing falls back to it
  actual = dense_attention(query[:, :3], key, value, 19, implementation=implementation)
  np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)


def test_what_the_kernels_and_cudnn_cannot_compute_is_left_to_xla():
  # The memory of a core holds no logits of so many tokens.
  assert "MiB" in tpu_dense.why_not(4096, 768, "bfloat16", interpret=True)
  assert "float16" in tpu_dense.why_not(197, 768, "float16", interpret=True)
  random = np.random.default_rng(0)
  x = jnp.asarray(random.normal(size=(1, 5, 2, 8)), jnp.float32)
  # There is no cuDNN on a CPU.
  np.testing.assert_array_equal(
    dense_attention(x, x, x, implementation="cudnn"), dense_attention(x, x, x, implementation="xla")
  )
  with pytest.raises(ValueError, match="unknown attention implementation 'cudn'"):
    dense_attention(x, x, x, implementation="cudn")
