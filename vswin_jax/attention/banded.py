"""Sliding-window attention with a global token, as in Longformer (VTN, section 3.2).

It is computed by dense batched matrix products over blocks of queries. Time and memory grow with
tokens x window, forward and backward; there are no gathers and no mask of tokens x tokens.
"""

import jax
import jax.numpy as jnp
import numpy as np

from vswin_jax.attention.operations import dropout, product

# Queries per block. A block is never shorter than the reach: neighbors would outnumber queries.
_SMALLEST_BLOCK = 32


@jax.named_scope("banded_attention")
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
  """Attends from each token to the tokens at most `reach` away and to one global token.

  One softmax covers the neighbors and the global token, which is not among the tokens.

  Args:
    query: `[batch, heads, tokens, head_dim]`, scaled.
    key: as `query`, not scaled.
    value: as `key`.
    global_key: `[batch, heads, head_dim]`.
    global_value: as `global_key`.
    reach: neighbors on each side, in tokens: half of a Longformer's window.
    valid: bool `[batch, tokens]`; False: padding, which no token attends to. None: all valid.
    dropout_rate: on the attention probabilities, applied if `dropout_key` is given.

  Returns:
    `[batch, heads, tokens, head_dim]`, the dtype of `query`. Logits and softmax are float32. Rows
    of padding are finite but meaningless. Differentiable in reverse mode only.
  """
  tokens = query.shape[2]
  block = min(max(reach, _SMALLEST_BLOCK), tokens)
  blocks = -(-tokens // block)
  padding = blocks * block - tokens
  if valid is None:
    valid = jnp.ones((query.shape[0], tokens), bool)
  queries = _pad_tokens(query, 0, padding).reshape(*query.shape[:2], blocks, block, -1)
  keys = _blocks_with_neighbors(key, block, reach)
  values = _blocks_with_neighbors(value, block, reach)
  # Padding is not valid, so keys beyond both ends are never seen.
  seen = _blocks_with_neighbors(valid[:, None, :, None], block, reach)[..., 0]

  logits = product("bhnqd,bhnkd->bhnqk", queries, keys)
  distance = np.arange(block + 2 * reach)[None, :] - np.arange(block)[:, None] - reach
  seen = seen[:, :, :, None, :] & (np.abs(distance) <= reach)
  logits = jnp.where(seen, logits, -jnp.inf)
  global_logits = product("bhnqd,bhd->bhnq", queries, global_key)[..., None]
  # Finite, because the global token is always seen.
  largest = jnp.maximum(logits.max(-1, keepdims=True), global_logits)
  largest = jax.lax.stop_gradient(largest)
  weights = jnp.exp(logits - largest)
  global_weight = jnp.exp(global_logits - largest)
  total = weights.sum(-1, keepdims=True) + global_weight
  if dropout_key is not None:
    local_key, global_token_key = jax.random.split(dropout_key)
    weights = dropout(weights, dropout_rate, local_key)
    global_weight = dropout(global_weight, dropout_rate, global_token_key)
  output = product("bhnqk,bhnkd->bhnqd", weights.astype(value.dtype), values)
  output += global_weight * global_value[:, :, None, None, :].astype(jnp.float32)
  output = (output / total).reshape(*query.shape[:2], blocks * block, -1)
  return output[:, :, :tokens].astype(query.dtype)


@jax.named_scope("global_attention")
def global_attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  valid: jax.Array | None = None,
  *,
  dropout_rate: float = 0.0,
  dropout_key: jax.Array | None = None,
) -> jax.Array:
  """Attends from one token to all tokens.

  Args:
    query: `[batch, heads, head_dim]`, scaled.
    key: `[batch, heads, tokens, head_dim]`.
    value: as `key`.
    valid: bool `[batch, tokens]`, at least one True per example. None: all valid.
    dropout_rate: on the attention probabilities, applied if `dropout_key` is given.

  Returns:
    `[batch, heads, head_dim]`, the dtype of `query`. Differentiable in reverse mode only.
  """
  logits = product("bhd,bhkd->bhk", query, key)
  if valid is not None:
    logits = jnp.where(valid[:, None, :], logits, -jnp.inf)
  weights = dropout(jax.nn.softmax(logits), dropout_rate, dropout_key)
  output = product("bhk,bhkd->bhd", weights.astype(value.dtype), value)
  return output.astype(query.dtype)


def _pad_tokens(x: jax.Array, before: int, after: int) -> jax.Array:
  return jnp.pad(x, [(0, 0), (0, 0), (before, after), (0, 0)])


def _blocks_with_neighbors(x: jax.Array, block: int, reach: int) -> jax.Array:
  """Cuts `[batch, heads, tokens, ...]` into overlapping blocks, padded with zeros at both ends.

  Returns:
    `[batch, heads, blocks, reach + block + reach, ...]`.
  """
  tokens = x.shape[2]
  blocks = -(-tokens // block)
  span = reach + block + reach
  x = _pad_tokens(x, reach, (blocks + 1) * block - tokens + reach)
  parts = []
  # In pieces of at most a block, each of which is one slice for all blocks.
  for start in range(0, span, block):
    piece = jax.lax.slice_in_dim(x, start, start + blocks * block, axis=2)
    piece = piece.reshape(*x.shape[:2], blocks, block, *x.shape[3:])
    parts.append(piece[:, :, :, : span - start])
  return jnp.concatenate(parts, axis=3)
