"""Common parts of the TPU kernels: memory and cores of the chip, matrix products, dropout."""

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

from vswin_jax.attention.operations import current_platform

LANES = 128
SUBLANES = 8


def unsupported(dtype, interpret: bool) -> str | None:
  """Returns why no kernel can compute in a dtype on the platform; None if there may be one."""
  if not interpret and current_platform() != "tpu":
    return f"{current_platform()} is no TPU"
  if jnp.dtype(dtype) == jnp.float16:
    return "TPUs do not compute in float16"
  return None


def core_memory() -> int:
  """Returns the bytes of memory of a TPU core; elsewhere, where kernels are interpreted, v5e's."""
  if current_platform() == "tpu":
    return pltpu.get_tpu_info().vmem_capacity_bytes
  return 128 * 2**20


def cores() -> int:
  """Returns the number of cores of a device, which share the "parallel" axes of a kernel's grid."""
  return pltpu.get_tpu_info().num_cores if current_platform() == "tpu" else 1


def memory_limit() -> int:
  """Returns the bytes that a kernel may take; the rest is the compiler's."""
  return core_memory() * 7 // 8


def lacks_memory(needed: int) -> str | None:
  """Returns a message if a kernel needs more bytes of memory than there are; None if not."""
  if needed <= memory_limit():
    return None
  return f"a kernel needs about {needed / 2**20:.0f} MiB of the core's {core_memory() / 2**20:.0f}"


def round_up(size: int, multiple: int) -> int:
  return -(-size // multiple) * multiple


def heads_per_group(heads: int, head_dim: int) -> int:
  """Returns how many heads fill a tile of lanes; all if heads do not fill tiles."""
  if head_dim % LANES == 0:
    return 1
  fills_tiles = LANES % head_dim == 0 and heads * head_dim % LANES == 0
  return LANES // head_dim if fills_tiles else heads


def only_head(x, head, head_dim: int):
  """Returns `x` `[rows, lanes]`, of a group of heads, with zeros in the lanes of all but one."""
  if x.shape[1] == head_dim:
    return x
  lane = jax.lax.broadcasted_iota(jnp.int32, (1, x.shape[1]), 1)
  own = (lane >= head * head_dim) & (lane < (head + 1) * head_dim)
  return jnp.where(own, x, jnp.zeros_like(x))


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


def dropout_factors(seed, start, shape: tuple[int, int], columns: int, rate: float):
  """Returns factors 0, for a random share `rate` of a matrix's elements, or `1 / (1 - rate)`.

  They are a hash of the element's number, so that the backward pass computes the same ones, and
  that they do not depend on the parts in which a kernel visits the matrix.

  Args:
    seed: int32, of the example and the layer.
    start: row and column of the matrix at which this part begins.
    shape: of this part.
    columns: of the matrix.
  """
  row = jax.lax.broadcasted_iota(jnp.int32, (shape[0], 1), 0) + start[0]
  column = jax.lax.broadcasted_iota(jnp.int32, (1, shape[1]), 1) + start[1]
  bits = (row * columns + column) ^ seed
  # lowbias32 by Chris Wellons: https://nullprogram.com/blog/2018/07/31/
  for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B - 2**32)):
    bits = (bits ^ jax.lax.shift_right_logical(bits, shift)) * jnp.int32(factor)
  bits ^= jax.lax.shift_right_logical(bits, 16)
  kept = jax.lax.shift_right_logical(bits, 8) >= round(rate * 2**24)
  return jnp.where(kept, 1.0 / (1.0 - rate), 0.0)
