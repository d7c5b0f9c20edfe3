"""LayerNorm whose backward pass is a Pallas kernel for NVIDIA GPUs.

For rows x of c channels and standard deviation d, normalized rows n, gradients g of the output, and
h = g scale:

  dx = (h - Σ h / c - n Σ h n / c) / d     dscale = Σ over rows of g n     dbias = Σ over rows of g

XLA would compute the three sums apart and read x and g again for each.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

# Elements that a program holds at once, and the number of programs, each with its part of the sums.
_ELEMENTS = 4096
_PROGRAMS = 1024


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def norm_and_input(
  x: jax.Array, parameters: tuple[jax.Array, jax.Array], epsilon: float, interpret: bool
) -> tuple[jax.Array, jax.Array]:
  """Returns the LayerNorm of `x`, and `x`.

  The input passes through so that the kernel adds the gradient of a residual connection too.

  Args:
    x: `[..., channels]`.
    parameters: float32 scale and bias, `[channels]`.
    epsilon: added to the variance.
    interpret: whether to interpret the kernel, for tests on a CPU.
  """
  scale, bias = parameters
  normal, _ = _normalize(x.astype(jnp.float32), x.shape[-1], epsilon)
  return (normal * scale + bias).astype(x.dtype), x


def _forward(x, parameters, epsilon, interpret):
  return norm_and_input(x, parameters, epsilon, interpret), (x, parameters)


def _backward(epsilon, interpret, residuals, gradients):
  x, (scale, bias) = residuals
  channels = x.shape[-1]
  rows, width = x.size // channels, pl.next_power_of_2(channels)
  step = _divisor(rows, _ELEMENTS // width, powers_of_2=True)
  programs = _divisor(rows // step, _PROGRAMS)
  x_gradient, sums = pl.pallas_call(
    functools.partial(norm_gradient_kernel, channels, epsilon, step, rows // step // programs),
    grid=(programs,),
    out_shape=[
      jax.ShapeDtypeStruct((rows, channels), x.dtype),
      jax.ShapeDtypeStruct((programs, 2, width), jnp.float32),
    ],
    compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=2),
    interpret=interpret,
    name="norm_gradient_kernel",
  )(*(array.reshape(rows, channels) for array in (x, *gradients)), scale.reshape(1, -1))
  sums = sums.sum(0)[:, :channels]
  return x_gradient.reshape(x.shape), (sums[0].astype(scale.dtype), sums[1].astype(bias.dtype))


norm_and_input.defvjp(_forward, _backward)


def _divisor(number: int, limit: int, powers_of_2: bool = False) -> int:
  """Returns the largest divisor of a number, or the largest power of two, up to a limit."""
  sizes = range(1, max(limit, 1) + 1)
  return max(
    size for size in sizes if number % size == 0 and not (powers_of_2 and size & (size - 1))
  )


def norm_gradient_kernel(
  channels, epsilon, step, steps, x_ref, gradient_ref, residual_ref, scale_ref, x_gradient_ref,
  sums_ref,
):  # fmt: skip
  """Takes `steps` times `step` rows; the channels are padded to a power of two."""
  width = sums_ref.shape[2]
  program = pl.program_id(0)
  scale = _load(scale_ref, 0, 1, width, channels)

  def add_rows(index, sums):
    scale_sum, bias_sum = sums
    first = (program * steps + index) * step
    x, gradient, residual = (
      _load(ref, first, step, width, channels) for ref in (x_ref, gradient_ref, residual_ref)
    )
    normal, inverse = _normalize(x, channels, epsilon)
    scaled = gradient * scale
    along = (scaled * normal).sum(1, keepdims=True) / channels
    x_gradient = inverse * (scaled - scaled.sum(1, keepdims=True) / channels - normal * along)
    x_gradient = (x_gradient + residual).astype(x_gradient_ref.dtype)
    cells, mask = _cells(first, step, width, channels)
    plgpu.store(x_gradient_ref.at[cells], x_gradient, mask=mask)
    return scale_sum + (gradient * normal).sum(0), bias_sum + gradient.sum(0)

  zero = jnp.zeros(width, jnp.float32)
  scale_sum, bias_sum = jax.lax.fori_loop(0, steps, add_rows, (zero, zero))
  for index, total in enumerate((scale_sum, bias_sum)):
    plgpu.store(sums_ref.at[program, jnp.int32(index), pl.ds(0, width)], total)


def _normalize(x, channels: int, epsilon: float):
  """Returns rows of mean 0 and variance 1, and the inverse standard deviations.

  Args:
    x: float32 `[..., width]`, with zeros after `channels`.
  """
  x = x - x.sum(-1, keepdims=True) / channels
  if x.shape[-1] != channels:
    x = jnp.where(jnp.arange(x.shape[-1]) < channels, x, 0.0)
  inverse = jax.lax.rsqrt((x * x).sum(-1, keepdims=True) / channels + epsilon)
  return x * inverse, inverse


def _load(ref, first, rows: int, width: int, channels: int):
  """Returns rows in float32, with zeros after `channels`."""
  cells, mask = _cells(first, rows, width, channels)
  other = None if mask is None else 0.0
  return plgpu.load(ref.at[cells], mask=mask, other=other).astype(jnp.float32)


def _cells(first, rows: int, width: int, channels: int):
  """Returns the indices of rows, and a mask of the channels that exist; None: all of them do."""
  cells = pl.ds(first, rows), pl.ds(0, width)
  if width == channels:
    return cells, None
  return cells, jnp.broadcast_to((jnp.arange(width) < channels)[None, :], (rows, width))
