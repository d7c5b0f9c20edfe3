"""Attention inside windows, with a relative position bias and the regions of a cyclic shift."""

import jax
import jax.numpy as jnp

from vswin_jax.attention.relative_position import add_bias, batched_bias

# What the reference adds between tokens that are neighbours only through the cyclic shift.
OTHER_REGION_LOGIT = -100.0


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
    dropout_rate: dropout on the attention probabilities, applied if `dropout_key` is given.
    implementation: a key of `IMPLEMENTATIONS`. "xla" keeps the probabilities for the backward
      pass; "chunked" goes through a few windows at a time and recomputes them, for memory.

  Returns:
    `[batch, windows, heads, tokens, head_dim]`, the dtype of `query`. Logits and softmax are
    float32 whatever that dtype.

  Raises:
    ValueError: unknown implementation.
  """
  if implementation not in IMPLEMENTATIONS:
    raise ValueError(
      f"unknown attention implementation {implementation!r}; choose one of "
      f"{', '.join(sorted(IMPLEMENTATIONS))}"
    )
  batch, _, _, tokens, head_dim = query.shape
  bias = batched_bias(bias_table, window, tokens, batch)
  query = query * head_dim**-0.5
  if dropout_rate == 0.0:
    dropout_key = None
  return IMPLEMENTATIONS[implementation](
    query, key, value, bias, regions, dropout_rate, dropout_key
  )


def _attend(query, key, value, bias, regions, dropout_rate, dropout_key):
  """Attention with every logit in memory at once."""
  logits = jnp.einsum("bwhnd,bwhmd->bwhnm", query, key, preferred_element_type=jnp.float32)
  logits = add_bias(logits, bias)
  if regions is not None:
    same_region = regions[:, None, :, None] == regions[:, None, None, :]
    logits = logits + jnp.where(same_region, 0.0, OTHER_REGION_LOGIT)
  # The division by the sum is left to the end, where it costs head_dim instead of tokens.
  weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
  total = weights.sum(-1, keepdims=True)
  if dropout_key is not None:
    keep = jax.random.bernoulli(dropout_key, 1.0 - dropout_rate, weights.shape)
    weights = jnp.where(keep, weights / (1.0 - dropout_rate), 0.0)
  output = jnp.einsum(
    "bwhnm,bwhmd->bwhnd", weights.astype(value.dtype), value, preferred_element_type=jnp.float32
  )
  return (output / total).astype(query.dtype)


def _attend_chunked(
  query, key, value, bias, regions, dropout_rate, dropout_key, *, windows_per_chunk=8
):
  """`_attend` over a few windows of every example at a time, recomputed for the gradient."""
  windows = query.shape[1]
  size = max(n for n in range(1, windows_per_chunk + 1) if windows % n == 0)
  chunks = windows // size

  def split(x, axis):
    x = x.reshape(*x.shape[:axis], chunks, size, *x.shape[axis + 1 :])
    return jnp.moveaxis(x, axis, 0)

  @jax.checkpoint
  def attend(chunk):
    query, key, value, regions, dropout_key = chunk
    return _attend(query, key, value, bias, regions, dropout_rate, dropout_key)

  chunked = (
    split(query, 1),
    split(key, 1),
    split(value, 1),
    None if regions is None else split(jnp.asarray(regions), 0),
    None if dropout_key is None else jax.random.split(dropout_key, chunks),
  )
  output = jnp.moveaxis(jax.lax.map(attend, chunked), 0, 1)
  return output.reshape(query.shape)


IMPLEMENTATIONS = {"xla": _attend, "chunked": _attend_chunked}
