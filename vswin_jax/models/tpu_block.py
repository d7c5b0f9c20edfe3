"""Transformer blocks for TPUs: all that is not attention as two Pallas kernels.

For rows x of tokens and the stochastic depth factors a and b of their example:

  before attention   n = LN1(x)     q, k, v = n Wqkv + cqkv
  after attention    y = x + a (o Wp + cp)     z = y + b (gelu(LN2(y) W1 + c1) W2 + c2)

The backward kernels compute normalized values and hidden layers again, so that only x, q, k, v and
o are kept. Gradients of parameters are summed in float32 on the chip over all rows.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from vswin_jax.attention import tpu, tpu_windows
from vswin_jax.attention.tpu import product
from vswin_jax.attention.windows import Size3D, WindowLayout

_MAX_ROWS = 512
# Rows of a bfloat16 tile.
_ROW_MULTIPLE = 16
_HIDDEN_CHUNK = 512


def rows_per_step(rows: int) -> int | None:
  """Returns the largest divisor of a number of rows that a kernel can take; None: there is none."""
  sizes = range(_ROW_MULTIPLE, min(rows, _MAX_ROWS) + 1, _ROW_MULTIPLE)
  return max((size for size in sizes if rows % size == 0), default=None)


@dataclasses.dataclass(frozen=True)
class Options:
  """Static options of the kernels.

  Attributes:
    epsilon: of LayerNorm.
    rows: rows of an example.
    interpret: whether to interpret the kernels, for tests on a CPU.
  """

  epsilon: float
  rows: int
  interpret: bool = False


def why_not(
  layout: WindowLayout, window: Size3D, channels: int, heads: int, mlp_ratio: float
) -> str | None:
  """Returns why the kernels can't compute a block; None if they can."""
  if layout.padded_grid != layout.grid:
    return f"a grid {layout.grid} that is padded to {layout.padded_grid} has rows to leave out"
  if rows_per_step(layout.windows * layout.tokens) is None:
    return f"{layout.windows * layout.tokens} tokens are no multiple of {_ROW_MULTIPLE}"
  return lacks_memory(channels, mlp_ratio) or tpu.why_not(layout, window, channels, heads)


def lacks_memory(channels: int, mlp_ratio: float) -> str | None:
  """Returns that a core has too little memory for the kernels of a width; None if it has not."""
  # Kernels of the projection and the MLP in bfloat16, and their gradients in float32; in between
  # arrays of the rows of a step.
  kernels = (1 + 2 * mlp_ratio) * channels**2
  needed = (2 + 4) * kernels + 4 * _MAX_ROWS * (8 * channels + 6 * _HIDDEN_CHUNK)
  return tpu.lacks_memory(int(needed))


def run_block(
  x: jax.Array,
  factors: jax.Array,
  parameters: dict,
  window: Size3D,
  layout: WindowLayout,
  epsilon: float,
  *,
  interpret: bool = False,
) -> jax.Array:
  """Computes a block of Video Swin without dropout; see `why_not` for what it can't compute.

  Args:
    x: `[batch, height, width, time, channels]`.
    factors: float32 `[batch, 2]`, factors of both residual branches: stochastic depth.
    parameters: of the block, a tree as its modules.
    window: the configured window.
    layout: partition of the grid into windows.
    epsilon: of LayerNorm.
    interpret: whether to interpret the kernels, for tests on a CPU.
  """
  attention, mlp = parameters["attention"], parameters["mlp"]
  windows = tpu_windows.to_windows(x, layout, interpret)
  rows = windows.reshape(-1, x.shape[-1])
  options = Options(epsilon, layout.windows * layout.tokens, interpret)
  *qkv, rows = norm_qkv(options, rows, flatten_parameters(parameters["norm1"], attention["qkv"]))
  attended = tpu.attend(
    *[part.reshape(-1, *windows.shape[2:]) for part in qkv],
    attention["relative_position_bias_table"],
    window,
    layout,
    interpret=interpret,
  )
  after = flatten_parameters(attention["proj"], parameters["norm2"], mlp["fc1"], mlp["fc2"])
  rows = project_mlp(options, attended.reshape(rows.shape), rows, factors, after)
  return tpu_windows.from_windows(rows.reshape(windows.shape), layout, interpret)


