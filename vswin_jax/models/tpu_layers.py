"""Layers of a transformer block around attention for TPUs, as Pallas kernels over rows of tokens.

For rows x of tokens, and the stochastic depth factors a and b of their example:

  before attention   n = LN1(x)     q, k, v = n Wqkv + cqkv
  after attention    y = x + a (o Wp + cp)     z = y + b (gelu(LN2(y) W1 + c1) W2 + c2)

with dropout after Wp, gelu and W2. The backward kernels compute normalized values and hidden layers
again, so that only x, q, k, v and o are kept. Gradients of parameters are summed in float32 on the
chip over all rows. Where these do not fit, the hidden channels are divided among several calls.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from vswin_jax.attention.tpu_core import (
  LANES,
  SUBLANES,
  cores,
  dropout_factors,
  memory_limit,
  product,
)
from vswin_jax.attention.windows import WindowLayout

_MOST_ROWS = 512
_MOST_PARTS = 4
_HIDDEN_CHUNK = 512


@dataclasses.dataclass(frozen=True)
class Options:
  """Static options of the kernels.

  Attributes:
    epsilon: of LayerNorm.
    layout: partition into windows, whose padding is 0 after the first LayerNorm.
    step: rows that a kernel visits at a time.
    parts: calls that the hidden channels are divided among.
    dropout_rate: after linear layers.
    interpret: whether to interpret the kernels, for tests on a CPU.
  """

  epsilon: float
  layout: WindowLayout
  step: int
  parts: int = 1
  dropout_rate: float = 0.0
  interpret: bool = False

  @property
  def rows(self) -> int:
    """Rows of an example."""
    return self.layout.windows * self.layout.tokens


def norm_qkv_step(rows: int, channels: int, itemsize: int) -> int | None:
  """Returns the rows that the kernels of `norm_qkv` can take at a time; None: there is no number.

  Args:
    rows: rows of an example.
    channels: of a row.
    itemsize: bytes per number.
  """
  weights = 3 * channels**2 * (itemsize + 4)
  per_row = channels * (12 * itemsize + 18)
  return _largest_step(rows, weights, per_row)


def project_mlp_step(
  rows: int, channels: int, hidden: int, itemsize: int
) -> tuple[int, int] | None:
  """Returns rows at a time and parts of the hidden channels for the kernels of `project_mlp`.

  None: they don't fit the memory of a core.
  """
  for parts in range(1, _MOST_PARTS + 1):
    if parts > 1 and hidden % (parts * LANES):
      continue
    weights = channels * (channels + 2 * hidden // parts) * (itemsize + 4)
    per_row = channels * (12 * itemsize + 28) + 16 * _chunk(hidden // parts)
    step = _largest_step(rows, weights, per_row)
    if step:
      return step, parts
  return None


def _largest_step(rows: int, weights: int, per_row: int) -> int | None:
  """Returns the largest divisor of a number of rows that fits; None: none of a useful size does.

  Args:
    rows: rows of an example.
    weights: bytes that a kernel needs for parameters and their gradients.
    per_row: bytes that it needs for each row of a step.
  """
  most = min(_MOST_ROWS, (memory_limit() - weights) // per_row)
  step = max((size for size in range(SUBLANES, most + 1, SUBLANES) if rows % size == 0), default=0)
  # The matrix unit would wait for weights if there were far fewer rows than it has.
  return step if step >= min(rows, LANES // 2) else None


def _chunk(hidden: int) -> int:
  """Returns how many hidden channels are computed at a time."""
  sizes = [size for size in range(LANES, _HIDDEN_CHUNK + 1, LANES) if hidden % size == 0]
  return max(sizes, default=hidden)


# Before attention.


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def norm_qkv(options: Options, x: jax.Array, parameters: tuple) -> tuple[jax.Array, ...]:
  """Returns queries, keys and values of rows, and the rows.

  The rows pass through so that the gradient of the residual path is added in the same kernel.

  Args:
    x: `[rows, channels]`.
    parameters: float32 scale and bias of the LayerNorm, `[1, channels]`, kernel
      `[channels, 3 * channels]` and bias `[1, 3 * channels]` of the linear layer.
  """
  outputs = [jax.ShapeDtypeStruct(x.shape, x.dtype)] * 3
  flops = 6 * x.size * x.shape[1]
  return (*_call(_norm_qkv_kernel, options, [x], parameters, outputs, flops=flops), x)


def _norm_qkv_forward(options, x, parameters):
  return norm_qkv(options, x, parameters), (x, parameters)


def _norm_qkv_backward(options, residuals, gradients):
  x, parameters = residuals
  x_gradient, *sums = _call(
    _norm_qkv_gradient_kernel,
    options,
    [x, *gradients],
    parameters,
    [jax.ShapeDtypeStruct(x.shape, x.dtype)],
    sums=parameters,
    flops=12 * x.size * x.shape[1],
  )
  return x_gradient, tuple(sums)


norm_qkv.defvjp(_norm_qkv_forward, _norm_qkv_backward)


def _norm_qkv_kernel(options, _, rows, parameters, outputs, *unused):
  (x_ref,), (scale_ref, shift_ref, kernel_ref, bias_ref) = rows, parameters
  _, _, inputs = _norm_tokens(options, x_ref, scale_ref, shift_ref)
  for columns, output_ref in zip(_thirds(kernel_ref), outputs):
    output = product(inputs, kernel_ref[:, columns]) + bias_ref[:, columns]
    output_ref[...] = output.astype(output_ref.dtype)


def _norm_qkv_gradient_kernel(options, _, rows, parameters, outputs, sums, *unused):
  x_ref, *gradient_refs, residual_ref = rows
  scale_ref, shift_ref, kernel_ref, _ = parameters
  (x_gradient_ref,), (scale_sum, shift_sum, kernel_sum, bias_sum) = outputs, sums
  normal, inverse, inputs = _norm_tokens(options, x_ref, scale_ref, shift_ref)
  gradient = jnp.zeros(normal.shape, jnp.float32)
  for columns, gradient_ref in zip(_thirds(kernel_ref), gradient_refs):
    kernel_sum[:, columns] += product(inputs, gradient_ref[...], transpose=(True, False))
    bias_sum[:, columns] += _column_sums(gradient_ref[...])
    gradient += product(gradient_ref[...], kernel_ref[:, columns], transpose=(False, True))
  gradient = _zero_padding(options, gradient)
  scale_sum[...] += _column_sums(gradient * normal)
  shift_sum[...] += _column_sums(gradient)
  x_gradient = _normalize_gradient(gradient * scale_ref[...], normal, inverse)
  x_gradient_ref[...] = (x_gradient + residual_ref[...].astype(jnp.float32)).astype(x_ref.dtype)


def _norm_tokens(options, x_ref, scale_ref, shift_ref):
  """Returns rows of mean 0 and variance 1, the inverse deviations, and the layer's output."""
  normal, inverse = _normalize(x_ref[...], options.epsilon)
  inputs = _zero_padding(options, normal * scale_ref[...] + shift_ref[...])
  return normal, inverse, inputs.astype(x_ref.dtype)


