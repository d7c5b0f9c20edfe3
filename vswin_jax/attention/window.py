"""Window attention with a relative position bias and the mask of shifted windows."""

from functools import partial

import jax
import jax.numpy as jnp

from vswin_jax.attention import chunked, cudnn, gpu, tpu
from vswin_jax.attention.chunked import split_heads
from vswin_jax.attention.operations import dropout, on_each_device, product, resolve_implementation
from vswin_jax.attention.relative_position import add_bias, batched_bias, table_rows
from vswin_jax.attention.windows import (
  OTHER_REGION_LOGIT,
  Size3D,
  WindowLayout,
  region_ids,
)
from vswin_jax.common.logging import log_once

# Maximum number of logits of an example in "xla" where kernels can't compute them: 512 MiB.
_MOST_LOGITS = 2**27
# Why kernels for GPUs leave an attention to others.
_DROPOUT = "there is dropout on its probabilities"


@jax.named_scope("window_attention")
def window_attention(
  qkv: jax.Array,
  bias_table: jax.Array,
  window: Size3D,
  layout: WindowLayout,
  *,
  dropout_rate: float = 0.0,
  dropout_key: jax.Array | None = None,
  implementation: str = "auto",
) -> jax.Array:
  """Computes multi-head attention within each window (Video Swin, section 3.2).

  Args:
    qkv: `[batch, windows, tokens, 3 * channels]` in the order of `to_windows`: queries (not
      scaled), keys and values, each with the channels of a head together.
    bias_table: float32 `[table_rows(window), heads]`, see `relative_position`.
    window: the configured window (time, height, width) of `bias_table`.
    layout: partition of the grid into windows, which may have shrunk.
    dropout_rate: on the attention probabilities, applied if `dropout_key` is given; each
      implementation draws in its own order.
    implementation: "auto", see `resolve_implementation`, or a key of `IMPLEMENTATIONS`. "xla" keeps
      the probabilities for the backward pass; "chunked" computes a few windows at a time and
      recomputes them, which saves memory; "pallas_tpu" keeps them on the chip (`tpu`);
      "pallas_tpu_interpret" runs these kernels anywhere, slowly; "pallas_gpu" and
      "pallas_gpu_interpret" are the same for NVIDIA GPUs (`gpu`); "cudnn" is NVIDIA's library
      (`cudnn`). What kernels can't compute is left, on GPUs, to "cudnn"; what that can't compute
      either to "xla" or, with large windows, to "chunked".

  Returns:
    `[batch, windows, tokens, channels]`, the dtype of `qkv`. Logits and softmax are float32
    whatever that dtype. Differentiable in reverse mode only.

  Raises:
    ValueError: unknown implementation, or a table or tokens that do not fit the windows.
  """
  implementation = resolve_implementation(implementation, IMPLEMENTATIONS, qkv.dtype)
  heads = bias_table.shape[1]
  fits = all(size <= limit for size, limit in zip(layout.window, window))
  if bias_table.shape[0] != table_rows(window) or not fits:
    raise ValueError(
      f"a bias table {list(bias_table.shape)} and windows of {layout.window} tokens do not fit the "
      f"window {window}; expected {table_rows(window)} rows and no larger windows"
    )
  if qkv.shape[1:3] != (layout.windows, layout.tokens) or qkv.shape[3] % (3 * heads):
    raise ValueError(
      f"queries, keys and values {list(qkv.shape)} do not fit {layout.windows} windows of "
      f"{layout.tokens} tokens and {heads} heads"
    )
  # Without dropout there is no key, which is what implementations ask for.
  key = dropout_key if dropout_rate > 0 else None
  return IMPLEMENTATIONS[implementation](qkv, bias_table, window, layout, dropout_rate, key)


def _xla(qkv, bias_table, window, layout, dropout_rate, dropout_key):
  """Attends with all logits in memory at once."""
  query, key, value = split_heads(qkv, bias_table.shape[1])
  bias = batched_bias(bias_table, window, layout.window, len(qkv))
  output = _attend(query, key, value, bias, region_ids(layout), dropout_rate, dropout_key)
  return output.swapaxes(2, 3).reshape(*qkv.shape[:3], -1)


