"""Window attention with a relative position bias and the mask of shifted windows."""

from functools import partial

import jax
import jax.numpy as jnp

from vswin_jax.attention import cudnn, gpu, tpu
from vswin_jax.attention.operations import dropout, on_each_device, product, resolve_implementation
from vswin_jax.attention.relative_position import add_bias, batched_bias, table_rows
from vswin_jax.attention.windows import (
  OTHER_REGION_LOGIT,
  Size3D,
  WindowLayout,
  region_ids,
)
from vswin_jax.common.logging import log_once

# Maximum number of logits per chunk and example in "chunked": 8 MiB.
_CHUNK_LOGITS = 2**21


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
      recomputes them, which saves memory; "pallas_tpu" keeps them on the chip (`tpu`), and computes
      as "xla" what its kernels can't; "pallas_tpu_interpret" runs these kernels anywhere, slowly;
      "pallas_gpu" and "pallas_gpu_interpret" are the same for NVIDIA GPUs (`gpu`); "cudnn" is
      NVIDIA's library (`cudnn`), or XLA for what it can't compute.

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
  return IMPLEMENTATIONS[implementation](qkv, bias_table, window, layout, dropout_rate, dropout_key)


def _xla(qkv, bias_table, window, layout, dropout_rate, dropout_key):
  """Attends with all logits in memory at once."""
  query, key, value = _split_heads(qkv, bias_table.shape[1])
  bias = batched_bias(bias_table, window, layout.window, len(qkv))
  output = _attend(query, key, value, bias, region_ids(layout), dropout_rate, dropout_key)
  return output.swapaxes(2, 3).reshape(*qkv.shape[:3], -1)


def _chunked(qkv, bias_table, window, layout, dropout_rate, dropout_key):
  """Attends in a few windows of each example at a time; keeps only the inputs for backward."""
  batch, heads, regions = qkv.shape[0], bias_table.shape[1], region_ids(layout)
  size = _chunk_size(layout.windows, heads * layout.tokens**2)
  chunks = layout.windows // size

  def split(x, axis):
    x = x.reshape(*x.shape[:axis], chunks, size, *x.shape[axis + 1 :])
    return jnp.moveaxis(x, axis, 0)

  @jax.checkpoint
  def attend(qkv, bias_table, dropout_keys):
    bias = batched_bias(bias_table, window, layout.window, batch)

    @jax.checkpoint
    def attend_chunk(chunk):
      qkv, regions, dropout_key = chunk
      query, key, value = _split_heads(qkv, heads)
      output = _attend(query, key, value, bias, regions, dropout_rate, dropout_key)
      return output.swapaxes(2, 3).reshape(*qkv.shape[:3], -1)

    chunked_regions = None if regions is None else split(jnp.asarray(regions), 0)
    output = jax.lax.map(attend_chunk, (split(qkv, 1), chunked_regions, dropout_keys))
    return jnp.moveaxis(output, 0, 1).reshape(*qkv.shape[:3], -1)

  dropout_keys = None if dropout_key is None else jax.random.split(dropout_key, chunks)
  return attend(qkv, bias_table, dropout_keys)


def _pallas_tpu(
  qkv, bias_table, window, layout, dropout_rate, dropout_key, interpret: bool = False
):
  heads, channels = bias_table.shape[1], qkv.shape[3] // 3
  reason = tpu.why_not(layout, window, channels, heads)
  if _falls_back(channels, reason, dropout_rate, dropout_key):
    return _xla(qkv, bias_table, window, layout, dropout_rate, dropout_key)

  def attend(qkv, bias_table):
    parts = jnp.split(qkv.reshape(-1, *qkv.shape[2:]), 3, axis=-1)
    output = tpu.attend(*parts, bias_table, window, layout, interpret=interpret)
    return output.reshape(*qkv.shape[:3], -1)

  return on_each_device(attend, qkv, whole=bias_table)


def _pallas_gpu(
  qkv, bias_table, window, layout, dropout_rate, dropout_key, interpret: bool = False
):
  heads, channels = bias_table.shape[1], qkv.shape[3] // 3
  reason = gpu.why_not(layout, channels, heads, qkv.dtype, interpret)
  if _falls_back(channels, reason, dropout_rate, dropout_key):
    return _xla(qkv, bias_table, window, layout, dropout_rate, dropout_key)

  def attend(qkv, bias_table):
    # Rounded once, after the multiplication.
    scaled = (qkv.astype(jnp.float32) * gpu.qkv_factors(channels, heads)).astype(qkv.dtype)
    return gpu.attend(scaled, bias_table, window, layout, in_windows=True, interpret=interpret)

  return on_each_device(attend, qkv, whole=bias_table)


def _cudnn(qkv, bias_table, window, layout, dropout_rate, dropout_key):
  heads, channels = bias_table.shape[1], qkv.shape[3] // 3
  reason = cudnn.why_not(layout, channels, heads, qkv.dtype)
  if _falls_back(channels, reason, dropout_rate, dropout_key):
    return _xla(qkv, bias_table, window, layout, dropout_rate, dropout_key)

  def attend(qkv, bias_table):
    return cudnn.attend(qkv, bias_table, window, layout)

  return on_each_device(attend, qkv, whole=bias_table)


def _falls_back(channels: int, reason: str | None, dropout_rate, dropout_key) -> bool:
  """Returns whether an attention is computed by XLA, and logs the reason."""
  if dropout_rate > 0 and dropout_key is not None:
    reason = "there is dropout on its probabilities"
  if reason:
    log_once(f"window attention of {channels} channels: xla, because {reason}")
  return bool(reason)


def _split_heads(qkv, heads: int):
  """Returns queries (scaled), keys and values `[batch, windows, heads, tokens, head_dim]`."""
  query, key, value = qkv.reshape(*qkv.shape[:3], 3, heads, -1).transpose(3, 0, 1, 4, 2, 5)
  # Rounded once, after scaling, because the scale is not a bfloat16 number.
  return (query.astype(jnp.float32) * query.shape[-1] ** -0.5).astype(query.dtype), key, value


def _chunk_size(windows: int, logits_per_window: int) -> int:
  """Returns the largest divisor of `windows` whose logits fit `_CHUNK_LOGITS`, at least 1."""
  sizes = [size for size in range(1, windows + 1) if windows % size == 0]
  return max([size for size in sizes if size * logits_per_window <= _CHUNK_LOGITS], default=1)


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
  "chunked": _chunked,
  "pallas_tpu": _pallas_tpu,
  "pallas_tpu_interpret": partial(_pallas_tpu, interpret=True),
  "pallas_gpu": _pallas_gpu,
  "pallas_gpu_interpret": partial(_pallas_gpu, interpret=True),
  "cudnn": _cudnn,
}
