"""Window attention with a relative position bias and the mask of shifted windows."""

import math
from functools import partial

import jax
import jax.numpy as jnp

from vswin_jax.attention.operations import dropout, product
from vswin_jax.attention.relative_position import add_bias, batched_bias, table_rows

# The reference adds it between tokens that are neighbors only through the cyclic shift.
OTHER_REGION_LOGIT = -100.0

# Maximum number of logits per chunk and example in "chunked": 8 MiB.
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
  """Computes multi-head attention within each window (Video Swin, section 3.2).

  Args:
    query: `[batch, windows, heads, tokens, head_dim]`, not scaled.
    key: as `query`.
    value: as `query`.
    bias_table: float32 `[table_rows(window), heads]`, see `relative_position`.
    window: the configured window (time, height, width) of `bias_table`; `tokens` may be fewer.
    regions: int32 `[windows, tokens]`: tokens attend to those of the same region. None: a single
      region.
    dropout_rate: on the attention probabilities, applied if `dropout_key` is given; each
      implementation draws in its own order.
    implementation: a key of `IMPLEMENTATIONS`. "xla" keeps the probabilities for the backward
      pass; "chunked" computes a few windows at a time and recomputes them, which saves memory.

  Returns:
    `[batch, windows, heads, tokens, head_dim]`, the dtype of `query`. Logits and softmax are
    float32 whatever that dtype. Differentiable in reverse mode only.

  Raises:
    ValueError: unknown implementation, or a table or number of tokens that does not fit `window`.
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
  # Rounded once, after scaling, because the scale is not a bfloat16 number.
  query = (query.astype(jnp.float32) * query.shape[-1] ** -0.5).astype(query.dtype)
  attend = partial(IMPLEMENTATIONS[implementation], window=window, dropout_rate=dropout_rate)
  return attend(query, key, value, bias_table, regions, dropout_key)


def _attend(query, key, value, bias_table, regions, dropout_key, *, window, dropout_rate):
  """Attends with all logits in memory at once."""
  bias = batched_bias(bias_table, window, query.shape[3], query.shape[0])
  return _attend_with_bias(query, key, value, bias, regions, dropout_key, dropout_rate)


def _attend_chunked(query, key, value, bias_table, regions, dropout_key, *, window, dropout_rate):
  """Attends in a few windows of each example at a time; keeps only the inputs for backward."""
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
  """Returns the largest divisor of `windows` whose logits fit `_CHUNK_LOGITS`, at least 1."""
  sizes = [size for size in range(1, windows + 1) if windows % size == 0]
  return max([size for size in sizes if size * logits_per_window <= _CHUNK_LOGITS], default=1)


def _attend_with_bias(query, key, value, bias, regions, dropout_key, dropout_rate):
  logits = add_bias(product("bwhnd,bwhmd->bwhnm", query, key), bias)
  if regions is not None:
    same_region = regions[:, None, :, None] == regions[:, None, None, :]
    logits = logits + jnp.where(same_region, 0.0, OTHER_REGION_LOGIT)
  # The division by the sum is left to the end, where it costs head_dim instead of tokens.
  weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
  total = weights.sum(-1, keepdims=True)
  weights = dropout(weights, dropout_rate, dropout_key)
  output = product("bwhnm,bwhmd->bwhnd", weights.astype(value.dtype), value)
  return (output / total).astype(query.dtype)


IMPLEMENTATIONS = {"xla": _attend, "chunked": _attend_chunked}
