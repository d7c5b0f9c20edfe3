"""Window attention for TPUs, as Pallas kernels that keep logits and probabilities on the chip.

For the queries q (scaled), keys k and values v of a window and a head, the bias b and the mask m:

  forward    s = q kᵀ + b + m     p = softmax(s)     o = p v
  backward   dv = pᵀ do     dp = do vᵀ     ds = p (dp - Σ p dp)     dq = ds k     dk = dsᵀ q
             db = Σ over windows of ds

The backward kernel computes p again. A kernel visits one window and one group of heads at a time:
the heads that fill the 128 lanes of a tile, told apart by zeroing the lanes of the others, which
costs nothing because the matrix unit pads a head's channels to 128 anyway.

The bias of token pairs and its gradient exist on the chip only. A group's first window expands the
table of offsets, axis by axis: the biases of a query are those of all offsets along an axis from
its own on. The last window sums the gradient back to the table.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from vswin_jax.attention.operations import current_platform
from vswin_jax.attention.relative_position import offset_grid
from vswin_jax.attention.windows import OTHER_REGION_LOGIT, Size3D, WindowLayout

_LANES = 128
_SUBLANES = 8


@dataclasses.dataclass(frozen=True)
class _Sizes:
  """Sizes of a call; hashable, so that it can be a static argument.

  Attributes:
    layout: partition of the grid into windows.
    head_dim: channels of a head.
    group: heads of a group.
    interpret: whether to interpret the kernels on a CPU.
  """

  layout: WindowLayout
  head_dim: int
  group: int
  interpret: bool

  @property
  def lanes(self) -> int:
    return self.group * self.head_dim

  @property
  def rows(self) -> int:
    """Rows of a window, along its height."""
    return self.layout.window[1]

  @property
  def row(self) -> int:
    """Tokens of a row."""
    return self.layout.tokens // self.rows

  @property
  def strip_columns(self) -> int:
    """Tokens at all offsets in height."""
    return _round_up((2 * self.rows - 1) * self.row, _LANES)


def why_not(layout: WindowLayout, window: Size3D, channels: int, heads: int) -> str | None:
  """Returns why the kernels can't compute an attention; None if they can."""
  head_dim = channels // heads
  if layout.window[1:] != window[1:]:
    return f"a window {window} that shrank to {layout.window} has no geometric bias"
  if (layout.tokens // layout.window[1]) % _SUBLANES:
    return f"width x time of a window {layout.window} is no multiple of {_SUBLANES}"
  if channels % _LANES == 0 and _LANES % head_dim:
    return f"heads of {head_dim} channels do not divide {_LANES} lanes"
  group = _heads_per_group(channels, heads)
  # In the backward pass: the bias and its gradient of every head, and some six arrays of one head.
  needed = (2 * group + 6) * 4 * layout.tokens * _round_up(layout.tokens, _LANES)
  return lacks_memory(needed)


def core_memory() -> int:
  """Returns the bytes of memory of a TPU core; elsewhere, where kernels are interpreted, v5e's."""
  if current_platform() == "tpu":
    return pltpu.get_tpu_info().vmem_capacity_bytes
  return 128 * 2**20


def memory_limit() -> int:
  """Returns the bytes that a kernel may take; the rest is the compiler's."""
  return core_memory() * 7 // 8


def lacks_memory(needed: int) -> str | None:
  """Returns that a kernel needs more memory than there is; None if it does not."""
  if needed <= memory_limit():
    return None
  return f"a kernel needs about {needed / 2**20:.0f} MiB of the core's {core_memory() / 2**20:.0f}"


def _heads_per_group(channels: int, heads: int) -> int:
  return _LANES * heads // channels if channels % _LANES == 0 else heads


def attend(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  bias_table: jax.Array,
  window: Size3D,
  layout: WindowLayout,
  *,
  interpret: bool = False,
) -> jax.Array:
  """Attends within windows; see `window_attention`, and `why_not` for what it can't compute.

  Args:
    query: `[batch * windows, tokens, channels]`, not scaled.
    key: as `query`.
    value: as `query`.
    bias_table: float32 `[table_rows(window), heads]`.
    window: the configured window.
    layout: partition of the grid into windows.
    interpret: whether to interpret the kernels, for tests on a CPU.

  Returns:
    `[batch * windows, tokens, channels]`. Differentiable in reverse mode only.
  """
  channels, heads = query.shape[-1], bias_table.shape[1]
  group = _heads_per_group(channels, heads)
  sizes = _Sizes(layout, channels // heads, group, interpret)
  return _attend(sizes, query, key, value, _kernel_table(bias_table, window, layout.window[0]))


def _kernel_table(bias_table: jax.Array, window: Size3D, time: int) -> jax.Array:
  """Returns the table as `[heads, offsets in time, offsets in height and width x time]`.

  The offsets in height and width are descending, and each is there for every key in time.
  """
  offsets = offset_grid(bias_table, window, time)
  heads, columns = offsets.shape[3], offsets.shape[1] * offsets.shape[2]
  table = jnp.flip(offsets, (1, 2)).transpose(3, 0, 1, 2).reshape(-1, columns)
  # As a product, since an axis of `time` elements would be padded to a tile.
  width = _round_up(columns * time, _LANES)
  repeat = jnp.arange(width)[None, :] // time == jnp.arange(columns)[:, None]
  table = jnp.dot(table, repeat.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST)
  table = table.reshape(heads, -1, width)
  return jnp.pad(table, [(0, 0), (0, -table.shape[1] % _SUBLANES), (0, 0)])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(sizes, query, key, value, table):
  return _call(_forward_kernel, sizes, (query, key, value), table, [query], flops=4)[0]


def _attend_forward(sizes, query, key, value, table):
  return _attend(sizes, query, key, value, table), (query, key, value, table)


def _attend_backward(sizes, residuals, gradient):
  query, key, value, table = residuals
  outputs = [query, key, value, table]
  return tuple(
    _call(_backward_kernel, sizes, (query, key, value, gradient), table, outputs, flops=10)
  )


_attend.defvjp(_attend_forward, _attend_backward)


def _call(kernel, sizes: _Sizes, inputs, table, outputs, *, flops: int) -> list[jax.Array]:
  """Calls a kernel for every group of heads and, inside a group, for every window.

  Args:
    inputs: arrays `[windows, tokens, channels]`.
    table: of biases, see `_kernel_table`.
    outputs: arrays of the shapes of the results; the one like `table` is summed over windows.
    flops: operations per token pair and channel.
  """
  windows, tokens, channels = inputs[0].shape
  crossed, axes = _axis_bits(sizes.layout)
  heads = table.shape[0]
  tile = pl.BlockSpec((1, tokens, sizes.lanes), lambda group, window, *_: (window, 0, group))
  tables = pl.BlockSpec((sizes.group, *table.shape[1:]), lambda group, window, *_: (group, 0, 0))
  whole = [pl.BlockSpec(axis.shape, lambda *_: (0, 0)) for axis in axes]
  pairs = pltpu.VMEM((sizes.group, tokens, tokens), jnp.float32)
  result = pl.pallas_call(
    functools.partial(kernel, sizes),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=1,
      grid=(heads // sizes.group, windows),
      in_specs=[tile] * len(inputs) + [tables] + whole,
      out_specs=[tables if x is table else tile for x in outputs],
      scratch_shapes=[
        pltpu.VMEM((sizes.layout.window[0], table.shape[2]), jnp.float32),
        pltpu.VMEM((sizes.row, sizes.strip_columns), jnp.float32),
        # The bias, and in the backward pass its gradient.
        *[pairs] * (2 if len(outputs) > 1 else 1),
      ],
    ),
    out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in outputs],
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=memory_limit()
    ),
    cost_estimate=pl.CostEstimate(
      flops=flops * windows * tokens**2 * channels,
      transcendentals=windows * tokens**2 * heads,
      bytes_accessed=sum(x.nbytes for x in (*inputs, table, *outputs)),
    ),
    interpret=sizes.interpret,
    name=kernel.__name__.strip("_"),
  )(crossed, *inputs, table, *axes)
  return result


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
  sizes, crossed_ref, query_ref, key_ref, value_ref, table_ref, queries_ref, keys_ref, output_ref,
  times_ref, strip_ref, bias_ref,
):  # fmt: skip
  @pl.when(pl.program_id(1) == 0)
  def _():
    _expand_table(sizes, table_ref, times_ref, strip_ref, bias_ref)

  query, key, value = _scaled(sizes, query_ref), key_ref[0], value_ref[0]
  mask = _mask(sizes, crossed_ref, queries_ref, keys_ref)
  output = jnp.zeros(query.shape, jnp.float32)
  for head in range(sizes.group):
    weights, total = _weights(sizes, query, key, bias_ref, mask, head)
    heads_value = _only(sizes, value, head)
    output += product(weights.astype(value.dtype), heads_value) * (1.0 / total)
  output_ref[0] = output.astype(output_ref.dtype)


