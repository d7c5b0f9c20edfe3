"""Window attention for TPUs, as Pallas kernels that keep logits and probabilities on the chip.

For the queries q (scaled), keys k and values v of a window and a head, the bias b, the mask m, and
the factors d of dropout (0, or the inverse of the share that is kept):

  forward    s = q kᵀ + b + m     p = softmax(s)     o = (d p) v
  backward   dv = (d p)ᵀ do     dp = d (do vᵀ)     ds = p (dp - Σ p dp)     dq = ds k     dk = dsᵀ q
             db = Σ over windows of ds

The backward kernel computes p and d again. A kernel visits one window and one group of heads at a
time: the heads that fill the 128 lanes of a tile, told apart by zeroing the lanes of the others,
which costs nothing because the matrix unit pads a head's channels to 128 anyway.

The bias of token pairs and its gradient exist on the chip only (`tpu_bias`). A group's first window
expands the table; the last window sums the gradient back to the table.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from vswin_jax.attention import tpu_bias
from vswin_jax.attention.tpu_core import (
  LANES,
  cores,
  dropout_factors,
  heads_per_group,
  lacks_memory,
  memory_limit,
  only_head,
  product,
  round_up,
  unsupported,
)
from vswin_jax.attention.windows import OTHER_REGION_LOGIT, Size3D, WindowLayout

# The matrix unit works on one head while another's probabilities are computed.
_HEADS_AT_ONCE = 2


@dataclasses.dataclass(frozen=True)
class _Options:
  """Static options of a call.

  Attributes:
    layout: partition of the grid into windows.
    head_dim: channels of a head.
    group: heads of a group.
    dropout_rate: of the probabilities.
    splits: parts of the windows, each for one core of a chip.
    interpret: whether to interpret the kernels on a CPU.
  """

  layout: WindowLayout
  head_dim: int
  group: int
  dropout_rate: float
  splits: int
  interpret: bool


def why_not(
  layout: WindowLayout,
  window: Size3D,
  channels: int,
  heads: int,
  dtype: str,
  interpret: bool = False,
) -> str | None:
  """Returns why the kernels can't compute an attention; None if they can."""
  head_dim, reason = channels // heads, unsupported(dtype, interpret)
  if reason:
    return reason
  if layout.window[1:] != window[1:]:
    return f"a window {window} that shrank to {layout.window} has no geometric bias"
  if channels % LANES == 0 and LANES % head_dim:
    return f"heads of {head_dim} channels do not divide {LANES} lanes"
  return lacks_memory(_memory(layout, channels, heads, dtype))


