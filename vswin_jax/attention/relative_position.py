"""Relative position bias of 3D windows, expanded by matrix products.

The bias between two tokens depends only on their offset in time, height and width (Video Swin,
section 3.2), so the `[tokens, tokens]` bias of a head is a table of offsets pushed through one
constant 0/1 matrix per axis. Its gradient is the transposed product: no gather forward, no
scatter-add backward, and nothing of size `tokens x tokens` stored in the program.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np


def table_rows(window: tuple[int, int, int]) -> int:
  """Number of relative offsets inside a window: the rows of its bias table."""
  return int(np.prod([2 * size - 1 for size in window]))


def _offset_selector(size: int) -> np.ndarray:
  """0/1 matrix `[size, size, 2 * size - 1]`: query i, key j -> offset i - j + size - 1."""
  offset = np.arange(size)[:, None] - np.arange(size)[None, :] + size - 1
  return np.eye(2 * size - 1, dtype=np.float32)[offset]


def expand_bias(table: jax.Array, window: tuple[int, int, int], tokens: int) -> jax.Array:
  """Expands a table of relative biases to a bias for every pair of tokens.

  A window that shrank to fit a small grid has fewer tokens than `window`. The reference then
  takes the top left corner of the configured window's bias, which is the geometric bias only
  where the window shrank in time alone; converted weights need exactly that corner.

  Args:
    table: float `[table_rows(window), heads]`, offsets in time-major order.
    window: the configured window (time, height, width), in tokens.
    tokens: tokens of the effective window, at most `prod(window)`.

  Returns:
    float32 `[heads, tokens (query), tokens (key)]`.
  """
  depth, height, width = window
  planes = -(-tokens // (height * width))
  offsets = table.astype(jnp.float32).reshape(2 * depth - 1, 2 * height - 1, 2 * width - 1, -1)
  bias = jnp.einsum(
    "abch,ila,jmb,knc->hijklmn",
    offsets[depth - planes : depth + planes - 1],
    _offset_selector(planes),
    _offset_selector(height),
    _offset_selector(width),
    # Multiplying by 0 and 1 copies values exactly only if the products are not rounded.
    precision=jax.lax.Precision.HIGHEST,
  )
  full = planes * height * width
  return bias.reshape(-1, full, full)[:, :tokens, :tokens]


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def batched_bias(
  table: jax.Array, window: tuple[int, int, int], tokens: int, batch: int
) -> jax.Array:
  """`expand_bias` seen by every example: float32 `[batch, heads, tokens, tokens]`.

  The values are one broadcast expansion. The gradient goes back to the table for each example
  before examples are summed, so data parallel devices exchange gradients of the table's size
  and not of the `tokens x tokens` bias.
  """
  bias = expand_bias(table, window, tokens)
  return jnp.broadcast_to(bias, (batch, *bias.shape))


def _batched_bias_forward(table, window, tokens, batch):
  return batched_bias(table, window, tokens, batch), table


def _batched_bias_backward(window, tokens, batch, table, gradient):
  transpose = jax.linear_transpose(partial(expand_bias, window=window, tokens=tokens), table)
  return (jax.vmap(lambda example: transpose(example)[0])(gradient).sum(0),)


batched_bias.defvjp(_batched_bias_forward, _batched_bias_backward)


@jax.custom_vjp
def add_bias(logits: jax.Array, bias: jax.Array) -> jax.Array:
  """Adds `bias` `[batch, heads, tokens, tokens]` to every window of an example.

  The gradient of the bias sums over windows as a matrix product with ones: as a reduction over the
  second axis it takes XLA longer than all the rest of the attention on a CPU. (Differentiable in
  reverse mode only, like `batched_bias`.)

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
  batch, windows, *rest = gradient.shape
  total = jnp.einsum(
    "w,bwx->bx",
    jnp.ones(windows, gradient.dtype),
    gradient.reshape(batch, windows, -1),
    precision=jax.lax.Precision.HIGHEST,
  )
  return gradient, total.reshape(batch, *rest)


add_bias.defvjp(_add_bias_forward, _add_bias_backward)