def _backward_kernel(
  sizes, crossed_ref, query_ref, key_ref, value_ref, gradient_ref, table_ref, queries_ref, keys_ref,
  query_gradient_ref, key_gradient_ref, value_gradient_ref, table_gradient_ref, times_ref,
  strip_ref, bias_ref, bias_gradient_ref,
):  # fmt: skip
  @pl.when(pl.program_id(1) == 0)
  def _():
    _expand_table(sizes, table_ref, times_ref, strip_ref, bias_ref)
    bias_gradient_ref[...] = jnp.zeros_like(bias_gradient_ref)

  query, key, value = _scaled(sizes, query_ref), key_ref[0], value_ref[0]
  gradient, dtype = gradient_ref[0], query.dtype
  mask = _mask(sizes, crossed_ref, queries_ref, keys_ref)
  query_gradient = key_gradient = value_gradient = jnp.zeros(query.shape, jnp.float32)
  for head in range(sizes.group):
    weights, total = _weights(sizes, query, key, bias_ref, mask, head)
    weights *= 1.0 / total
    heads_gradient = _only(sizes, gradient, head)
    weights_gradient = product(heads_gradient, value, transpose=(False, True))
    expected = jnp.sum(weights * weights_gradient, axis=1, keepdims=True)
    logits_gradient = weights * (weights_gradient - expected)
    bias_gradient_ref[head] += logits_gradient
    logits_gradient = logits_gradient.astype(dtype)
    query_gradient += product(logits_gradient, _only(sizes, key, head))
    key_gradient += product(logits_gradient, _only(sizes, query, head), transpose=(True, False))
    value_gradient += product(weights.astype(dtype), heads_gradient, transpose=(True, False))
  query_gradient_ref[0] = (query_gradient * sizes.head_dim**-0.5).astype(dtype)
  key_gradient_ref[0] = key_gradient.astype(dtype)
  value_gradient_ref[0] = value_gradient.astype(dtype)

  @pl.when(pl.program_id(1) == pl.num_programs(1) - 1)
  def _():
    _reduce_to_table(sizes, bias_gradient_ref, strip_ref, times_ref, table_gradient_ref)