def flatten_parameters(*layers: dict) -> tuple[jax.Array, ...]:
  """Returns the parameters of layers as float32 matrices, in the order that the kernels take."""
  names = ("scale", "kernel", "bias")
  values = [layer[name] for layer in layers for name in names if name in layer]
  return tuple(jnp.atleast_2d(value.astype(jnp.float32)) for value in values)


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
  return (*_call(_norm_qkv_kernel, options, [x], _cast(parameters, x), outputs, flops=flops), x)


def _norm_qkv_forward(options, x, parameters):
  return norm_qkv(options, x, parameters), (x, parameters)


def _norm_qkv_backward(options, residuals, gradients):
  x, parameters = residuals
  sums = [jax.ShapeDtypeStruct(value.shape, jnp.float32) for value in parameters]
  flops = 12 * x.size * x.shape[1]
  x_gradient, *sums = _call(
    _norm_qkv_gradient_kernel,
    options,
    [x, *gradients],
    _cast(parameters, x),
    [jax.ShapeDtypeStruct(x.shape, x.dtype)],
    sums,
    flops=flops,
  )
  return x_gradient, tuple(sums)


norm_qkv.defvjp(_norm_qkv_forward, _norm_qkv_backward)


def _norm_qkv_kernel(
  options, x_ref, scale_ref, shift_ref, kernel_ref, bias_ref, query_ref, key_ref, value_ref
):
  normal, _ = _normalize(x_ref[...], options.epsilon)
  inputs = (normal * scale_ref[...] + shift_ref[...]).astype(x_ref.dtype)
  channels = inputs.shape[1]
  for index, output_ref in enumerate((query_ref, key_ref, value_ref)):
    columns = pl.ds(index * channels, channels)
    output = product(inputs, kernel_ref[:, columns]) + bias_ref[:, columns]
    output_ref[...] = output.astype(output_ref.dtype)


def _norm_qkv_gradient_kernel(
  options, x_ref, query_ref, key_ref, value_ref, residual_ref, scale_ref, shift_ref, kernel_ref,
  bias_ref, x_gradient_ref, scale_sum, shift_sum, kernel_sum, bias_sum,
):  # fmt: skip
  del bias_ref
  normal, inverse = _normalize(x_ref[...], options.epsilon)
  inputs = (normal * scale_ref[...] + shift_ref[...]).astype(x_ref.dtype)
  channels = inputs.shape[1]
  gradient = jnp.zeros(normal.shape, jnp.float32)
  for index, output_ref in enumerate((query_ref, key_ref, value_ref)):
    columns = pl.ds(index * channels, channels)
    kernel_sum[:, columns] += product(inputs, output_ref[...], transpose=(True, False))
    bias_sum[:, columns] += _column_sums(output_ref[...])
    gradient += product(output_ref[...], kernel_ref[:, columns], transpose=(False, True))
  scale_sum[...] += _column_sums(gradient * normal)
  shift_sum[...] += _column_sums(gradient)
  x_gradient = _normalize_gradient(gradient * scale_ref[...], normal, inverse)
  x_gradient_ref[...] = (x_gradient + residual_ref[...].astype(jnp.float32)).astype(x_ref.dtype)


# After attention.


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def project_mlp(
  options: Options, attended: jax.Array, x: jax.Array, factors: jax.Array, parameters: tuple
) -> jax.Array:
  """Applies the projection of attention, the MLP, and both residual connections.

  Args:
    attended: `[rows, channels]`, the output of attention.
    x: the same shape, the input of the block.
    factors: float32 `[examples, 2]`: factors of both residual branches. They have no gradient.
    parameters: float32 kernel and bias of the projection, scale and bias of the LayerNorm, kernels
      and biases of both layers of the MLP; all but kernels `[1, channels]`.

  Returns:
    `[rows, channels]`, the dtype of `x`.
  """
  output = jax.ShapeDtypeStruct(x.shape, x.dtype)
  hidden = parameters[4].shape[1]
  flops = 2 * x.size * (x.shape[1] + 2 * hidden)
  inputs, parameters = [attended, x], _cast(parameters, x)
  return _call(_project_mlp_kernel, options, inputs, parameters, [output], [], factors, flops)[0]


