"""Window attention that computes a few windows at a time and keeps no logits.

With the logits `L = Q K^T / sqrt(head_dim) + bias + mask` of a window, the probabilities
`P = softmax(L)` and a dropout mask `D` (1 without dropout), the output is `O = (P * D) V`. The
backward pass keeps `O`, computes `P` again, and returns

    dV = (P * D)^T dO,   dL = P * ((dO V^T) * D - rowsum(dO * O)),
    dQ = dL K / sqrt(head_dim),   dK = dL^T Q / sqrt(head_dim),   dbias = sum of dL over windows.

Keeping the logarithms of the sums of `exp L` too would save work, but on CPUs XLA then no longer
fuses the softmax with its two products.
"""

from functools import partial

import jax
import jax.numpy as jnp

from vswin_jax.attention.operations import dropout, product, sum_over_windows
from vswin_jax.attention.relative_position import bias_table_gradient, expand_bias
from vswin_jax.attention.windows import OTHER_REGION_LOGIT, Size3D, WindowLayout, region_ids

# Maximum number of logits per chunk and example: 8 MiB.
_CHUNK_LOGITS = 2**21


def attend(
  qkv: jax.Array,
  bias_table: jax.Array,
  window: Size3D,
  layout: WindowLayout,
  dropout_rate: float,
  dropout_key: jax.Array | None,
) -> jax.Array:
  """Computes `window.window_attention`."""
  dropout_keys = None
  if dropout_key is not None:
    size = _chunk_size(layout, bias_table.shape[1])
    dropout_keys = jax.random.split(dropout_key, layout.windows // size)
  return _attend(qkv, bias_table, dropout_keys, window, layout, dropout_rate)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _attend(qkv, bias_table, dropout_keys, window, layout, dropout_rate):
  return _attend_forward(qkv, bias_table, dropout_keys, window, layout, dropout_rate)[0]


def _attend_forward(qkv, bias_table, dropout_keys, window, layout, dropout_rate):
  batch, heads = len(qkv), bias_table.shape[1]
  bias = expand_bias(bias_table, window, layout.window)

  def attend_chunk(chunk):
    qkv, regions, dropout_key = chunk
    qkv = qkv.reshape(batch, -1, layout.tokens, qkv.shape[-1])
    query, key, value = split_heads(qkv, heads)
    weights, total = _softmax_parts(query, key, bias, regions)
    weights = dropout(weights, dropout_rate, dropout_key).astype(qkv.dtype)
    # The division by the sum is left to the end, where it costs head_dim instead of tokens.
    output = product("bwhnm,bwhmd->bwhnd", weights, value) / total
    return _merge_heads(output).astype(qkv.dtype).reshape(-1, qkv.shape[-1] // 3)

  size = _chunk_size(layout, heads)
  split = partial(_split_windows, size=size)
  output = jax.lax.map(attend_chunk, (split(qkv), _regions(layout, size), dropout_keys))
  output = _join_windows(output, layout, batch)
  return output, (qkv, bias_table, dropout_keys, output)


def _attend_backward(window, layout, dropout_rate, residuals, gradient):
  qkv, bias_table, dropout_keys, output = residuals
  batch, heads = len(qkv), bias_table.shape[1]
  bias = expand_bias(bias_table, window, layout.window)

  def differentiate_chunk(bias_gradient, chunk):
    rows, regions, dropout_key, output, gradient = chunk
    qkv, output, gradient = (
      x.reshape(batch, -1, layout.tokens, x.shape[-1]) for x in (rows, output, gradient)
    )
    query, key, value = split_heads(qkv, heads)
    drop = partial(dropout, rate=dropout_rate, key=dropout_key)
    row_sums = gradient.astype(jnp.float32) * output
    row_sums = row_sums.reshape(*row_sums.shape[:3], heads, -1).sum(-1).swapaxes(2, 3)
    gradient = gradient.reshape(*gradient.shape[:3], heads, -1).swapaxes(2, 3)

    weights, total = _softmax_parts(query, key, bias, regions)
    weights = weights * (1 / total)
    weight_gradient = drop(product("bwhnd,bwhmd->bwhnm", gradient, value))
    logit_gradient = weights * (weight_gradient - row_sums[..., None])
    bias_gradient += sum_over_windows(logit_gradient)

    logit_gradient = logit_gradient.astype(qkv.dtype)
    scale = query.shape[-1] ** -0.5
    parts = (
      product("bwhnm,bwhmd->bwhnd", logit_gradient, key) * scale,
      # Products that keep the order of the logits are faster than those that transpose them.
      product("bwhnd,bwhnm->bwhdm", query, logit_gradient).swapaxes(3, 4),
      product("bwhnd,bwhnm->bwhdm", gradient, drop(weights).astype(qkv.dtype)).swapaxes(3, 4),
    )
    parts = [_merge_heads(part) for part in parts]
    return bias_gradient, jnp.concatenate(parts, axis=-1).astype(qkv.dtype).reshape(rows.shape)

  size = _chunk_size(layout, heads)
  split = partial(_split_windows, size=size)
  bias_gradient, qkv_gradient = jax.lax.scan(
    differentiate_chunk,
    jnp.zeros((batch, *bias.shape), jnp.float32),
    (split(qkv), _regions(layout, size), dropout_keys, split(output), split(gradient)),
  )
  table_gradient = bias_table_gradient(bias_gradient, bias_table, window, layout.window)
  return _join_windows(qkv_gradient, layout, batch), table_gradient, None


_attend.defvjp(_attend_forward, _attend_backward)


def _chunk_size(layout: WindowLayout, heads: int) -> int:
  """Returns the most windows of equal chunks whose logits fit `_CHUNK_LOGITS`, at least 1."""
  most = max(_CHUNK_LOGITS // (heads * layout.tokens**2), 1)
  sizes = range(1, min(most, layout.windows) + 1)
  return max(size for size in sizes if layout.windows % size == 0)


def _split_windows(x: jax.Array, size: int) -> jax.Array:
  """Splits `[batch, windows, tokens, channels]` into chunks of `size` windows of every example.

  Returns:
    `[chunks, batch * size * tokens, channels]`. An axis of size 1 would make XLA copy the chunks.
  """
  batch, windows, *rest = x.shape
  if batch > 1:
    x = jnp.moveaxis(x.reshape(batch, windows // size, size, *rest), 1, 0)
  return x.reshape(windows // size, -1, x.shape[-1])


def _join_windows(x: jax.Array, layout: WindowLayout, batch: int) -> jax.Array:
  """Inverts `_split_windows`."""
  shape = (batch, layout.windows, layout.tokens, x.shape[-1])
  if batch > 1:
    x = jnp.moveaxis(x.reshape(len(x), batch, -1, *shape[2:]), 0, 1)
  return x.reshape(shape)


def _regions(layout: WindowLayout, size: int) -> jax.Array | None:
  """Returns the regions of the tokens by chunk: `[chunks, size, tokens]`."""
  regions = region_ids(layout)
  return None if regions is None else jnp.asarray(regions).reshape(-1, size, layout.tokens)


def split_heads(qkv: jax.Array, heads: int) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns queries (scaled), keys and values `[batch, windows, heads, tokens, head_dim]`."""
  query, key, value = qkv.reshape(*qkv.shape[:3], 3, heads, -1).transpose(3, 0, 1, 4, 2, 5)
  # Rounded once, after scaling, because the scale is not a bfloat16 number.
  return (query.astype(jnp.float32) * query.shape[-1] ** -0.5).astype(query.dtype), key, value


def _merge_heads(x: jax.Array) -> jax.Array:
  """Returns `[batch, windows, tokens, channels]` from `[batch, windows, heads, tokens, ...]`."""
  x = x.swapaxes(2, 3)
  return x.reshape(*x.shape[:3], -1)


def _softmax_parts(query, key, bias, regions):
  """Returns the exponentials of the logits, minus their maximum, and the sums of these."""
  logits = product("bwhnd,bwhmd->bwhnm", query, key) + bias
  if regions is not None:
    same_region = regions[:, None, :, None] == regions[:, None, None, :]
    logits = logits + jnp.where(same_region, 0.0, OTHER_REGION_LOGIT)
  weights = jnp.exp(logits - logits.max(-1, keepdims=True))
  return weights, weights.sum(-1, keepdims=True)
