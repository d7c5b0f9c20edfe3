"""Attention among all tokens of an image for TPUs, as Pallas kernels.

Logits and probabilities stay on the chip. For the queries q, keys k and values v of an image and a
head of d channels:

  forward    s = q kᵀ / √d     p = softmax(s)     o = p v
  backward   dv = pᵀ do     dp = do vᵀ     ds = p (dp - Σ p dp) / √d     dq = ds k     dk = dsᵀ q

The backward kernel computes p again. A kernel visits one image at a time, and in it one group of
heads after the other: the heads that fill the 128 lanes of a tile, told apart by zeroing the lanes
of the others. Rows of keys from `tokens` on are padding, which no query attends to.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from vswin_jax.attention.tpu_core import (
  LANES,
  heads_per_group,
  lacks_memory,
  memory_limit,
  only_head,
  product,
  round_up,
  unsupported,
)

# Rows of a bfloat16 tile.
ROW_MULTIPLE = 16
_PADDING_LOGIT = -1e30


@dataclasses.dataclass(frozen=True)
class _Sizes:
  """Sizes of a call; hashable, so that it can be a static argument.

  Attributes:
    tokens: keys of an image that are not padding.
    queries: rows of queries to compute.
    heads: attention heads.
    head_dim: channels of a head.
    interpret: whether to interpret the kernels on a CPU.
  """

  tokens: int
  queries: int
  heads: int
  head_dim: int
  interpret: bool

  @property
  def group(self) -> int:
    """Heads of a group: those of a tile, or all if heads do not fill tiles."""
    return heads_per_group(self.heads, self.head_dim)

  @property
  def groups(self) -> list:
    """Slices of the channels of each group."""
    lanes = self.group * self.head_dim
    return [pl.ds(start, lanes) for start in range(0, self.heads * self.head_dim, lanes)]


def padded(tokens: int) -> int:
  """Returns the number of rows that hold `tokens`, a multiple of the rows of a tile."""
  return round_up(tokens, ROW_MULTIPLE)


def why_not(tokens: int, channels: int, dtype, interpret: bool = False) -> str | None:
  """Returns why the kernels can't compute an attention; None if they can."""
  rows = padded(tokens)
  # In the backward pass: seven arrays of an image, of which the next is fetched or the last is
  # written, and some six arrays of the token pairs of a head.
  needed = 4 * rows * (2 * 7 * channels + 6 * round_up(rows, LANES))
  return unsupported(dtype, interpret) or lacks_memory(needed)