def _project_mlp_forward(options, attended, x, factors, parameters):
  output = project_mlp(options, attended, x, factors, parameters)
  return output, (attended, x, factors, parameters)


def _project_mlp_backward(options, residuals, gradient):
  attended, x, factors, parameters = residuals
  output = jax.ShapeDtypeStruct(x.shape, x.dtype)
  sums = [jax.ShapeDtypeStruct(value.shape, jnp.float32) for value in parameters]
  hidden = parameters[4].shape[1]
  flops = 2 * x.size * (3 * x.shape[1] + 5 * hidden)
  attended_gradient, x_gradient, *sums = _call(
    _project_mlp_gradient_kernel,
    options,
    [attended, x, gradient],
    _cast(parameters, x),
    [output] * 2,
    sums,
    factors,
    flops,
  )
  return attended_gradient, x_gradient, None, tuple(sums)


project_mlp.defvjp(_project_mlp_forward, _project_mlp_backward)


def _project_mlp_kernel(
  options, factors_ref, attended_ref, x_ref, projection_ref, projection_bias_ref, scale_ref,
  shift_ref, kernel1_ref, bias1_ref, kernel2_ref, bias2_ref, output_ref,
):  # fmt: skip
  attention_factor, mlp_factor = _factors(options, factors_ref, x_ref)
  projected = product(attended_ref[...], projection_ref[...]) + projection_bias_ref[...]
  x = (x_ref[...].astype(jnp.float32) + attention_factor * projected).astype(x_ref.dtype)
  normal, _ = _normalize(x, options.epsilon)
  inputs = (normal * scale_ref[...] + shift_ref[...]).astype(x.dtype)
  output = jnp.zeros(x.shape, jnp.float32) + bias2_ref[...]
  for columns in _hidden_chunks(kernel1_ref.shape[1]):
    hidden = product(inputs, kernel1_ref[:, columns]) + bias1_ref[:, columns]
    activated = hidden * _normal_probability(hidden)
    output += product(activated.astype(x.dtype), kernel2_ref[columns, :])
  output_ref[...] = (x.astype(jnp.float32) + mlp_factor * output).astype(x.dtype)


def _project_mlp_gradient_kernel(
  options, factors_ref, attended_ref, x_ref, gradient_ref, projection_ref, projection_bias_ref,
  scale_ref, shift_ref, kernel1_ref, bias1_ref, kernel2_ref, bias2_ref, attended_gradient_ref,
  x_gradient_ref, projection_sum, projection_bias_sum, scale_sum, shift_sum, kernel1_sum, bias1_sum,
  kernel2_sum, bias2_sum,
):  # fmt: skip
  del bias2_ref
  attention_factor, mlp_factor = _factors(options, factors_ref, x_ref)
  projected = product(attended_ref[...], projection_ref[...]) + projection_bias_ref[...]
  x = (x_ref[...].astype(jnp.float32) + attention_factor * projected).astype(x_ref.dtype)
  normal, inverse = _normalize(x, options.epsilon)
  inputs = (normal * scale_ref[...] + shift_ref[...]).astype(x.dtype)

  gradient = gradient_ref[...].astype(jnp.float32)
  mlp_gradient = gradient * mlp_factor
  bias2_sum[...] += _column_sums(mlp_gradient)
  mlp_gradient = mlp_gradient.astype(x.dtype)
  inputs_gradient = jnp.zeros(x.shape, jnp.float32)
  for columns in _hidden_chunks(kernel1_ref.shape[1]):
    hidden = product(inputs, kernel1_ref[:, columns]) + bias1_ref[:, columns]
    probability = _normal_probability(hidden)
    activated = (hidden * probability).astype(x.dtype)
    kernel2_sum[columns, :] += product(activated, mlp_gradient, transpose=(True, False))
    slope = probability + hidden * _normal_density(hidden)
    hidden_gradient = (
      product(mlp_gradient, kernel2_ref[columns, :], transpose=(False, True)) * slope
    )
    bias1_sum[:, columns] += _column_sums(hidden_gradient)
    hidden_gradient = hidden_gradient.astype(x.dtype)
    kernel1_sum[:, columns] += product(inputs, hidden_gradient, transpose=(True, False))
    inputs_gradient += product(hidden_gradient, kernel1_ref[:, columns], transpose=(False, True))
  scale_sum[...] += _column_sums(inputs_gradient * normal)
  shift_sum[...] += _column_sums(inputs_gradient)
  gradient += _normalize_gradient(inputs_gradient * scale_ref[...], normal, inverse)

  x_gradient_ref[...] = gradient.astype(x.dtype)
  projected_gradient = gradient * attention_factor
  projection_bias_sum[...] += _column_sums(projected_gradient)
  projected_gradient = projected_gradient.astype(x.dtype)
  projection_sum[...] += product(attended_ref[...], projected_gradient, transpose=(True, False))
  attended_gradient = product(projected_gradient, projection_ref[...], transpose=(False, True))
  attended_gradient_ref[...] = attended_gradient.astype(x.dtype)


