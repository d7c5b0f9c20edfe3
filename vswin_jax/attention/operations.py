"""Common parts of attention functions: products, dropout, the choice of an implementation."""

from collections.abc import Callable, Collection, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from vswin_jax.common.logging import log_once

# Kernels by platform, the preferred one first. Each leaves what it can't compute to others.
KERNELS = {"tpu": ("pallas_tpu",), "gpu": ("pallas_gpu", "cudnn")}


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def product(subscripts: str, left: jax.Array, right: jax.Array) -> jax.Array:
  """Returns the `einsum` of two arrays of one dtype, accumulated and returned in float32.

  Its gradients are products in that dtype too. By default, autodiff would multiply the float32
  cotangent and make every backward product a slow float32 one. (Differentiable in reverse mode
  only.)
  """
  return jnp.einsum(subscripts, left, right, preferred_element_type=jnp.float32)


def _product_forward(subscripts, left, right):
  return product(subscripts, left, right), (left, right)


def _product_backward(subscripts, operands, gradient):
  _, transpose = jax.vjp(partial(jnp.einsum, subscripts), *operands)
  return transpose(gradient.astype(operands[0].dtype))


product.defvjp(_product_forward, _product_backward)


def sum_over_windows(x: jax.Array) -> jax.Array:
  """Sums float32 `[batch, windows, ...]` over windows, as a matrix product with ones.

  A reduction over the second axis takes XLA longer than all the rest of attention on a CPU.
  """
  if x.shape[1] == 1:
    return x[:, 0]
  ones = jnp.ones(x.shape[1], x.dtype)
  total = jnp.einsum("w,bwx->bx", ones, x.reshape(*x.shape[:2], -1), precision="highest")
  return total.reshape(len(x), *x.shape[2:])


def dropout(
  x: jax.Array, rate: float, key: jax.Array | None, broadcast_axes: Sequence[int] = ()
) -> jax.Array:
  """Zeros a random share `rate` of the elements of `x` and scales up the others.

  Args:
    key: None: returns `x`.
    broadcast_axes: axes along which all elements share one draw.
  """
  return nnx.Dropout(rate, broadcast_dims=broadcast_axes)(x, deterministic=key is None, rngs=key)


def current_platform() -> str:
  """Returns the platform, such as "tpu", that is computed for: that of the context's mesh, if any.

  The mesh can be of devices that are not there, for which a program is compiled.
  """
  device = jax.sharding.get_abstract_mesh().abstract_device
  return device.platform if device else jax.default_backend()


def kernels(known: Collection[str], dtype) -> list[str]:
  """Returns the kernels for the platform, the preferred one first.

  Args:
    known: implementations of an attention function.
    dtype: of the computation. Other than 16 bits is left to XLA: cuDNN takes nothing else, GPUs
      have no fast products of it, and on TPUs its kernels take minutes to compile.
  """
  if jnp.dtype(dtype).itemsize != 2:
    return []
  return [name for name in KERNELS.get(current_platform(), ()) if name in known]


def resolve_implementation(name: str, known: Collection[str], dtype) -> str:
  """Returns the implementation that a name stands for: "auto" is the best one for the platform.

  Args:
    known: implementations of an attention function.
    dtype: of the computation.

  Raises:
    ValueError: unknown name.
  """
  if name == "auto":
    on_cpu = current_platform() == "cpu" and "chunked" in known
    name = (*kernels(known, dtype), "chunked" if on_cpu else "xla")[0]
    log_once(f"attention: {name}, for {jnp.dtype(dtype).name} on {current_platform()}")
  if name not in known:
    raise ValueError(
      f"unknown attention implementation {name!r}; choose one of {', '.join(sorted(known))}"
    )
  return name


def on_each_device(function: Callable, *shared: jax.Array, whole) -> jax.Array:
  """Calls a function on the examples of each device of the context's mesh, if there is one.

  Kernels need it: the compiler can't partition them.

  Args:
    function: (*shared, whole) -> an array with the examples along its first axis.
    *shared: arrays with the examples along their first axis.
    whole: a tree of arrays that every device sees whole.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return function(*shared, whole)
  rows = jax.P(mesh.axis_names)
  specs = (*[rows] * len(shared), jax.P())
  return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=rows, check_vma=False)(
    *shared, whole
  )
