"""Attention among all tokens of an image, as in Vision Transformers."""

from functools import partial

import jax
import jax.numpy as jnp

from vswin_jax.attention import cudnn, tpu_dense
from vswin_jax.attention.operations import on_each_device, resolve_implementation
from vswin_jax.attention.tpu_core import round_up
from vswin_jax.common.logging import log_once


@jax.named_scope("dense_attention")
def dense_attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  tokens: int | None = None,
  *,
  implementation: str = "auto",
) -> jax.Array:
  """Computes multi-head attention from all queries to all keys of each image.

  Arrays of `padded(tokens, implementation)` rows need no copies.

  Args:
    query: `[images, queries, heads, head_dim]`, not scaled.
    key: `[images, rows, heads, head_dim]`.
    value: as `key`.
    tokens: number of keys that are not padding, the first ones; None: all. Padding is finite.
    implementation: "auto", see `resolve_implementation`, or a key of `IMPLEMENTATIONS`. "xla" keeps
      the probabilities for the backward pass; "cudnn" (GPUs) and "pallas_tpu" (`tpu_dense`) compute
      them again, and compute as "xla" what they can't; "pallas_tpu_interpret" runs the kernels of
      "pallas_tpu" anywhere, slowly.

  Returns:
    `[images, queries, heads, head_dim]`, the dtype of `query`. Logits and softmax are float32.

  Raises:
    ValueError: unknown implementation.
  """
  implementation = resolve_implementation(implementation, IMPLEMENTATIONS, query.dtype)
  tokens = key.shape[1] if tokens is None else tokens
  return IMPLEMENTATIONS[implementation](query, key, value, tokens)


def padded(tokens: int, implementation: str) -> int:
  """Returns the number of rows that an implementation by name computes for `tokens` of an image."""
  return round_up(tokens, _ROW_MULTIPLES.get(implementation, 1))


def _pad(x, implementation: str):
  rows = padded(x.shape[1], implementation)
  return jnp.pad(x, [(0, 0), (0, rows - x.shape[1])] + [(0, 0)] * (x.ndim - 2))


def _xla(query, key, value, tokens):
  key, value = key[:, :tokens], value[:, :tokens]
  return jax.nn.dot_product_attention(query, key, value, implementation="xla")


def _cudnn(query, key, value, tokens):
  reason = cudnn.why_not_heads(query.shape[3], query.dtype)
  if reason:
    return _fall_back(reason, query, key, value, tokens)
  rows = [_pad(x, "cudnn") for x in (query, key, value)]

  def attend(query, key, value, _):
    lengths = None
    if tokens < key.shape[1]:
      lengths = jnp.full(len(key), tokens, jnp.int32)
    return jax.nn.dot_product_attention(
      query, key, value, key_value_seq_lengths=lengths, implementation="cudnn"
    )

  return on_each_device(attend, *rows, whole=())[:, : query.shape[1]]


def _pallas_tpu(query, key, value, tokens, interpret: bool = False):
  heads = key.shape[2]
  channels = heads * key.shape[3]
  reason = tpu_dense.why_not(tokens, channels, query.dtype, interpret)
  if reason:
    return _fall_back(reason, query, key, value, tokens)

  # The kernels take as many rows of queries as of keys, and compute the first ones.
  rows, kept = padded(key.shape[1], "pallas_tpu"), query.shape[1]

  def flatten(x):
    return jnp.pad(x.reshape(*x.shape[:2], channels), [(0, 0), (0, rows - x.shape[1]), (0, 0)])

  def attend(query, key, value, _):
    queries = padded(kept, "pallas_tpu")
    qkv = jnp.stack([query, key, value])
    return tpu_dense.attend(qkv, heads, tokens, queries, interpret=interpret)

  output = on_each_device(attend, flatten(query), flatten(key), flatten(value), whole=())
  return output[:, :kept].reshape(query.shape)


def _fall_back(reason: str, query, key, value, tokens):
  """Leaves an attention to XLA, and logs why."""
  log_once(f"attention of images of {tokens} tokens: xla, because {reason}")
  return _xla(query, key, value, tokens)


IMPLEMENTATIONS = {
  "xla": _xla,
  "cudnn": _cudnn,
  "pallas_tpu": _pallas_tpu,
  "pallas_tpu_interpret": partial(_pallas_tpu, interpret=True),
}
# cuDNN's backward pass refuses odd numbers of rows.
_ROW_MULTIPLES = {
  "cudnn": 2,
  "pallas_tpu": tpu_dense.ROW_MULTIPLE,
  "pallas_tpu_interpret": tpu_dense.ROW_MULTIPLE,
}
