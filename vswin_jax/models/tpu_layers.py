"""Layers of a transformer block around attention for TPUs, as Pallas kernels over rows of tokens.

For rows x of tokens, and the stochastic depth factors a and b of their example:

  before attention   n = LN1(x)     q, k, v = n Wqkv + cqkv
  after attention    y = x + a (o Wp + cp)     z = y + b (gelu(LN2(y) W1 + c1) W2 + c2)

with dropout after Wp, gelu and W2. The backward kernels compute normalized values and hidden layers
again, so that only x, q, k, v and o are kept. Gradients of parameters are summed in float32 on the
chip over all rows. Where these do not fit, the hidden channels are divided among several calls.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vswin_jax.attention.tpu_core import LANES, dropout_factors, product
from vswin_jax.models.normal_distribution import normal_density, normal_probability
from vswin_jax.models.tpu_rows import (
  Options,
  call_kernel,
  chunk,
  column_sums,
  first_row,
  for_chunks,
  largest_step,
  normalize,
  normalize_gradient,
)

_MOST_PARTS = 4
# Inputs and outputs of a kernel, twice, and what is between them, in numbers per channel: measured
# with the compiler.
_PER_ROW = 22


def norm_qkv_step(rows: int, channels: int, itemsize: int) -> int | None:
  """Returns the rows that the kernels of `norm_qkv` can take at a time; None: there is no number.

  Args:
    rows: rows of an example.
    channels: of a row.
    itemsize: bytes per number.
  """
  return largest_step(rows, 3 * channels**2 * (itemsize + 4), _PER_ROW * channels * itemsize)


def project_mlp_step(
  rows: int, channels: int, hidden: int, itemsize: int
) -> tuple[int, int] | None:
  """Returns rows at a time and parts of the hidden channels for the kernels of `project_mlp`.

  None: there is no such number. Arguments as in `norm_qkv_step`.
  """
  for parts in range(1, _MOST_PARTS + 1):
    if parts == 1 or hidden % (parts * LANES) == 0:
      weights = channels * (channels + 2 * hidden // parts) * (itemsize + 4)
      per_row = (_PER_ROW * channels + 5 * chunk(hidden // parts, channels)) * itemsize
      # Twice the float32 sum of the parts before.
      step = largest_step(rows, weights, per_row + (8 * channels if parts > 1 else 0))
      if step:
        return step, parts
  return None


def why_not(rows: int, channels: int, hidden: int, itemsize: int) -> str | None:
  """Returns why the kernels can't compute rows; None if they can. Arguments as for the steps."""
  norm_step = norm_qkv_step(rows, channels, itemsize)
  if norm_step and project_mlp_step(rows, channels, hidden, itemsize):
    return None
  return (
    f"no large enough divisor of {rows} rows fits the memory of a core beside the weights of "
    f"{channels} channels"
  )


# Before attention.


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def norm_qkv(options: Options, x: jax.Array, parameters: tuple) -> tuple[jax.Array, jax.Array]:
  """Returns queries, keys and values of rows, `[3, rows, channels]`, and the rows.

  The rows pass through so that the gradient of the residual path is added in the same kernel.

  Args:
    x: `[rows, channels]`.
    parameters: float32 scale and bias of the LayerNorm, `[1, channels]`, kernel
      `[channels, 3 * channels]` and bias `[1, 3 * channels]` of the linear layer.
  """
  output = jax.ShapeDtypeStruct((3, *x.shape), x.dtype)
  flops = 6 * x.size * x.shape[1]
  return call_kernel(_norm_qkv_kernel, options, [x], parameters, [output], flops=flops)[0], x


def _norm_qkv_forward(options, x, parameters):
  return norm_qkv(options, x, parameters), (x, parameters)


