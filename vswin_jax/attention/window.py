"""Attention inside windows, with a relative position bias and the regions of a cyclic shift."""

import math
from functools import partial

import jax
import jax.numpy as jnp

from vswin_jax.attention.relative_position import add_bias, batched_bias, table_rows

# What the reference adds between tokens that are neighbors only through the cyclic shift.
OTHER_REGION_LOGIT = -100.0

# Logits that "chunked" computes at a time for each example: 8 MiB.
_CHUNK_LOGITS = 2**21


def window_attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  bias_table: jax.Array,
  window: tuple[int, int, int],
  regions: jax.Array | None = None,
  *,
  dropout_rate: float = 0.0,
  dropout_key: jax.Array | None = None,
  implementation: str = "xla",
) -> jax.Array:
  """Multi-head attention among the tokens of each window (Video Swin, section 3.2).

  Args:
    query: `[batch, windows, heads, tokens, head_dim]`, not yet scaled. Likewise `key`, `value`.
    bias_table: float32 `[table_rows(window), heads]`, see `relative_position`.
    window: the configured window (time, height, width) that `bias_table` belongs to; `tokens`
      may be fewer.
    regions: int32 `[windows, tokens]`: tokens of one window attend freely only inside the same
      region. None: a single region.
    dropout_rate: dropout on the attention probabilities, applied if `dropout_key` is given; each
      implementation draws in its own order.
    implementation: a key of `IMPLEMENTATIONS`. "xla" keeps the probabilities for the backward
      pass; "chunked" goes through a few windows at a time and recomputes them, for memory.

  Returns:
    `[batch, windows, heads, tokens, head_dim]`, the dtype of `query`. Logits and softmax are
    float32 whatever that dtype. Differentiable in reverse mode only.

  Raises:
    ValueError: unknown implementation, or a table or a number of tokens that do not fit `window`.
  """
  if implementation not in IMPLEMENTATIONS:
    raise ValueError(
      f"unknown attention implementation {implementation!r}; choose one of "
      f"{', '.join(sorted(IMPLEMENTATIONS))}"
    )
  heads, tokens = query.shape[2:4]
  if bias_table.shape != (table_rows(window), heads) or tokens > math.prod(window):
    raise ValueError(
      f"{tokens} tokens and a bias table {list(bias_table.shape)} do not fit the window {window} "
      f"and {heads} heads; expected at most {math.prod(window)} tokens and "
      f"{[table_rows(window), heads]}"
    )
  if dropout_rate == 0.0:
    dropout_key = None
  # Rounded once, after scaling: the scale itself is no bfloat16 number.
  query = (query.astype(jnp.float32) * query.shape[-1] ** -0.5).astype(query.dtype)
  attend = partial(IMPLEMENTATIONS[implementation], window=window, dropout_rate=dropout_rate)
  return attend(query, key, value, bias_table, regions, dropout_key)


def _attend(query, key, value, bias_table, regions, dropout_key, *, window, dropout_rate):
  """Attention with every logit in memory at once."""
  bias = batched_bias(bias_table, window, query.shape[3], query.shape[0])
  return _attend_with_bias(query, key, value, bias, regions, dropout_key, dropout_rate)


def _attend_chunked(query, key, value, bias_table, regions, dropout_key, *, window, dropout_rate):
  """Attention over a few windows of every example at a time; keeps only its inputs."""
  batch, windows, heads, tokens, _ = query.shape
  size = _chunk_size(windows, heads * tokens**2)
  chunks = windows // size

  def split(x, axis):
    x = x.reshape(*x.shape[:axis], chunks, size, *x.shape[axis + 1 :])
    return jnp.moveaxis(x, axis, 0)

  @jax.checkpoint
  def attend(query, key, value, bias_table, regions, dropout_keys):
    bias = batched_bias(bias_table, window, tokens, batch)

    @jax.checkpoint
    def attend_chunk(chunk):
      query, key, value, regions, dropout_key = chunk
      return _attend_with_bias(query, key, value, bias, regions, dropout_key, dropout_rate)

    chunked = (
      split(query, 1),
      split(key, 1),
      split(value, 1),
      None if regions is None else split(regions, 0),
      dropout_keys,
    )
    output = jax.lax.map(attend_chunk, chunked)
    return jnp.moveaxis(output, 0, 1).reshape(query.shape)

  dropout_keys = None if dropout_key is None else jax.random.split(dropout_key, chunks)
  regions = None if regions is None else jnp.asarray(regions)
  return attend(query, key, value, bias_table, regions, dropout_keys)


def _chunk_size(windows: int, logits_per_window: int) -> int:
  """The largest divisor of the number of windows whose logits fit `_CHUNK_LOGITS`, at least 1."""
  sizes = [size for size in range(1, windows + 1) if windows % size == 0]
  return max([size for size in sizes if size * logits_per_window <= _CHUNK_LOGITS], default=1)


def _attend_with_bias(query, key, value, bias, regions, dropout_key, dropout_rate):
  logits = add_bias(_product("bwhnd,bwhmd->bwhnm", query, key), bias)
  if regions is not None:
    same_region = regions[:, None, :, None] == regions[:, None, None, :]
    logits = logits + jnp.where(same_region, 0.0, OTHER_REGION_LOGIT)
  # The division by the sum is left to the end, where it costs head_dim instead of tokens.
  weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
  total = weights.sum(-1, keepdims=True)
  if dropout_key is not None:
    keep = jax.random.bernoulli(dropout_key, 1.0 - dropout_rate, weights.shape)
    weights = jnp.where(keep, weights / (1.0 - dropout_rate), 0.0)
  output = _product("bwhnm,bwhmd->bwhnd", weights.astype(value.dtype), value)
  return (output / total).astype(query.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(subscripts: str, left: jax.Array, right: jax.Array) -> jax.Array:
  """Batched matrix product of two arrays of one dtype, accumulated and returned in float32.

  Its gradients are products in that dtype too; left to itself, autodiff would multiply the float32
  cotangent and make every backward product a slow float32 one.
  """
  return jnp.einsum(subscripts, left, right, preferred_element_type=jnp.float32)


def _product_forward(subscripts, left, right):
  return _product(subscripts, left, right), (left, right)


def _product_backward(subscripts, operands, gradient):
  _, transpose = jax.vjp(partial(jnp.einsum, subscripts), *operands)
  return transpose(gradient.astype(operands[0].dtype))


_product.defvjp(_product_forward, _product_backward)

IMPLEMENTATIONS = {"xla": _attend, "chunked": _attend_chunked}
