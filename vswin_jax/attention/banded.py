"""Attention over long sequences: every token sees its neighbors and one global token.

The sliding window of Longformer (VTN, section 3.2) as dense batched matrix products over blocks of
queries: time and memory grow with tokens x window, forward and backward, without gathers and
without a mask of tokens x tokens.
"""

import jax
import jax.numpy as jnp
import numpy as np

# Queries of a block; blocks no longer than the reach of the window would only add overlap.
_SMALLEST_BLOCK = 32


def banded_attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  global_key: jax.Array,
  global_value: jax.Array,
  reach: int,
  valid: jax.Array | None = None,
  *,
  dropout_rate: float = 0.0,
  dropout_key: jax.Array | None = None,
) -> jax.Array:
  """Attention of every token to those at most `reach` away and to one global token.

  One softmax runs over the neighbors and the global token, which is not among the tokens.

  Args:
    query: `[batch, heads, tokens, head_dim]`, scaled. Likewise `key`, `value`.
    global_key: `[batch, heads, head_dim]`, of the global token. Likewise `global_value`.
    reach: neighbors on each side, in tokens; one-sided half of a Longformer's window.
    valid: bool `[batch, tokens]`: tokens that others may see; None: all.
    dropout_rate: on the attention probabilities, applied if `dropout_key` is given.

  Returns:
    `[batch, heads, tokens, head_dim]`, the dtype of `query`. Logits and softmax are float32. Rows
    of tokens that are not valid hold finite values without meaning.
  """
  tokens = query.shape[2]
  block = min(max(reach, _SMALLEST_BLOCK), tokens)
  blocks = -(-tokens // block)
  padding = blocks * block - tokens
  if valid is None:
    valid = jnp.ones((query.shape[0], tokens), bool)
  queries = _pad_tokens(query, 0, padding).reshape(*query.shape[:2], blocks, block, -1)
  keys = _blocks_with_neighbours(key, block, reach)
  values = _blocks_with_neighbours(value, block, reach)
  # `valid` of the padding is False, so keys beyond both ends are never seen.
  seen = _blocks_with_neighbours(valid[:, None, :, None], block, reach)[..., 0]

  logits = _product("bhnqd,bhnkd->bhnqk", queries, keys)
  distance = np.arange(block + 2 * reach)[None, :] - np.arange(block)[:, None] - reach
  seen = seen[:, :, :, None, :] & (np.abs(distance) <= reach)
  logits = jnp.where(seen, logits, -jnp.inf)
  global_logits = _product("bhnqd,bhd->bhnq", queries, global_key)[..., None]
  # Never -inf: the global token is always seen.
  largest = jnp.maximum(logits.max(-1, keepdims=True), global_logits)
  largest = jax.lax.stop_gradient(largest)
  weights = jnp.exp(logits - largest)
  global_weight = jnp.exp(global_logits - largest)
  total = weights.sum(-1, keepdims=True) + global_weight
  if dropout_key is not None and dropout_rate > 0.0:
    local_key, global_token_key = jax.random.split(dropout_key)
    weights = _dropout(weights, dropout_rate, local_key)
    global_weight = _dropout(global_weight, dropout_rate, global_token_key)
  output = _product("bhnqk,bhnkd->bhnqd", weights.astype(value.dtype), values)
  output += global_weight * global_value[:, :, None, None, :].astype(jnp.float32)
  output = (output / total).reshape(*query.shape[:2], blocks * block, -1)
  return output[:, :, :tokens].astype(query.dtype)


def global_attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  valid: jax.Array | None = None,
  *,
  dropout_rate: float = 0.0,
  dropout_key: jax.Array | None = None,
) -> jax.Array:
  """Attention of one token to all.

  Args:
    query: `[batch, heads, head_dim]`, scaled.
    key: `[batch, heads, tokens, head_dim]`. Likewise `value`.
    valid: bool `[batch, tokens]`: tokens that are seen, at least one of each example; None: all.
    dropout_rate: on the attention probabilities, applied if `dropout_key` is given.

  Returns:
    `[batch, heads, head_dim]`, the dtype of `query`.
  """
  logits = _product("bhd,bhkd->bhk", query, key)
  if valid is not None:
    logits = jnp.where(valid[:, None, :], logits, -jnp.inf)
  weights = jax.nn.softmax(logits)
  if dropout_key is not None and dropout_rate > 0.0:
    weights = _dropout(weights, dropout_rate, dropout_key)
  output = _product("bhk,bhkd->bhd", weights.astype(value.dtype), value)
  return output.astype(query.dtype)


def _product(subscripts: str, left: jax.Array, right: jax.Array) -> jax.Array:
  return jnp.einsum(subscripts, left, right, preferred_element_type=jnp.float32)


def _dropout(weights: jax.Array, rate: float, key: jax.Array) -> jax.Array:
  keep = jax.random.bernoulli(key, 1.0 - rate, weights.shape)
  return jnp.where(keep, weights / (1.0 - rate), 0.0)


def _pad_tokens(x: jax.Array, before: int, after: int) -> jax.Array:
  return jnp.pad(x, [(0, 0), (0, 0), (before, after), (0, 0)])


def _blocks_with_neighbours(x: jax.Array, block: int, reach: int) -> jax.Array:
  """`[batch, heads, tokens, ...]` -> `[batch, heads, blocks, reach + block + reach, ...]`.

  Zeros (or False) stand for what is beyond the ends.
  """
  tokens = x.shape[2]
  blocks = -(-tokens // block)
  span = reach + block + reach
  x = _pad_tokens(x, reach, (blocks + 1) * block - tokens + reach)
  parts = []
  # In pieces of at most a block: each is one slice that is as long as all blocks.
  for start in range(0, span, block):
    piece = jax.lax.slice_in_dim(x, start, start + blocks * block, axis=2)
    piece = piece.reshape(*x.shape[:2], blocks, block, *x.shape[3:])
    parts.append(piece[:, :, :, : span - start])
  return jnp.concatenate(parts, axis=3)