def _norm_qkv_backward(options, residuals, gradients):
  x, parameters = residuals
  x_gradient, *sums = call_kernel(
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
  (x_ref,), (scale_ref, shift_ref, kernel_ref, bias_ref), (output_ref,) = rows, parameters, outputs
  _, _, inputs = _norm_tokens(options, x_ref, scale_ref, shift_ref)

  @for_chunks(3, x_ref.shape[1], x_ref.shape[1])
  def _(part, columns, all_columns):
    output = product(inputs, kernel_ref[:, all_columns]) + bias_ref[:, all_columns]
    output_ref[part, :, columns] = output.astype(output_ref.dtype)


def _norm_qkv_gradient_kernel(options, _, rows, parameters, outputs, sums, total_ref):
  (x_ref, gradient_ref, residual_ref), (scale_ref, shift_ref, kernel_ref, _) = rows, parameters
  (x_gradient_ref,), (scale_sum, shift_sum, kernel_sum, bias_sum) = outputs, sums
  normal, inverse, inputs = _norm_tokens(options, x_ref, scale_ref, shift_ref)
  total_ref[...] = jnp.zeros_like(total_ref)

  @for_chunks(3, x_ref.shape[1], x_ref.shape[1])
  def _(part, columns, all_columns):
    gradient = gradient_ref[part, :, columns]
    kernel_sum[:, all_columns] += product(inputs, gradient, transpose=(True, False))
    bias_sum[:, all_columns] += column_sums(gradient)
    total_ref[...] += product(gradient, kernel_ref[:, all_columns], transpose=(False, True))

  gradient = _zero_padding(options, total_ref[...])
  scale_sum[...] += column_sums(gradient * normal)
  shift_sum[...] += column_sums(gradient)
  x_gradient = normalize_gradient(gradient * scale_ref[...], normal, inverse)
  x_gradient_ref[...] = (x_gradient + residual_ref[...].astype(jnp.float32)).astype(x_ref.dtype)


def _norm_tokens(options, x_ref, scale_ref, shift_ref):
  """Returns rows of mean 0 and variance 1, the inverse deviations, and the layer's output."""
  normal, inverse = normalize(x_ref[...], options.epsilon)
  inputs = _zero_padding(options, normal * scale_ref[...] + shift_ref[...])
  return normal, inverse, inputs.astype(x_ref.dtype)


def _zero_padding(options: Options, x):
  """Zeros the rows that are padding, by the place of each on the grid, from which it follows."""
  layout = options.layout
  if layout.padded_grid == layout.grid:
    return x
  rest = jax.lax.broadcasted_iota(jnp.int32, (len(x), 1), 0) + first_row(options)[1]
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
    index = window * step + inside[axis] + layout.shift[axis]
    index = jnp.where(index >= size, index - size, index)
    below = index < layout.grid[axis]
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
    partial = call_kernel(
      functools.partial(_project_mlp_kernel, part),
      options,
      [attended, x, *partial],
      parameters_part,
      [jax.ShapeDtypeStruct(x.shape, x.dtype if is_last else jnp.float32)],
      scalars=[factors.reshape(-1), seeds.reshape(-1)],
      flops=2 * x.size * (x.shape[1] + 2 * parameters_part.kernel1.shape[1]),
    )
  return partial[0]


def _project_mlp_forward(options, *arguments):
  return project_mlp(options, *arguments), arguments


def _project_mlp_backward(options, residuals, gradient):
  attended, x, factors, seeds, parameters = residuals

  def call(part, parameters_part, partial, outputs, sums):
    return call_kernel(
      functools.partial(_project_mlp_gradient_kernel, part),
      options,
      [attended, x, gradient, *partial],
      parameters_part,
      [jax.ShapeDtypeStruct(x.shape, dtype) for dtype in outputs],
      sums=sums,
      scalars=[factors.reshape(-1), seeds.reshape(-1)],
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
  normal, _ = normalize(x, options.epsilon)
  inputs = (normal * weights.scale[...] + weights.shift[...]).astype(x.dtype)
  total_ref[...] = partial[0][...] if partial else jnp.zeros_like(total_ref)

  hidden_channels = weights.kernel1.shape[1]
  dropout = _dropout(options, scalars, 1, options.parts * hidden_channels)

  @for_chunks(1, hidden_channels, x.shape[1])
  def _(_, columns, __):
    dropped = dropout(part * hidden_channels + columns.start, columns.size)
    hidden = product(inputs, weights.kernel1[:, columns]) + weights.bias1[:, columns]
    activated = hidden * normal_probability(hidden) * dropped
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
  normal, inverse = normalize(x, options.epsilon)
  inputs = (normal * weights.scale[...] + weights.shift[...]).astype(x.dtype)
  inputs_gradient_ref[...] = partial[0][...] if partial else jnp.zeros_like(inputs_gradient_ref)
  gradient = gradient_ref[...].astype(jnp.float32)
  mlp_gradient = gradient * mlp_factor
  if is_last:
    sums.bias2[...] += column_sums(mlp_gradient)
  mlp_gradient = mlp_gradient.astype(x.dtype)

  hidden_channels = weights.kernel1.shape[1]
  dropout = _dropout(options, scalars, 1, options.parts * hidden_channels)

  @for_chunks(1, hidden_channels, x.shape[1])
  def _(_, columns, __):
    dropped = dropout(part * hidden_channels + columns.start, columns.size)
    kernel1, kernel2 = weights.kernel1[:, columns], weights.kernel2[columns, :]
    hidden = product(inputs, kernel1) + weights.bias1[:, columns]
    probability = normal_probability(hidden)
    activated = (hidden * probability * dropped).astype(x.dtype)
    sums.kernel2[columns, :] += product(activated, mlp_gradient, transpose=(True, False))
    slope = (probability + hidden * normal_density(hidden)) * dropped
    hidden_gradient = product(mlp_gradient, kernel2, transpose=(False, True)) * slope
    sums.bias1[:, columns] += column_sums(hidden_gradient)
    hidden_gradient = hidden_gradient.astype(x.dtype)
    sums.kernel1[:, columns] += product(inputs, hidden_gradient, transpose=(True, False))
    inputs_gradient_ref[...] += product(hidden_gradient, kernel1, transpose=(False, True))

  inputs_gradient = inputs_gradient_ref[...]
  if not is_last:
    outputs[0][...] = inputs_gradient
    return
  attended_gradient_ref, x_gradient_ref = outputs
  sums.scale[...] += column_sums(inputs_gradient * normal)
  sums.shift[...] += column_sums(inputs_gradient)
  gradient += normalize_gradient(inputs_gradient * weights.scale[...], normal, inverse)
  x_gradient_ref[...] = gradient.astype(x.dtype)
  projected_gradient = gradient * attention_factor
  sums.projection_bias[...] += column_sums(projected_gradient)
  projected_gradient = projected_gradient.astype(x.dtype)
  sums.projection[...] += product(attended_ref[...], projected_gradient, transpose=(True, False))
  attended_gradient = product(projected_gradient, weights.projection[...], transpose=(False, True))
  attended_gradient_ref[...] = attended_gradient.astype(x.dtype)


def _attention_residual(options, scalars, attended_ref, x_ref, weights):
  """Adds the projection to rows; returns them and the factors of both branches, with dropout."""
  example, _ = first_row(options)

  def factor(index: int, layer: int):
    dropped = _dropout(options, scalars, layer, x_ref.shape[1])
    return scalars[0][2 * example + index] * dropped(0, x_ref.shape[1])

  attention_factor = factor(0, 0)
  projected = product(attended_ref[...], weights.projection[...]) + weights.projection_bias[...]
  x = x_ref[...].astype(jnp.float32) + attention_factor * projected
  return x.astype(x_ref.dtype), attention_factor, factor(1, 2)


def _dropout(options, scalars, layer: int, columns: int):
  """Returns a function: columns of a layer of `columns` -> their factors; 1 without dropout."""
  if not options.dropout_rate:
    return lambda first, size: 1.0
  # Loops can't ask where the kernel is on its grid.
  example, row = first_row(options)
  seed = scalars[1][3 * example + layer]

  def factors(first, size: int):
    shape = (options.step, size)
    return dropout_factors(seed, (row, first), shape, columns, options.dropout_rate)

  return factors