def _pallas_tpu(
  qkv, bias_table, window, layout, dropout_rate, dropout_key, interpret: bool = False
):
  heads, channels = bias_table.shape[1], qkv.shape[3] // 3
  reason = tpu.why_not(layout, window, channels, heads, qkv.dtype, interpret)
  if reason:
    return _fall_back(reason, qkv, bias_table, window, layout, dropout_rate, dropout_key)
  seeds = jnp.zeros(len(qkv), jnp.int32)
  if dropout_key is not None:
    seeds = jax.random.bits(dropout_key, seeds.shape).astype(jnp.int32)

  def attend(qkv, seeds, bias_table):
    parts = jnp.split(qkv.reshape(-1, *qkv.shape[2:]), 3, axis=-1)
    output = tpu.attend(
      jnp.stack(parts),
      bias_table,
      window,
      layout,
      seeds=None if dropout_key is None else seeds,
      dropout_rate=dropout_rate,
      interpret=interpret,
    )
    return output.reshape(*qkv.shape[:3], -1)

  return on_each_device(attend, qkv, seeds, whole=bias_table)


def _pallas_gpu(
  qkv, bias_table, window, layout, dropout_rate, dropout_key, interpret: bool = False
):
  heads, channels = bias_table.shape[1], qkv.shape[3] // 3
  reason = gpu.why_not(layout, channels, heads, qkv.dtype, interpret)
  reason = _DROPOUT if dropout_key is not None else reason
  if reason:
    return _fall_back(reason, qkv, bias_table, window, layout, dropout_rate, dropout_key)

  def attend(qkv, bias_table):
    # Rounded once, after the multiplication.
    scaled = (qkv.astype(jnp.float32) * gpu.qkv_factors(channels, heads)).astype(qkv.dtype)
    return gpu.attend(scaled, bias_table, window, layout, in_windows=True, interpret=interpret)

  return on_each_device(attend, qkv, whole=bias_table)


def _cudnn(qkv, bias_table, window, layout, dropout_rate, dropout_key):
  reason = _why_not_cudnn(qkv, bias_table, layout, dropout_key)
  if reason:
    return _fall_back(reason, qkv, bias_table, window, layout, dropout_rate, dropout_key)

  def attend(qkv, bias_table):
    return cudnn.attend(qkv, bias_table, window, layout)

  return on_each_device(attend, qkv, whole=bias_table)


def _why_not_cudnn(qkv, bias_table, layout, dropout_key) -> str | None:
  heads, channels = bias_table.shape[1], qkv.shape[3] // 3
  if dropout_key is not None:
    return _DROPOUT
  return cudnn.why_not(layout, channels, heads, qkv.dtype)


def _fall_back(reason: str, qkv, bias_table, window, layout, dropout_rate, dropout_key):
  """Leaves an attention to the next best implementation, and logs why."""
  heads, channels = bias_table.shape[1], qkv.shape[3] // 3
  if _why_not_cudnn(qkv, bias_table, layout, dropout_key) is None:
    name = "cudnn"
  else:
    name = "chunked" if layout.windows * heads * layout.tokens**2 > _MOST_LOGITS else "xla"
  log_once(f"window attention of {channels} channels: {name}, because {reason}")
  fallback = IMPLEMENTATIONS[name]
  return fallback(qkv, bias_table, window, layout, dropout_rate, dropout_key)


def _attend(query, key, value, bias, regions, dropout_rate, dropout_key):
  logits = add_bias(product("bwhnd,bwhmd->bwhnm", query, key), bias)
  if regions is not None:
    regions = jnp.asarray(regions)
    same_region = regions[:, None, :, None] == regions[:, None, None, :]
    logits = logits + jnp.where(same_region, 0.0, OTHER_REGION_LOGIT)
  # The division by the sum is left to the end, where it costs head_dim instead of tokens.
  weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
  total = weights.sum(-1, keepdims=True)
  weights = dropout(weights, dropout_rate, dropout_key)
  output = product("bwhnm,bwhmd->bwhnd", weights.astype(value.dtype), value)
  return (output / total).astype(query.dtype)


IMPLEMENTATIONS = {
  "xla": _xla,
  "chunked": chunked.attend,
  "pallas_tpu": _pallas_tpu,
  "pallas_tpu_interpret": partial(_pallas_tpu, interpret=True),
  "pallas_gpu": _pallas_gpu,
  "pallas_gpu_interpret": partial(_pallas_gpu, interpret=True),
  "cudnn": _cudnn,
}