def _scaled(sizes, query_ref):
  query = query_ref[0].astype(jnp.float32) * sizes.head_dim**-0.5
  return query.astype(query_ref.dtype)


def _only(sizes, x, head: int):
  """Returns `x` with zeros in the lanes of all heads but one."""
  lane = jax.lax.broadcasted_iota(jnp.int32, (1, x.shape[1]), 1)
  own = (lane >= head * sizes.head_dim) & (lane < (head + 1) * sizes.head_dim)
  return jnp.where(own, x, jnp.zeros_like(x))


def _weights(sizes, query, key, bias_ref, mask, head: int):
  """Returns probabilities `[tokens, tokens]` short of the division by their sums, and the sums."""
  logits = product(_only(sizes, query, head), key, transpose=(False, True)) + bias_ref[head]
  if mask is not None:
    logits += mask
  weights = jnp.exp(logits - jnp.max(logits, axis=1, keepdims=True))
  return weights, jnp.sum(weights, axis=1, keepdims=True)


def product(left, right, transpose=(False, False)):
  """Returns the product of two matrices, either of them transposed first, in float32."""
  dimensions = ((0 if transpose[0] else 1,), (1 if transpose[1] else 0,))
  return jax.lax.dot_general(
    left,
    right,
    (dimensions, ((), ())),
    # Otherwise the matrix unit would round float32 to bfloat16.
    precision=jax.lax.Precision.HIGHEST if left.dtype == jnp.float32 else None,
    preferred_element_type=jnp.float32,
  )