def _thirds(kernel_ref):
  """Returns the columns of queries, keys and values."""
  channels = kernel_ref.shape[0]
  return [pl.ds(index * channels, channels) for index in range(3)]


def _zero_padding(options: Options, x):
  """Zeros the rows that are padding, by the place of each on the grid, from which it follows."""
  layout = options.layout
  if layout.padded_grid == layout.grid:
    return x
  rest = jax.lax.broadcasted_iota(jnp.int32, (len(x), 1), 0) + _place(options)[1]
  # Whole numbers, small enough for float32, which divides faster.
  rest = rest.astype(jnp.float32)

  def last_digit(rest, base):
    quotient = jnp.floor((rest + 0.5) * (1.0 / base))
    return quotient, rest - quotient * base

  axes = (0, 2, 1)  # from the one that changes fastest
  inside, is_token = {}, None
  for axis in axes:
    rest, inside[axis] = last_digit(rest, layout.window[axis])
  for axis in axes:
    size, step = layout.padded_grid[axis], layout.window[axis]
    rest, window = last_digit(rest, size // step)
    place = window * step + inside[axis] + layout.shift[axis]
    place = jnp.where(place >= size, place - size, place)
    below = place < layout.grid[axis]
    is_token = below if is_token is None else is_token & below
  return jnp.where(is_token, x, 0.0)


# After attention.


class ProjectMLP(NamedTuple):
  """Parameters of `project_mlp`, float32: linear layers and a LayerNorm; or their gradients.

  All but kernels are `[1, channels]`.
  """

  projection: jax.Array
  projection_bias: jax.Array
  scale: jax.Array
  shift: jax.Array
  kernel1: jax.Array
  bias1: jax.Array
  kernel2: jax.Array
  bias2: jax.Array

  def parts(self, count: int) -> list["ProjectMLP"]:
    """Returns the parameters with parts of the hidden channels."""
    kernels1, biases1 = (jnp.split(x, count, axis=1) for x in (self.kernel1, self.bias1))
    parts = zip(kernels1, biases1, jnp.split(self.kernel2, count), strict=True)
    return [self._replace(kernel1=x, bias1=y, kernel2=z) for x, y, z in parts]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def project_mlp(
  options: Options,
  attended: jax.Array,
  x: jax.Array,
  factors: jax.Array,
  seeds: jax.Array,
  parameters: ProjectMLP,
) -> jax.Array:
  """Applies the projection of attention, the MLP, and both residual connections.

  Args:
    attended: `[rows, channels]`, the output of attention.
    x: the same shape, the input of the block.
    factors: float32 `[examples, 2]`: factors of both residual branches. They have no gradient.
    seeds: int32 `[examples, 3]`, of dropout after each linear layer.

  Returns:
    `[rows, channels]`, the dtype of `x`.
  """
  partial = []
  for part, parameters_part in enumerate(parameters.parts(options.parts)):
    is_last = part == options.parts - 1
    partial = _call(
      functools.partial(_project_mlp_kernel, part),
      options,
      [attended, x, *partial],
      parameters_part,
      [jax.ShapeDtypeStruct(x.shape, x.dtype if is_last else jnp.float32)],
      scalars=[factors, seeds],
      flops=2 * x.size * (x.shape[1] + 2 * parameters_part.kernel1.shape[1]),
    )
  return partial[0]


def _project_mlp_forward(options, *arguments):
  return project_mlp(options, *arguments), arguments


def _project_mlp_backward(options, residuals, gradient):
  attended, x, factors, seeds, parameters = residuals

  def call(part, parameters_part, partial, outputs, sums):
    return _call(
      functools.partial(_project_mlp_gradient_kernel, part),
      options,
      [attended, x, gradient, *partial],
      parameters_part,
      [jax.ShapeDtypeStruct(x.shape, dtype) for dtype in outputs],
      sums=sums,
      scalars=[factors, seeds],
      flops=2 * x.size * (3 * x.shape[1] + 5 * parameters_part.kernel1.shape[1]),
    )

  *parts, last = enumerate(parameters.parts(options.parts))
  partial, hidden_sums = [], []
  for part, parameters_part in parts:
    inputs_gradient, *sums = call(
      part, parameters_part, partial, [jnp.float32], parameters_part[4:7]
    )
    partial, hidden_sums = [inputs_gradient], [*hidden_sums, sums]
  attended_gradient, x_gradient, *sums = call(*last, partial, [x.dtype] * 2, last[1])
  hidden_sums.append(sums[4:7])
  if parts:
    kernels1, biases1, kernels2 = zip(*hidden_sums)
    sums[4:7] = jnp.hstack(kernels1), jnp.hstack(biases1), jnp.vstack(kernels2)
  return attended_gradient, x_gradient, None, None, ProjectMLP(*sums)


project_mlp.defvjp(_project_mlp_forward, _project_mlp_backward)


def _project_mlp_kernel(part, options, scalars, rows, parameters, outputs, sums, total_ref):
  """Computes a part of the hidden channels; the last part adds all else."""
  (attended_ref, x_ref, *partial), (output_ref,) = rows, outputs
  weights = ProjectMLP(*parameters)
  x, _, mlp_factor = _attention_residual(options, scalars, attended_ref, x_ref, weights)
  normal, _ = _normalize(x, options.epsilon)
  inputs = (normal * weights.scale[...] + weights.shift[...]).astype(x.dtype)
  total_ref[...] = partial[0][...] if partial else jnp.zeros_like(total_ref)

  @_for_hidden_chunks(options, part, scalars, weights, len(x))
  def _(columns, dropped):
    hidden = product(inputs, weights.kernel1[:, columns]) + weights.bias1[:, columns]
    activated = hidden * _normal_probability(hidden) * dropped
    total_ref[...] += product(activated.astype(x.dtype), weights.kernel2[columns, :])

  if part < options.parts - 1:
    output_ref[...] = total_ref[...]
  else:
    output = (total_ref[...] + weights.bias2[...]) * mlp_factor
    output_ref[...] = (x.astype(jnp.float32) + output).astype(x.dtype)


def _project_mlp_gradient_kernel(
  part, options, scalars, rows, parameters, outputs, sums, inputs_gradient_ref
):
  """Computes the gradients of a part of the hidden channels; the last part adds all others."""
  (attended_ref, x_ref, gradient_ref, *partial), weights = rows, ProjectMLP(*parameters)
  is_last = part == options.parts - 1
  sums = ProjectMLP(*sums) if is_last else ProjectMLP(*[None] * 4, *sums, None)
  x, attention_factor, mlp_factor = _attention_residual(
    options, scalars, attended_ref, x_ref, weights
  )
  normal, inverse = _normalize(x, options.epsilon)
  inputs = (normal * weights.scale[...] + weights.shift[...]).astype(x.dtype)
  inputs_gradient_ref[...] = partial[0][...] if partial else jnp.zeros_like(inputs_gradient_ref)
  gradient = gradient_ref[...].astype(jnp.float32)
  mlp_gradient = gradient * mlp_factor
  if is_last:
    sums.bias2[...] += _column_sums(mlp_gradient)
  mlp_gradient = mlp_gradient.astype(x.dtype)

  @_for_hidden_chunks(options, part, scalars, weights, len(x))
  def _(columns, dropped):
    kernel1, kernel2 = weights.kernel1[:, columns], weights.kernel2[columns, :]
    hidden = product(inputs, kernel1) + weights.bias1[:, columns]
    probability = _normal_probability(hidden)
    activated = (hidden * probability * dropped).astype(x.dtype)
    sums.kernel2[columns, :] += product(activated, mlp_gradient, transpose=(True, False))
    slope = (probability + hidden * _normal_density(hidden)) * dropped
    hidden_gradient = product(mlp_gradient, kernel2, transpose=(False, True)) * slope
    sums.bias1[:, columns] += _column_sums(hidden_gradient)
    hidden_gradient = hidden_gradient.astype(x.dtype)
    sums.kernel1[:, columns] += product(inputs, hidden_gradient, transpose=(True, False))
    inputs_gradient_ref[...] += product(hidden_gradient, kernel1, transpose=(False, True))

  inputs_gradient = inputs_gradient_ref[...]
  if not is_last:
    outputs[0][...] = inputs_gradient
    return
  attended_gradient_ref, x_gradient_ref = outputs
  sums.scale[...] += _column_sums(inputs_gradient * normal)
  sums.shift[...] += _column_sums(inputs_gradient)
  gradient += _normalize_gradient(inputs_gradient * weights.scale[...], normal, inverse)
  x_gradient_ref[...] = gradient.astype(x.dtype)
  projected_gradient = gradient * attention_factor
  sums.projection_bias[...] += _column_sums(projected_gradient)
  projected_gradient = projected_gradient.astype(x.dtype)
  sums.projection[...] += product(attended_ref[...], projected_gradient, transpose=(True, False))
  attended_gradient = product(projected_gradient, weights.projection[...], transpose=(False, True))
  attended_gradient_ref[...] = attended_gradient.astype(x.dtype)


def _attention_residual(options, scalars, attended_ref, x_ref, weights):
  """Adds the projection to rows; returns them and the factors of both branches, with dropout."""
  factors_ref, seeds_ref = scalars
  example, row = _place(options)

  def factor(index: int, layer: int):
    return factors_ref[example, index] * _dropped(options, seeds_ref, layer, (row, 0), x_ref.shape)

  attention_factor = factor(0, 0)
  projected = product(attended_ref[...], weights.projection[...]) + weights.projection_bias[...]
  x = x_ref[...].astype(jnp.float32) + attention_factor * projected
  return x.astype(x_ref.dtype), attention_factor, factor(1, 2)


def _for_hidden_chunks(options, part, scalars, weights, rows: int):
  """Decorates a function of columns of hidden channels and of their factors of dropout.

  It is called for a few channels at a time, as a loop, which compiles faster.
  """
  row = _place(options)[1]
  hidden = weights.kernel1.shape[1]
  size = _chunk(hidden)

  def decorate(function):
    @pl.loop(0, hidden // size)
    def _(index):
      first = pl.multiple_of(index * size, size)
      start, shape = (row, part * hidden + first), (rows, size)
      dropped = _dropped(options, scalars[1], 1, start, shape, options.parts * hidden)
      function(pl.ds(first, size), dropped)

  return decorate


def _dropped(options, seeds_ref, layer: int, start, shape, columns: int | None = None):
  """Returns factors of dropout after a linear layer; 1 without dropout."""
  if not options.dropout_rate:
    return 1.0
  seed = seeds_ref[_place(options)[0], layer]
  return dropout_factors(seed, start, shape, columns or shape[1], options.dropout_rate)


# Shared.


def _call(
  kernel,
  options: Options,
  rows,
  parameters,
  outputs,
  *,
  sums=(),
  scalars=(),
  flops: int,
) -> list[jax.Array]:
  """Calls a kernel for all rows, a few at a time.

  The kernel gets the options and lists of references: `scalars`, `rows`, `parameters`, `outputs`,
  `sums`; `project_mlp` also scratch memory for float32 rows.

  Args:
    rows: arrays `[rows, channels]`.
    parameters: float32 arrays that every call sees whole, kernels in the dtype of the rows.
    outputs: shapes of the results per row.
    sums: arrays of the shapes of float32 results that are summed over all rows.
    scalars: arrays in scalar memory.
  """
  total, channels = rows[0].shape
  # Cores of a chip share the steps, and sum by themselves.
  splits = cores() if total // options.step % cores() == 0 else 1
  steps = total // options.step // splits
  parameters = [x if len(x) == 1 else x.astype(rows[0].dtype) for x in parameters]
  counts = [len(scalars), len(rows), len(parameters), len(outputs), len(sums)]

  def body(*refs):
    refs = list(refs)
    groups = [[refs.pop(0) for _ in range(count)] for count in counts]

    @pl.when(pl.program_id(1) == 0)
    def _():
      for ref in groups[-1]:
        ref[...] = jnp.zeros_like(ref)

    kernel(options, *groups, *refs)

  tile = pl.BlockSpec((options.step, channels), lambda core, step, *_: (core * steps + step, 0))
  # The parameters stay the same, so one buffer is enough.
  whole = [
    pl.BlockSpec(x.shape, lambda *_: (0, 0), pipeline_mode=pl.Buffered(1)) for x in parameters
  ]
  shapes = [
    *outputs, *[jax.ShapeDtypeStruct((splits, *x.shape), jnp.float32) for x in sums]
  ]  # fmt: skip
  arrays = [*rows, *parameters]
  results = pl.pallas_call(
    body,
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=len(scalars),
      grid=(splits, steps),
      in_specs=[tile] * len(rows) + whole,
      out_specs=[tile] * len(outputs)
      + [pl.BlockSpec((None, *x.shape), lambda core, *_: (core, 0, 0)) for x in sums],
      scratch_shapes=[pltpu.VMEM((options.step, channels), jnp.float32)] if scalars else [],
    ),
    out_shape=shapes,
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=memory_limit()
    ),
    cost_estimate=pl.CostEstimate(
      flops=flops,
      transcendentals=0,
      bytes_accessed=sum(math.prod(x.shape) * x.dtype.itemsize for x in (*arrays, *shapes)),
    ),
    interpret=options.interpret,
    name=getattr(kernel, "func", kernel).__name__.strip("_"),
  )(*scalars, *arrays)
  return [*results[: len(outputs)], *[x.sum(0) for x in results[len(outputs) :]]]


def _place(options: Options):
  """Returns the example that the rows of a step belong to, and the number of the first in it."""
  step = pl.program_id(0) * pl.num_programs(1) + pl.program_id(1)
  steps = jnp.int32(options.rows // options.step)
  return jax.lax.div(step, steps), jax.lax.rem(step, steps) * options.step


def _normalize(x, epsilon: float):
  """Returns rows of mean 0 and variance 1, and the inverse standard deviations."""
  x = x.astype(jnp.float32)
  x -= jnp.mean(x, axis=1, keepdims=True)
  inverse = jax.lax.rsqrt(jnp.mean(x * x, axis=1, keepdims=True) + epsilon)
  return x * inverse, inverse


def _normalize_gradient(gradient, normal, inverse):
  along = jnp.mean(gradient * normal, axis=1, keepdims=True)
  return inverse * (gradient - jnp.mean(gradient, axis=1, keepdims=True) - normal * along)


def _column_sums(x):
  return jnp.sum(x.astype(jnp.float32), axis=0, keepdims=True)


def _normal_probability(x):
  return 0.5 * (1.0 + jax.lax.erf(x * math.sqrt(0.5)))


def _normal_density(x):
  return jnp.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
