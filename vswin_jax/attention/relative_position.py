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
  """Returns the number of relative offsets inside a window: the rows of its bias table."""
  return int(np.prod([2 * size - 1 for size in window]))


def _offset_selector(size: int) -> np.ndarray:
  """Returns a 0/1 array `[size, size, 2 * size - 1]`: query i, key j -> offset i - j + size - 1."""
  offset = np.arange(size)[:, None] - np.arange(size)[None, :] + size - 1
  return np.eye(2 * size - 1, dtype=np.float32)[offset]


def _select(subscripts: str, table: jax.Array, size: int) -> jax.Array:
  """Multiplies by the offset selector of one axis: offsets `o` -> queries and keys."""
  return jnp.einsum(
    subscripts,
    table,
    _offset_selector(size),
    # Multiplying by 0 and 1 copies values exactly only if the products are not rounded.
    precision=jax.lax.Precision.HIGHEST,
  )


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
  heads = table.shape[1]
  planes = -(-tokens // (height * width))
  offsets = table.astype(jnp.float32).T.reshape(heads, 2 * depth - 1, -1)
  bias = offsets[:, depth - planes : depth + planes - 1]
  # One axis at a time and never more than five dimensions: XLA:CPU takes minutes to compile the
  # transposition of an eight-dimensional array of one size.
  bias = _select("hox,tso->htsx", bias, planes)
  bias = bias.reshape(heads * planes, planes, 2 * height - 1, -1)
  bias = _select("asox,ijo->aisjx", bias, height)
  bias = bias.reshape(heads * planes * height, planes * height, -1)
  bias = _select("aso,ijo->aisj", bias, width)
  full = planes * height * width
  return bias.reshape(-1, full, full)[:, :tokens, :tokens]


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def batched_bias(
  table: jax.Array, window: tuple[int, int, int], tokens: int, batch: int
) -> jax.Array:
  """Returns `expand_bias` for every example: float32 `[batch, heads, tokens, tokens]`.

  The values are one expansion, broadcast. The gradient of each example is reduced to the table
  before examples are summed, so data-parallel devices exchange gradients of the table's size
  and not of the `tokens x tokens` bias.
  """
  bias = expand_bias(table, window, tokens)
  return jnp.broadcast_to(bias, (batch, *bias.shape))


def _batched_bias_forward(table, window, tokens, batch):
  return batched_bias(table, window, tokens, batch), table


def _batched_bias_backward(window, tokens, batch, table, gradient):
  # Heads are expanded independently, so the heads of all examples go back in one call.
  examples = jax.ShapeDtypeStruct((table.shape[0], batch * table.shape[1]), table.dtype)
  transpose = jax.linear_transpose(partial(expand_bias, window=window, tokens=tokens), examples)
  (gradient,) = transpose(gradient.reshape(-1, tokens, tokens))
  return (gradient.reshape(table.shape[0], batch, table.shape[1]).sum(1),)


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