def _memory(layout: WindowLayout, channels: int, heads: int, dtype: str) -> int:
  """Returns about how many bytes the backward kernel needs on the chip."""
  group, itemsize = heads_per_group(heads, channels // heads), jnp.dtype(dtype).itemsize
  pairs = 4 * layout.tokens * round_up(layout.tokens, LANES)
  rows = layout.tokens * round_up(group * channels // heads, LANES)
  # The bias and its gradient of every head, and arrays of one head, by measuring with the compiler;
  # four inputs and three outputs, twice, and sums in float32; the table and its gradient, twice.
  return round(
    pairs * (2 * group + 2 + 1.75 * itemsize)
    + rows * (14 * itemsize + 3 * 4)
    + 4 * 4 * group * tpu_bias.table_size(layout)
  )


def attend(
  qkv: jax.Array,
  bias_table: jax.Array,
  window: Size3D,
  layout: WindowLayout,
  *,
  seeds: jax.Array | None = None,
  dropout_rate: float = 0.0,
  interpret: bool = False,
) -> jax.Array:
  """Attends within windows; see `window_attention`, and `why_not` for what it can't compute.

  Args:
    qkv: `[3, batch * windows, tokens, channels]`: queries (not scaled), keys and values.
    bias_table: float32 `[table_rows(window), heads]`.
    window: the configured window.
    layout: partition of the grid into windows.
    seeds: int32 `[batch]`, of the dropout of each example; None: no dropout.
    dropout_rate: on the attention probabilities.
    interpret: whether to interpret the kernels, for tests on a CPU.

  Returns:
    `[batch * windows, tokens, channels]`. Differentiable in reverse mode only.
  """
  windows, channels, heads = qkv.shape[1], qkv.shape[-1], bias_table.shape[1]
  options = _Options(
    layout=layout,
    head_dim=channels // heads,
    group=heads_per_group(heads, channels // heads),
    dropout_rate=0.0 if seeds is None else dropout_rate,
    splits=cores() if windows % cores() == 0 else 1,
    interpret=interpret,
  )
  if seeds is None:
    seeds = jnp.zeros(windows // layout.windows, jnp.int32)
  table = tpu_bias.kernel_table(bias_table, window, layout.window[0])
  return _attend(options, qkv, table, seeds)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(options, qkv, table, seeds):
  return _call(_forward_kernel, options, [qkv], table, seeds, [qkv[0]], flops=4)[0]


def _attend_forward(options, *arguments):
  return _attend(options, *arguments), arguments


def _attend_backward(options, residuals, gradient):
  qkv, table, seeds = residuals
  inputs, outputs = [qkv, gradient], [qkv, table]
  gradient, tables = _call(_backward_kernel, options, inputs, table, seeds, outputs, flops=10)
  return gradient, tables.sum(0), None


_attend.defvjp(_attend_forward, _attend_backward)


def _call(kernel, options: _Options, inputs, table, seeds, outputs, *, flops: int):
  """Calls a kernel for every group of heads and, inside a group, for every window.

  Args:
    inputs: arrays `[windows, tokens, channels]` or `[3, windows, tokens, channels]`.
    table: of biases, see `tpu_bias.kernel_table`.
    seeds: int32 `[batch]`.
    outputs: arrays of the shapes of the results; the one like `table` is summed over the windows of
      each core, and gets an axis of cores.
    flops: operations per token pair and channel.
  """
  windows, tokens, channels = inputs[0].shape[-3:]
  crossed, axes = _axis_bits(options.layout)
  heads, lanes = table.shape[0], options.group * options.head_dim
  steps = windows // options.splits
  tables = pl.BlockSpec((options.group, *table.shape[1:]), lambda group, *_: (group, 0, 0))
  sums = pl.BlockSpec((None, *tables.block_shape), lambda group, core, *_: (core, group, 0, 0))
  whole = [pl.BlockSpec(axis.shape, lambda *_: (0, 0)) for axis in axes]
  shapes = [(options.splits, *x.shape) if x is table else x.shape for x in outputs]

  def tile(x):
    def index(group, core, step, *_):
      return (*[0] * (x.ndim - 3), core * steps + step, 0, group)

    return pl.BlockSpec((*x.shape[:-3], None, tokens, lanes), index)

  # The bias, and in the backward pass its gradient; and sums over heads.
  pairs = [pltpu.VMEM((options.group, tokens, tokens), jnp.float32)] * len(outputs)
  totals = [
    pltpu.VMEM((*x.shape[:-3], tokens, lanes), jnp.float32) for x in outputs if x is not table
  ]
  return pl.pallas_call(
    functools.partial(kernel, options),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=2,
      grid=(heads // options.group, options.splits, steps),
      in_specs=[*map(tile, inputs), tables, *whole],
      out_specs=[sums if x is table else tile(x) for x in outputs],
      scratch_shapes=[*tpu_bias.scratch(options.layout, table.shape[2]), *pairs, *totals],
    ),
    out_shape=[jax.ShapeDtypeStruct(shape, x.dtype) for shape, x in zip(shapes, outputs)],
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("arbitrary", "parallel", "arbitrary"), vmem_limit_bytes=memory_limit()
    ),
    cost_estimate=pl.CostEstimate(
      flops=flops * windows * tokens**2 * channels,
      transcendentals=windows * tokens**2 * heads,
      bytes_accessed=sum(x.nbytes for x in (*inputs, table, *outputs)),
    ),
    interpret=options.interpret,
    name=kernel.__name__.strip("_"),
  )(crossed, seeds, *inputs, table, *axes)


def _axis_bits(layout: WindowLayout) -> tuple[jax.Array, list[jax.Array]]:
  """Returns from which regions the tokens of the windows come, as one bit per axis.

  The tokens of a window that crosses the end of a shifted axis come from two regions along it.

  Returns:
    The axes that each window crosses, int32 `[windows]`; and the part of each token along all
    axes, int32 `[tokens, 1]` and `[1, tokens]`.
  """
  crossed, parts = 0, 0
  for axis in (1, 2, 0):
    size, step, shift = layout.padded_grid[axis], layout.window[axis], layout.shift[axis]
    bit = 1 << axis if shift else 0
    last = np.arange(size // step) == size // step - 1
    crossed = np.asarray(crossed)[..., None] | np.where(last, bit, 0)
    parts = np.asarray(parts)[..., None] | np.where(np.arange(step) >= step - shift, bit, 0)
  parts = parts.reshape(-1).astype(np.int32)
  return (
    jnp.asarray(crossed.reshape(-1).astype(np.int32)),
    [jnp.asarray(parts[:, None]), jnp.asarray(parts[None, :])],
  )


def _forward_kernel(
  options, crossed_ref, seeds_ref, qkv_ref, table_ref, queries_ref, keys_ref, output_ref, times_ref,
  strip_ref, bias_ref, output_sum,
):  # fmt: skip
  @pl.when(pl.program_id(2) == 0)
  def _():
    tpu_bias.expand_table(options.layout, table_ref, times_ref, strip_ref, bias_ref)

  query, key, value = _scaled_qkv(options, qkv_ref)
  mask = _mask(options, crossed_ref, queries_ref, keys_ref)
  dropout = _dropout(options, seeds_ref)
  output_sum[...] = jnp.zeros_like(output_sum)

  @pl.loop(0, options.group, unroll=math.gcd(options.group, _HEADS_AT_ONCE))
  def _(head):
    weights, total = _weights(options, query, key, bias_ref, mask, head)
    weights *= dropout(head)
    heads_value = only_head(value, head, options.head_dim)
    output_sum[...] += product(weights.astype(value.dtype), heads_value) * (1.0 / total)

  output_ref[...] = output_sum[...].astype(output_ref.dtype)


def _backward_kernel(
  options, crossed_ref, seeds_ref, qkv_ref, gradient_ref, table_ref, queries_ref, keys_ref,
  qkv_gradient_ref, table_gradient_ref, times_ref, strip_ref, bias_ref, bias_gradient_ref, qkv_sum,
):  # fmt: skip
  @pl.when(pl.program_id(2) == 0)
  def _():
    tpu_bias.expand_table(options.layout, table_ref, times_ref, strip_ref, bias_ref)
    bias_gradient_ref[...] = jnp.zeros_like(bias_gradient_ref)

  query, key, value = _scaled_qkv(options, qkv_ref)
  gradient, dtype = gradient_ref[...], query.dtype
  mask = _mask(options, crossed_ref, queries_ref, keys_ref)
  dropout = _dropout(options, seeds_ref)
  qkv_sum[...] = jnp.zeros_like(qkv_sum)

  @pl.loop(0, options.group, unroll=math.gcd(options.group, _HEADS_AT_ONCE))
  def _(head):
    only = functools.partial(only_head, head=head, head_dim=options.head_dim)
    weights, total = _weights(options, query, key, bias_ref, mask, head)
    weights *= 1.0 / total
    factors = dropout(head)
    heads_gradient = only(gradient)
    weights_gradient = product(heads_gradient, value, transpose=(False, True)) * factors
    expected = jnp.sum(weights * weights_gradient, axis=1, keepdims=True)
    logits_gradient = weights * (weights_gradient - expected)
    bias_gradient_ref[head] += logits_gradient
    logits_gradient = logits_gradient.astype(dtype)
    qkv_sum[0] += product(logits_gradient, only(key))
    qkv_sum[1] += product(logits_gradient, only(query), transpose=(True, False))
    weights = (weights * factors).astype(dtype)
    qkv_sum[2] += product(weights, heads_gradient, transpose=(True, False))

  qkv_sum[0] *= options.head_dim**-0.5
  qkv_gradient_ref[...] = qkv_sum[...].astype(dtype)

  @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
  def _():
    tpu_bias.reduce_to_table(
      options.layout, bias_gradient_ref, strip_ref, times_ref, table_gradient_ref
    )


def _scaled_qkv(options, qkv_ref):
  query = qkv_ref[0].astype(jnp.float32) * options.head_dim**-0.5
  return query.astype(qkv_ref.dtype), qkv_ref[1], qkv_ref[2]


def _weights(options, query, key, bias_ref, mask, head):
  """Returns probabilities `[tokens, tokens]` short of the division by their sums, and the sums."""
  query = only_head(query, head, options.head_dim)
  logits = product(query, key, transpose=(False, True)) + bias_ref[head]
  if mask is not None:
    logits += mask
  weights = jnp.exp(logits - jnp.max(logits, axis=1, keepdims=True))
  return weights, jnp.sum(weights, axis=1, keepdims=True)


def _window(options):
  """Returns the number of the window among those of all examples."""
  return pl.program_id(1) * pl.num_programs(2) + pl.program_id(2)


def _mask(options, crossed_ref, queries_ref, keys_ref):
  """Returns the logits of the mask, `[tokens, tokens]`; None if the windows are not shifted."""
  if not any(options.layout.shift):
    return None
  window = jax.lax.rem(_window(options), jnp.int32(options.layout.windows))
  differ = (queries_ref[...] ^ keys_ref[...]) & crossed_ref[window]
  return jnp.where(differ != 0, OTHER_REGION_LOGIT, 0.0)


def _dropout(options, seeds_ref):
  """Returns a function: head -> factors of its probabilities; 1 without dropout."""
  if not options.dropout_rate:
    return lambda head: 1.0
  tokens, windows = options.layout.tokens, jnp.int32(options.layout.windows)
  # Loops can't ask where the kernel is on its grid.
  seed = seeds_ref[jax.lax.div(_window(options), windows)]
  first = jax.lax.rem(_window(options), windows) * pl.num_programs(0) + pl.program_id(0)

  def factors(head):
    start = (first * options.group + head) * tokens, 0
    return dropout_factors(seed, start, (tokens, tokens), tokens, options.dropout_rate)

  return factors
