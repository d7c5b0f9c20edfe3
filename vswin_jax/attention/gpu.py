"""Window attention for NVIDIA GPUs, as Pallas kernels (Triton) that keep logits on the chip.

For the queries q (scaled), keys k and values v of a window and a head, the bias b and the mask m:

  forward    s = q kᵀ + b + m     p = 2^(s - l)     l = log2 Σ 2^s     o = p v
  backward   dv = pᵀ do     dp = do vᵀ     e = Σ o do     ds = p (dp - e)
             dq = ds k     dk = dsᵀ q      db = Σ over windows of ds

Logits are logarithms to base 2. Three kernels (`gpu_kernels`) compute them tile by tile, and read
the tokens of a window where they are in the grid, through a table of rows: no window is copied.

  forward    o and l of a tile of queries, over all keys
  keys       dk and dv of a tile of keys, over all queries
  queries    dq of a tile of queries, and db, which is summed in registers over a group of windows

m, l and e are products, which cost little on tensor cores: each token has extra columns, u as a
query and w as a key, and u wᵀ is added to s (or dp).

  columns    0-7                                8-10
  u          12 in the column of its region     -l (or -e) as a sum of three bfloat16 numbers
  w          12 in the column of its region     1, 1, 1

Tokens of one region get 144 more. In a softmax, that is as good as -100 log2(e) for all others.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from vswin_jax.attention.gpu_kernels import (
  EXTRA_COLUMNS,
  PADDING_LOGIT,
  Sizes,
  forward_kernel,
  keys_kernel,
  queries_kernel,
)
from vswin_jax.attention.operations import current_platform
from vswin_jax.attention.relative_position import expand_bias
from vswin_jax.attention.windows import (
  REGIONS_PER_WINDOW,
  Size3D,
  WindowLayout,
  to_windows,
  token_regions,
)

_LOG2_E = math.log2(math.e)
# 144 is about 100 log2(e).
_SAME_REGION = 12
# An extra column is a sum of three bfloat16 numbers, which hold a float32 number.
_PARTS = 3

# More tokens make the kernel of the queries, whose loop over tiles is unrolled, too long.
_MAX_TOKENS = 2048
# Windows that a program takes one after the other. The bias gradients of each are partial sums.
_WINDOWS = 8
_WINDOWS_OF_SUM = 64


def why_not(
  layout: WindowLayout, channels: int, heads: int, dtype, interpret: bool = False
) -> str | None:
  """Returns why the kernels can't compute an attention, or not fast; None if they can."""
  head_dim = channels // heads
  if not interpret and current_platform() != "gpu":
    return f"{current_platform()} is no GPU"
  if not interpret and jnp.dtype(dtype) != jnp.bfloat16:
    return f"in {jnp.dtype(dtype)} they would not use tensor cores; they take bfloat16"
  if head_dim & (head_dim - 1) or not 16 <= head_dim <= 64:
    return f"heads have {head_dim} channels; they take 16, 32 or 64"
  if layout.tokens > _MAX_TOKENS:
    return f"windows {layout.window} have {layout.tokens} tokens; they take at most {_MAX_TOKENS}"
  return None


