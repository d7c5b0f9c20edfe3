"""Relative position bias of 3D windows, expanded by slices.

The bias between two tokens depends only on their offset in time, height and width (Video Swin,
section 3.2), so the `[tokens, tokens]` bias of a head is a block Toeplitz matrix: the biases of
each query are a slice of the biases of all offsets. The gradient adds these slices up: no gather
forward, no scatter-add backward, and nothing of size `tokens x tokens` stored in the program.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp

from vswin_jax.attention.operations import sum_over_windows
from vswin_jax.attention.windows import Size3D


def table_rows(window: Size3D) -> int:
  """Returns the number of relative offsets inside a window: the rows of its bias table."""
  return math.prod(2 * size - 1 for size in window)


def _expand_axis(offsets: jax.Array, axis: int, step: int = 1) -> list[jax.Array]:
  """Returns the biases of the queries along an axis to all keys along it.

  Args:
    offsets: biases by offset, `[..., (2 * size - 1) * step, ...]`, the largest offset first.
    step: elements per offset.

  Returns:
    An array `[..., size * step, ...]` per query.
  """
  size = (offsets.shape[axis] // step + 1) // 2
  return [
    jax.lax.slice_in_dim(offsets, start * step, (start + size) * step, axis=axis)
    for start in reversed(range(size))
  ]


def _strip(offsets: jax.Array) -> jax.Array:
  """Returns the biases of the first row of tokens to keys at all offsets along the first axis.

  Args:
    offsets: `[2 * first - 1, 2 * second - 1, 2 * third - 1, heads]`, from the most negative offset
      (query minus key) to the largest.

  Returns:
    `[heads, second * third, (2 * first - 1) * second * third]`, the largest offset first.
  """
  second, third = ((size + 1) // 2 for size in offsets.shape[1:3])
  heads, row = offsets.shape[3], second * third
  # Heads and the first axis are last while the other two are expanded: TPUs pad the last axis to
  # 128 elements.
  bias = jnp.flip(offsets, (0, 1, 2)).transpose(1, 2, 3, 0)
  bias = bias.reshape(2 * second - 1, 2 * third - 1, -1)
  bias = jnp.stack(_expand_axis(bias, 1))
  bias = jnp.stack(_expand_axis(bias, 1))
  return bias.reshape(row, row, heads, -1).transpose(2, 0, 3, 1).reshape(heads, row, -1)


def offset_grid(table: jax.Array, window: Size3D, depth: int) -> jax.Array:
  """Returns a table of biases by offset along each axis, as far as `depth` tokens in time need.

  Args:
    table: float `[table_rows(window), heads]`, offsets in time-major order.

  Returns:
    float32 `[2 * depth - 1, 2 * height - 1, 2 * width - 1, heads]`, from the most negative offset
    (query minus key) to the largest.
  """
  heads = table.shape[1]
  offsets = table.astype(jnp.float32).reshape(*[2 * size - 1 for size in window], heads)
  return offsets[window[0] - depth : window[0] + depth - 1]


def _expand_strip(strip: jax.Array) -> jax.Array:
  return jnp.concatenate(_expand_axis(strip, 2, strip.shape[1]), axis=1)


@jax.named_scope("relative_position_bias")
def expand_bias(table: jax.Array, window: Size3D, effective: Size3D) -> jax.Array:
  """Expands a table of relative biases to a bias for every pair of tokens.

  A window that shrank to fit a small grid has fewer tokens than `window`. The reference then
  takes the top left corner of the configured window's bias, which is the geometric bias only
  where the window shrank in time alone; converted weights need exactly that corner.

  Args:
    table: float `[table_rows(window), heads]`, offsets in time-major order.
    window: the configured window (time, height, width), in tokens.
    effective: the window that fits the grid.

  Returns:
    float32 `[heads, tokens (query), tokens (key)]`, tokens ordered by height, width and time.
  """
  tokens = math.prod(effective)
  if effective[1:] == window[1:]:
    offsets = offset_grid(table, window, effective[0])
    return _expand_strip(_strip(offsets.transpose(1, 2, 0, 3)))
  planes = -(-tokens // math.prod(window[1:]))
  bias = _expand_strip(_strip(offset_grid(table, window, planes)))[:, :tokens, :tokens]
  bias = bias.reshape(-1, effective[0], tokens // effective[0], tokens)
  bias = bias.swapaxes(1, 2).reshape(-1, tokens, effective[0], tokens // effective[0])
  return bias.swapaxes(2, 3).reshape(-1, tokens, tokens)


@jax.named_scope("relative_position_bias")
def bias_table_gradient(
  gradient: jax.Array, table: jax.Array, window: Size3D, effective: Size3D
) -> jax.Array:
  """Returns the gradient of `table` from those of `expand_bias` for every example.

  Each example is reduced to the table before examples are summed, so data-parallel devices exchange
  gradients of the table's size.

  Args:
    gradient: float32 `[batch, heads, tokens, tokens]`.
  """
  batch, (rows, heads) = len(gradient), table.shape
  # Heads are expanded independently, so the heads of all examples go back in one call.
  examples = jax.ShapeDtypeStruct((rows, batch * heads), table.dtype)
  transpose = jax.linear_transpose(
    partial(expand_bias, window=window, effective=effective), examples
  )
  (gradient,) = transpose(gradient.reshape(-1, *gradient.shape[2:]))
  return gradient.reshape(rows, batch, heads).sum(1)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def batched_bias(table: jax.Array, window: Size3D, effective: Size3D, batch: int) -> jax.Array:
  """Returns `expand_bias` for every example: float32 `[batch, heads, tokens, tokens]`.

  The values are one expansion, broadcast; see `bias_table_gradient` for the gradient.
  """
  bias = expand_bias(table, window, effective)
  return jnp.broadcast_to(bias, (batch, *bias.shape))


def _batched_bias_forward(table, window, effective, batch):
  return batched_bias(table, window, effective, batch), table


def _batched_bias_backward(window, effective, batch, table, gradient):
  del batch
  return (bias_table_gradient(gradient, table, window, effective),)


batched_bias.defvjp(_batched_bias_forward, _batched_bias_backward)


@jax.custom_vjp
def add_bias(logits: jax.Array, bias: jax.Array) -> jax.Array:
  """Adds `bias` `[batch, heads, tokens, tokens]` to every window of an example.

  The gradient of the bias is computed by `sum_over_windows`. (Differentiable in reverse mode only,
  like `batched_bias`.)

  Args:
    logits: float32 `[batch, windows, heads, tokens, tokens]`.
    bias: float32 `[batch, heads, tokens, tokens]`.

  Returns:
    float32, the shape of `logits`.
  """
  return logits + bias[:, None]


def _add_bias_forward(logits, bias):
  return add_bias(logits, bias), None


def _add_bias_backward(_, gradient):
  return gradient, sum_over_windows(gradient)


add_bias.defvjp(_add_bias_forward, _add_bias_backward)