def _mask(sizes, crossed_ref, queries_ref, keys_ref):
  """Returns the logits of the mask, `[tokens, tokens]`; None if the windows are not shifted."""
  if not any(sizes.layout.shift):
    return None
  window = jax.lax.rem(pl.program_id(1), jnp.int32(sizes.layout.windows))
  differ = (queries_ref[...] ^ keys_ref[...]) & crossed_ref[window]
  return jnp.where(differ != 0, OTHER_REGION_LOGIT, 0.0)


def _expand_table(sizes, table_ref, times_ref, strip_ref, bias_ref):
  """Writes the biases of all token pairs.

  Args:
    table_ref: see `_kernel_table`.
    times_ref: scratch: queries in time -> keys in time, at all offsets in height and width.
    strip_ref: scratch: queries of a row -> keys of a row, at all offsets in height.
    bias_ref: queries of a window -> keys of a window, for each head.
  """
  time, tokens = sizes.layout.window[0], bias_ref.shape[2]
  for head in range(sizes.group):
    table, times = table_ref[head], jnp.zeros(times_ref.shape, jnp.float32)
    for key, own in _key_times(times_ref.shape[1], time):
      times = jnp.where(own, table[time - 1 - key : 2 * time - 1 - key], times)
    times_ref[...] = times
    for target, source in _strip_parts(sizes):
      strip_ref[target] = times_ref[source]
    for row, offset in _rows(sizes):
      biases = pltpu.roll(strip_ref[...], strip_ref.shape[1] - offset, 1)
      bias_ref[head, pl.ds(row * sizes.row, sizes.row), :] = biases[:, :tokens]


def _reduce_to_table(sizes, bias_gradient_ref, strip_ref, times_ref, table_gradient_ref):
  """Sums the gradients of all token pairs that share an offset: transposes `_expand_table`."""
  time = sizes.layout.window[0]
  padding = strip_ref.shape[1] - bias_gradient_ref.shape[2]
  for head in range(sizes.group):
    strip = jnp.zeros(strip_ref.shape, jnp.float32)
    for row, offset in _rows(sizes):
      gradients = bias_gradient_ref[head, pl.ds(row * sizes.row, sizes.row), :]
      strip += pltpu.roll(jnp.pad(gradients, ((0, 0), (0, padding))), offset, 1)
    strip_ref[...] = strip
    times_ref[...] = jnp.zeros_like(times_ref)
    for target, source in _strip_parts(sizes):
      times_ref[source] += strip_ref[target]
    times = times_ref[...]
    table_gradient_ref[head] = jnp.zeros(table_gradient_ref.shape[1:], jnp.float32)
    for key, own in _key_times(times_ref.shape[1], time):
      offsets = pl.ds(time - 1 - key, time)
      table_gradient_ref[head, offsets, :] += jnp.where(own, times, 0.0)


def _key_times(columns: int, time: int):
  """Yields every key in time, and which columns of a table belong to it."""
  column = jax.lax.broadcasted_iota(jnp.int32, (1, columns), 1)
  for key in range(time):
    yield key, jax.lax.rem(column, jnp.int32(time)) == key


def _strip_parts(sizes):
  """Yields the parts of a strip, and those of the biases in time that they consist of."""
  time, height, width = sizes.layout.window
  for column in range(width):
    for offset in range(2 * height - 1):
      first = (offset * (2 * width - 1) + width - 1 - column) * time
      target = (pl.ds(column * time, time), pl.ds(offset * sizes.row, sizes.row))
      yield target, (slice(None), pl.ds(first, sizes.row))


def _rows(sizes):
  """Yields the rows of a window, and where the biases of each begin in a strip."""
  for row in range(sizes.rows):
    yield row, (sizes.rows - 1 - row) * sizes.row


def _round_up(size: int, multiple: int) -> int:
  return -(-size // multiple) * multiple
