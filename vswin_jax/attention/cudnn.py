"""Window attention by cuDNN, with the mask of shifted windows as extra channels.

cuDNN adds a bias that all windows share, and sums its gradient. A mask would have to be a bias for
each window. Here queries and keys have a channel for each region of a window instead: c in that of
their own region, 0 elsewhere. Logits within a region are then larger by c². In a softmax, that is
as good as smaller logits for all others.
"""

import math

import jax
import jax.numpy as jnp
from jax._src.lib import cuda_versions  # with which JAX tells whether there is cuDNN

from vswin_jax.attention.operations import current_platform
from vswin_jax.attention.relative_position import expand_bias
from vswin_jax.attention.windows import (
  OTHER_REGION_LOGIT,
  REGIONS_PER_WINDOW,
  Size3D,
  WindowLayout,
  to_windows,
  token_regions,
)

_MAX_HEAD_DIM = 128


def why_not(layout: WindowLayout, channels: int, heads: int, dtype) -> str | None:
  """Returns why cuDNN can't compute an attention within windows; None if it can."""
  if layout.tokens % 2:
    return f"cuDNN takes windows of an even number of tokens, not {layout.tokens}"
  return why_not_heads(channels // heads, dtype, _MAX_HEAD_DIM - REGIONS_PER_WINDOW)


def why_not_heads(head_dim: int, dtype, limit: int = _MAX_HEAD_DIM) -> str | None:
  """Returns why cuDNN can't compute any attention with heads of `head_dim` channels, or None."""
  if current_platform() != "gpu":
    return f"{current_platform()} is no GPU"
  if cuda_versions is None:
    return "cuDNN is not installed"
  if jnp.dtype(dtype).itemsize != 2:
    return f"cuDNN takes 16-bit numbers, not {jnp.dtype(dtype)}"
  if head_dim % 8 or head_dim > limit:
    return f"cuDNN takes heads of a multiple of 8 channels, at most {limit}, not {head_dim}"
  return None


def attend(
  qkv: jax.Array,
  bias_table: jax.Array,
  window: Size3D,
  layout: WindowLayout,
  *,
  implementation: str = "cudnn",
) -> jax.Array:
  """Attends within windows; see `window_attention`, and `why_not` for what cuDNN can't compute.

  Args:
    qkv: `[batch, windows, tokens, 3 * channels]`.
    bias_table: float32 `[table_rows(window), heads]`. The biases are rounded to the dtype of `qkv`,
      since cuDNN returns wrong gradients for others.
    implementation: of `jax.nn.dot_product_attention`; "xla" computes the same without a GPU.

  Returns:
    `[batch, windows, tokens, channels]`.
  """
  heads, head_dim = bias_table.shape[1], qkv.shape[-1] // (3 * bias_table.shape[1])
  qkv_heads = qkv.reshape(-1, layout.tokens, 3, heads, head_dim)
  query, key, value = (qkv_heads[:, :, part] for part in range(3))
  scale = head_dim**-0.5
  if any(layout.shift):
    # Rounded up to a whole number, which 16-bit numbers hold exactly.
    size = math.ceil(math.sqrt(-OTHER_REGION_LOGIT / scale))
    regions = to_windows(token_regions(layout), layout.without_padding())
    regions = jnp.where(regions == jnp.arange(REGIONS_PER_WINDOW), size, 0).astype(qkv.dtype)
    regions = jnp.broadcast_to(regions, (*qkv.shape[:3], REGIONS_PER_WINDOW))
    regions = regions.reshape(-1, layout.tokens, 1, REGIONS_PER_WINDOW)
    regions = jnp.broadcast_to(regions, (*query.shape[:3], REGIONS_PER_WINDOW))
    query, key, value = (
      jnp.concatenate([x, other], axis=-1)
      for x, other in ((query, regions), (key, regions), (value, jnp.zeros_like(regions)))
    )
  bias = expand_bias(bias_table, window, layout.window)[None].astype(qkv.dtype)
  output = jax.nn.dot_product_attention(
    query, key, value, bias, scale=scale, implementation=implementation
  )
  return output[..., :head_dim].reshape(*qkv.shape[:3], -1)