def qkv_factors(channels: int, heads: int) -> jax.Array:
  """Returns the factors of queries, keys and values: `[3 * channels]`.

  Those of the queries make logits logarithms to base 2.
  """
  is_query = jnp.arange(3 * channels) < channels
  return jnp.where(is_query, (channels // heads) ** -0.5 * _LOG2_E, 1.0)


def attend(
  qkv: jax.Array,
  bias_table: jax.Array,
  window: Size3D,
  layout: WindowLayout,
  *,
  in_windows: bool = False,
  interpret: bool = False,
) -> jax.Array:
  """Attends within windows; see `window_attention`, and `why_not` for what it can't compute.

  Args:
    qkv: `[batch, height, width, time, 3 * channels]`, of the padded grid: queries, keys and values,
      each with the channels of a head together, multiplied by `qkv_factors`.
    bias_table: float32 `[table_rows(window), heads]`. In 16-bit arithmetic the biases are rounded
      to the dtype of `qkv`.
    window: the configured window.
    layout: partition of the grid into windows.
    in_windows: `qkv` is `[batch, windows, tokens, 3 * channels]`, in the order of `to_windows`.
    interpret: whether to interpret the kernels, for tests on a CPU.

  Returns:
    As `qkv`, with `channels`. Differentiable in reverse mode only.
  """
  heads, channels = bias_table.shape[1], qkv.shape[-1] // 3
  sizes = Sizes(
    heads=heads,
    head_dim=channels // heads,
    rows=layout.windows * layout.tokens,
    windows=layout.windows,
    tokens=layout.tokens,
    has_mask=any(layout.shift),
    interpret=interpret,
  )
  bias = expand_bias(bias_table, window, layout.window)
  rows, regions = _geometry(layout, in_windows)
  padding = [(0, 0), (0, sizes.padded_tokens - sizes.tokens)]
  rows = jnp.pad(rows, padding, mode="edge")
  output = _attend(sizes, qkv.reshape(-1, 3 * channels), bias, rows, regions.astype(qkv.dtype))
  return output.reshape(*qkv.shape[:-1], channels)


def _geometry(layout: WindowLayout, in_windows: bool) -> tuple[jax.Array, jax.Array]:
  """Returns where the tokens of windows are, and the extra columns of their regions.

  Both are computed on the device: as constants for each block they would be most of the program.

  Returns:
    int32 `[windows, tokens]`, the rows of tokens in the order of `qkv`; and `[rows, 16]`.
  """
  padded, regions = layout.without_padding(), token_regions(layout)
  rows = jnp.arange(regions.size, dtype=jnp.int32)
  if in_windows:
    regions = to_windows(regions, padded)
  else:
    rows = to_windows(rows.reshape(regions.shape), padded)
  own = (regions.reshape(-1, 1) == jnp.arange(EXTRA_COLUMNS)) & any(layout.shift)
  return rows.reshape(layout.windows, layout.tokens), jnp.where(own, _SAME_REGION, 0.0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(sizes, qkv, bias, rows, regions):
  """Returns the outputs `[batch * rows, channels]`.

  Args:
    qkv: `[batch * rows, 3 * channels]`.
    bias: float32 `[heads, tokens, tokens]`.
    rows: int32 `[windows, padded_tokens]`, see `_geometry`.
    regions: `[rows, 16]`, in the dtype of `qkv`.
  """
  return _attend_forward(sizes, qkv, bias, rows, regions)[0]


def _attend_forward(sizes, qkv, bias, rows, regions):
  bias = _pad_bias(sizes, bias, qkv.dtype)
  output, logsums = _call(
    forward_kernel,
    sizes,
    [qkv, bias, rows, *([regions] if sizes.has_mask else [])],
    [
      jax.ShapeDtypeStruct((len(qkv), sizes.channels), qkv.dtype),
      jax.ShapeDtypeStruct((sizes.heads, len(qkv)), jnp.float32),
    ],
    _group(sizes, qkv, _WINDOWS),
  )
  return output, (qkv, bias, rows, regions, output, logsums)


def _attend_backward(sizes, residuals, gradient):
  qkv, bias, rows, regions, output, logsums = residuals
  expected = output.astype(jnp.float32) * gradient.astype(jnp.float32)
  expected = expected.reshape(len(qkv), sizes.heads, sizes.head_dim).sum(-1).T
  arrays = [
    qkv,
    gradient,
    _query_columns(-logsums, -expected, regions),
    bias,
    rows,
    _key_columns(regions),
  ]
  gradients = jax.ShapeDtypeStruct(qkv.shape, qkv.dtype)
  transposed = [*arrays[:3], bias.swapaxes(1, 2), *arrays[4:]]
  (partial,) = _call(keys_kernel, sizes, transposed, [gradients], _group(sizes, qkv, _WINDOWS))
  # The kernel of the queries writes its columns between those of the other.
  group = _group(sizes, qkv, _WINDOWS_OF_SUM)
  groups = len(qkv) // sizes.rows * sizes.windows // group
  sums = jax.ShapeDtypeStruct((groups, *bias.shape), jnp.float32)
  qkv_gradient, bias_gradient = _call(
    queries_kernel, sizes, [*arrays, partial], [gradients, sums], group, {len(arrays): 0}
  )
  bias_gradient = bias_gradient.sum(0)[:, : sizes.tokens, : sizes.tokens]
  return qkv_gradient, bias_gradient, None, None


_attend.defvjp(_attend_forward, _attend_backward)


def _pad_bias(sizes, bias, dtype):
  surplus = sizes.padded_tokens - sizes.tokens
  padding = [(0, 0), (0, surplus), (0, surplus)]
  return jnp.pad(bias * _LOG2_E, padding, constant_values=PADDING_LOGIT).astype(dtype)


def _query_columns(logsums: jax.Array, expected: jax.Array, regions: jax.Array) -> jax.Array:
  """Returns the extra columns of queries, for s and for dp: `[heads, batch * rows, 2 * 16]`.

  Args:
    logsums: float32 `[heads, batch * rows]`, -l.
    expected: the same, -e.
    regions: `[rows, 16]`; its dtype is that of the columns.
  """
  info, column, columns = jnp.finfo(regions.dtype), jnp.arange(2 * EXTRA_COLUMNS), 0.0
  for first, rest in ((0, logsums), (EXTRA_COLUMNS, expected)):
    for index in range(first + REGIONS_PER_WINDOW, first + REGIONS_PER_WINDOW + _PARTS):
      # An explicit rounding: XLA may drop a conversion and its inverse.
      part = jax.lax.reduce_precision(rest, info.nexp, info.nmant)
      columns += jnp.where(column == index, part[..., None], 0.0)
      rest = rest - part
  examples = logsums.shape[1] // len(regions)
  regions = jnp.tile(jnp.pad(regions, [(0, 0), (0, EXTRA_COLUMNS)]), (examples, 1))
  return columns.astype(regions.dtype) + regions


def _key_columns(regions: jax.Array) -> jax.Array:
  column = jnp.arange(EXTRA_COLUMNS)
  is_part = (column >= REGIONS_PER_WINDOW) & (column < REGIONS_PER_WINDOW + _PARTS)
  return jnp.where(is_part, jnp.ones_like(regions), regions)


def _group(sizes, qkv, limit: int) -> int:
  """Returns the largest divisor of the number of windows that is at most `limit`."""
  windows = len(qkv) // sizes.rows * sizes.windows
  return max(size for size in range(1, limit + 1) if windows % size == 0)


def _call(kernel, sizes: Sizes, inputs, outputs, group: int, aliases=None) -> list[jax.Array]:
  """Calls a kernel for every tile of tokens, head, and group of windows.

  Args:
    inputs: arrays; of `Sizes.rows` tokens or their multiple, of windows, or of token pairs.
    outputs: shapes of the results.
    group: windows of a group.
    aliases: inputs that become outputs.
  """
  windows = len(inputs[0]) // sizes.rows * sizes.windows
  return pl.pallas_call(
    functools.partial(kernel, sizes, group),
    # Neighbors share the keys of a window in the cache.
    grid=(sizes.tiles, sizes.heads, windows // group),
    out_shape=outputs,
    input_output_aliases=aliases or {},
    compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=1),
    interpret=sizes.interpret,
    name=kernel.__name__,
  )(*inputs)