# Shared.


def _cast(parameters: tuple, x: jax.Array) -> list[jax.Array]:
  """Returns the parameters with kernels in the dtype of the rows."""
  return [value if len(value) == 1 else value.astype(x.dtype) for value in parameters]


def _call(
  kernel, options: Options, rows, parameters, outputs, sums=(), factors=None, flops: int = 0
) -> list[jax.Array]:
  """Calls a kernel for all rows, a few at a time.

  Args:
    rows: arrays `[rows, channels]`.
    parameters: arrays that every call sees whole.
    outputs: shapes of the results per row.
    sums: shapes of the results that are summed over all rows.
    factors: numbers in scalar memory, the first argument of the kernel; None: no such argument.
  """
  total, channels = rows[0].shape
  size = rows_per_step(options.rows)
  scalars = [] if factors is None else [factors]

  def body(*refs):
    summed = refs[len(refs) - len(sums) :]

    @pl.when(pl.program_id(0) == 0)
    def _():
      for ref in summed:
        ref[...] = jnp.zeros_like(ref)

    kernel(options, *refs)

  tile = pl.BlockSpec((size, channels), lambda step, *_: (step, 0))

  def whole(x, **options):
    return pl.BlockSpec(x.shape, lambda *_: (0, 0), **options)

  shapes = [*outputs, *sums]
  arrays = [*rows, *parameters]
  return pl.pallas_call(
    body,
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=len(scalars),
      grid=(total // size,),
      # The parameters stay the same, so one buffer is enough.
      in_specs=[tile] * len(rows) + [whole(x, pipeline_mode=pl.Buffered(1)) for x in parameters],
      out_specs=[tile] * len(outputs) + [whole(x) for x in sums],
    ),
    out_shape=shapes,
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("arbitrary",), vmem_limit_bytes=tpu.memory_limit()
    ),
    cost_estimate=pl.CostEstimate(
      flops=flops,
      transcendentals=0,
      bytes_accessed=sum(math.prod(x.shape) * x.dtype.itemsize for x in (*arrays, *shapes)),
    ),
    interpret=options.interpret,
    name=kernel.__name__.strip("_"),
  )(*scalars, *arrays)


def _factors(options: Options, factors_ref, x_ref):
  """Returns the factors of the residual branches of the example that the rows belong to."""
  steps = options.rows // x_ref.shape[0]
  example = jax.lax.div(pl.program_id(0), jnp.int32(steps))
  return factors_ref[example, 0], factors_ref[example, 1]


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


def _hidden_chunks(hidden: int):
  """Yields slices of the hidden channels, few enough for the memory of a core."""
  for start in range(0, hidden, _HIDDEN_CHUNK):
    yield pl.ds(start, min(_HIDDEN_CHUNK, hidden - start))


def _normal_probability(x):
  return 0.5 * (1.0 + jax.lax.erf(x * math.sqrt(0.5)))


def _normal_density(x):
  return jnp.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