def attend(
  qkv: jax.Array, heads: int, tokens: int, queries: int, *, interpret: bool = False
) -> jax.Array:
  """Attends among all tokens of each image; see `why_not` for what it can't compute.

  Args:
    qkv: `[3, images, rows, channels]`: queries (not scaled), keys and values; `rows` is a multiple
      of `ROW_MULTIPLE`.
    heads: attention heads, each with its channels together.
    tokens: tokens of an image, the first rows; the others are padding, which must be finite.
    queries: rows of queries to compute, the first ones, a multiple of `ROW_MULTIPLE`.
    interpret: whether to interpret the kernels, for tests on a CPU.

  Returns:
    `[images, queries, channels]`, the dtype of `qkv`. Differentiable in reverse mode only.
  """
  return _attend(_Sizes(tokens, queries, heads, qkv.shape[3] // heads, interpret), qkv)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(sizes, qkv):
  _, images, _, channels = qkv.shape
  output = jax.ShapeDtypeStruct((images, sizes.queries, channels), qkv.dtype)
  return _call(_dense_kernel, sizes, [qkv], output, products=2)


def _attend_forward(sizes, qkv):
  return _attend(sizes, qkv), qkv


def _attend_backward(sizes, qkv, gradient):
  return (_call(_dense_gradient_kernel, sizes, [qkv, gradient], qkv, products=5),)


_attend.defvjp(_attend_forward, _attend_backward)


def _call(kernel, sizes: _Sizes, inputs, output, *, products: int) -> jax.Array:
  """Calls a kernel for every image.

  Args:
    inputs: arrays `[..., images, rows, channels]`, the first one with the rows of all keys.
    output: an array of the shape of the result.
    products: matrix products over all token pairs.
  """
  images, rows, channels = inputs[0].shape[1:]
  pairs = images * sizes.queries * rows

  def image(x):
    leading = x.shape[:-3]
    zeros = [0] * len(leading)
    return pl.BlockSpec((*leading, 1, *x.shape[-2:]), lambda index: (*zeros, index, 0, 0))

  return pl.pallas_call(
    functools.partial(kernel, sizes),
    grid=(images,),
    in_specs=[image(x) for x in inputs],
    out_specs=image(output),
    out_shape=jax.ShapeDtypeStruct(output.shape, output.dtype),
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel",), vmem_limit_bytes=memory_limit()
    ),
    cost_estimate=pl.CostEstimate(
      flops=2 * products * pairs * channels,
      transcendentals=pairs * sizes.heads,
      bytes_accessed=sum(math.prod(x.shape) * x.dtype.itemsize for x in (*inputs, output)),
    ),
    interpret=sizes.interpret,
    name=kernel.__name__.strip("_"),
  )(*inputs)


def _dense_kernel(sizes, qkv_ref, output_ref):
  for lanes in sizes.groups:
    query, key, value = _qkv(sizes, qkv_ref, lanes)
    output = jnp.zeros(query.shape, jnp.float32)
    for head in range(sizes.group):
      weights, total = _weights(sizes, query, key, head)
      heads_value = only_head(value, head, sizes.head_dim)
      output += product(weights.astype(value.dtype), heads_value) * (1.0 / total)
    output_ref[0, :, lanes] = output.astype(output_ref.dtype)


def _dense_gradient_kernel(sizes, qkv_ref, gradient_ref, qkv_gradient_ref):
  if sizes.queries < qkv_ref.shape[2]:
    qkv_gradient_ref[0] = jnp.zeros_like(qkv_gradient_ref[0])
  for lanes in sizes.groups:
    query, key, value = _qkv(sizes, qkv_ref, lanes)
    gradient, dtype = gradient_ref[0, :, lanes], query.dtype
    query_gradient = jnp.zeros(query.shape, jnp.float32)
    key_gradient = value_gradient = jnp.zeros(key.shape, jnp.float32)
    for head in range(sizes.group):
      only = functools.partial(only_head, head=head, head_dim=sizes.head_dim)
      weights, total = _weights(sizes, query, key, head)
      weights *= 1.0 / total
      heads_gradient = only(gradient)
      weights_gradient = product(heads_gradient, value, transpose=(False, True))
      expected = jnp.sum(weights * weights_gradient, axis=1, keepdims=True)
      logits_gradient = weights * (weights_gradient - expected) * sizes.head_dim**-0.5
      logits_gradient = logits_gradient.astype(dtype)
      query_gradient += product(logits_gradient, only(key))
      key_gradient += product(logits_gradient, only(query), transpose=(True, False))
      value_gradient += product(weights.astype(dtype), heads_gradient, transpose=(True, False))
    qkv_gradient_ref[0, 0, : sizes.queries, lanes] = query_gradient.astype(dtype)
    qkv_gradient_ref[1, 0, :, lanes] = key_gradient.astype(dtype)
    qkv_gradient_ref[2, 0, :, lanes] = value_gradient.astype(dtype)


def _qkv(sizes, qkv_ref, lanes):
  """Returns the queries to compute, keys and values of a group of heads."""
  return qkv_ref[0, 0, : sizes.queries, lanes], qkv_ref[1, 0, :, lanes], qkv_ref[2, 0, :, lanes]


def _weights(sizes, query, key, head: int):
  """Returns probabilities `[queries, rows]` short of the division by their sums, and the sums."""
  logits = product(only_head(query, head, sizes.head_dim), key, transpose=(False, True))
  logits *= sizes.head_dim**-0.5
  if sizes.tokens < len(key):
    column = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1)
    logits = jnp.where(column < sizes.tokens, logits, _PADDING_LOGIT)
  weights = jnp.exp(logits - jnp.max(logits, axis=1, keepdims=True))
  return weights, jnp.sum(weights, axis=1, keepdims=True)
