"""Layers that several models share.

Modules hold parameters only. Random keys are arguments; a call without a key is deterministic.
`config` is the configuration of any model: it has `dtype`, `param_dtype` and `init_std`.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from vswin_jax.attention.operations import current_platform, dropout, on_each_device
from vswin_jax.models import cpu_layers
from vswin_jax.models.gpu_layer_norm import norm_and_input

DTYPES = ("float32", "bfloat16", "float16")
# Rematerialization of image backbones.
BLOCK_REMATERIALIZATIONS = ("none", "block")


def check_video(video: jax.Array) -> None:
  """Checks that `video` is float `[batch, time, height, width, 3]`; raises ValueError if not."""
  is_float = jnp.issubdtype(video.dtype, jnp.floating)
  if video.ndim != 5 or video.shape[-1] != 3 or video.size == 0 or not is_float:
    raise ValueError(
      "video must be float [batch, time, height, width, 3], normalized; got "
      f"{video.dtype} {list(video.shape)}"
    )


class LayerNorm(nnx.LayerNorm):
  """LayerNorm computed in float32, for inputs of any dtype."""

  @jax.named_scope("layer_norm")
  def __call__(self, x: jax.Array) -> jax.Array:
    if current_platform() != "cpu":
      return super().__call__(x).astype(x.dtype)
    tokens = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
    tokens = cpu_layers.layer_norm(tokens, self.scale[...], self.bias[...], self.epsilon)
    return tokens.reshape(x.shape).astype(x.dtype)

  @jax.named_scope("layer_norm")
  def with_input(self, x: jax.Array, interpret: bool | None) -> tuple[jax.Array, jax.Array]:
    """Returns the result, and `x` for a residual connection.

    Args:
      interpret: whether to interpret the backward pass, which is a kernel, see `gpu_layer_norm`;
        None: all is left to XLA.
    """
    if interpret is None:
      return self(x), x

    def run(x, parameters):
      return norm_and_input(x, parameters, self.epsilon, interpret)

    return on_each_device(run, x, whole=(self.scale[...], self.bias[...]))


def layer_norm(channels: int, epsilon: float, config, rngs: nnx.Rngs) -> LayerNorm:
  return LayerNorm(
    channels,
    epsilon=epsilon,
    dtype=jnp.float32,
    param_dtype=config.param_dtype,
    use_fast_variance=False,
    rngs=rngs,
  )


class TokenLinear(nnx.Linear):
  """A linear layer over the last axis, which flattens all other axes into one.

  With five axes the gradient of the kernel contracts four at once, which XLA compiles for a CPU
  into something three times slower than a plain matrix product.
  """

  @jax.named_scope("linear")
  def __call__(
    self, x: jax.Array, columns: slice = slice(None), factors: jax.Array | None = None
  ) -> jax.Array:
    """Returns the outputs, or those of a range of output channels.

    Args:
      factors: `[outputs]`, of the output channels; None: 1.
    """
    tokens = x.reshape(-1, x.shape[-1]).astype(self.dtype)
    kernel, bias = self.kernel[:, columns], None if self.bias is None else self.bias[columns]
    if factors is not None:
      kernel, bias = kernel * factors, None if bias is None else bias * factors
    return _linear(tokens, kernel, bias).reshape(*x.shape[:-1], -1)

  def repeated(self, x: jax.Array, groups: int, count: int) -> jax.Array:
    """Applies the layer to several inputs that lie side by side, by a block diagonal kernel.

    Args:
      x: `[..., groups * count * inputs]`: the input channels in groups, each with a part of all
        `count` inputs.

    Returns:
      `[..., count * outputs]`.
    """
    outputs = self.kernel.shape[1]
    kernel = self.kernel[...].reshape(groups, 1, -1, 1, outputs)
    kernel = kernel * jnp.eye(count)[:, None, :, None]
    tokens = x.reshape(-1, x.shape[-1]).astype(self.dtype)
    bias = jnp.tile(self.bias[...], count)
    return _linear(tokens, kernel.reshape(-1, count * outputs), bias).reshape(*x.shape[:-1], -1)


@jax.custom_vjp
def _linear(x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
  """Returns `x @ kernel + bias` in the dtype of `x` `[tokens, inputs]`.

  Gradients of the parameters are summed in float32. By default, autodiff would round them to the
  dtype of `x` before the sum over devices, and compute that sum in this dtype too.
  """
  y = x @ kernel.astype(x.dtype)
  return y if bias is None else y + bias.astype(x.dtype)


def _linear_forward(x, kernel, bias):
  return _linear(x, kernel, bias), (x, kernel, bias)


def _linear_backward(residuals, gradient):
  x, kernel, bias = residuals
  product = partial(jnp.einsum, preferred_element_type=jnp.float32)
  if current_platform() == "cpu" and x.shape[1] > gradient.shape[1]:
    # On CPUs results that are wider than high take up to half the time.
    kernel_gradient = product("no,ni->oi", gradient, x).T
  else:
    kernel_gradient = product("ni,no->io", x, gradient)
  return (
    gradient @ kernel.astype(x.dtype).T,
    kernel_gradient.astype(kernel.dtype),
    None if bias is None else gradient.sum(0, dtype=jnp.float32).astype(bias.dtype),
  )


_linear.defvjp(_linear_forward, _linear_backward)


def linear(
  inputs: int,
  outputs: int,
  config,
  rngs: nnx.Rngs,
  *,
  use_bias: bool = True,
  kernel_init=None,
  bias_init=None,
  dtype: str | None = None,
) -> TokenLinear:
  return TokenLinear(
    inputs,
    outputs,
    use_bias=use_bias,
    dtype=dtype or config.dtype,
    param_dtype=config.param_dtype,
    # The references truncate at an absolute +-2, which no draw reaches.
    kernel_init=kernel_init or nnx.initializers.normal(config.init_std),
    bias_init=bias_init or nnx.initializers.zeros_init(),
    rngs=rngs,
  )


def symmetric_uniform(bound: float):
  def init(key, shape, dtype):
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return init


def normal_param(shape: tuple[int, ...], std: float, config, rngs: nnx.Rngs) -> nnx.Param:
  """Returns a parameter drawn from a normal distribution around zero."""
  draw = nnx.initializers.normal(std)
  return nnx.Param(draw(rngs.params(), shape, jnp.dtype(config.param_dtype)))


def drop_path(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
  """Zeros `x` for a random share `rate` of the examples (stochastic depth)."""
  return dropout(x, rate, key, broadcast_axes=tuple(range(1, x.ndim)))


def split_key(key: jax.Array | None, count: int) -> list[jax.Array | None]:
  return [None] * count if key is None else list(jax.random.split(key, count))


def map_chunks(
  function: Callable[[jax.Array, int | jax.Array], jax.Array], x: jax.Array, size: int
) -> jax.Array:
  """Applies a function to chunks of an array one after the other, with the memory of one.

  Args:
    function: (chunk, its index) -> an array with the same first two axes.
    x: `[batch, length, ...]`.
    size: length of a chunk; the last one may be shorter.

  Returns:
    The results, joined along the second axis.
  """
  batch, length = x.shape[:2]
  count = length // size
  if count == 0 or length == size:
    return function(x, 0)

  def apply_at(index):
    return function(jax.lax.dynamic_slice_in_dim(x, index * size, size, axis=1), index)

  chunks = jnp.moveaxis(jax.lax.map(apply_at, jnp.arange(count)), 0, 1)
  parts = [chunks.reshape(batch, count * size, *chunks.shape[3:])]
  if length % size:
    parts.append(function(x[:, count * size :], count))
  return jnp.concatenate(parts, axis=1)


def gelu(x: jax.Array) -> jax.Array:
  """Returns the exact (erf) GELU."""
  platform = current_platform()
  if platform == "cpu":
    return cpu_layers.gelu(x)
  return _gelu(x) if platform == "gpu" else jax.nn.gelu(x, approximate=False)


@jax.custom_vjp
def _gelu(x: jax.Array) -> jax.Array:
  """Computes GELU; keeps only its input for the backward pass."""
  return jax.nn.gelu(x, approximate=False)


def _gelu_backward(x, gradient):
  # Otherwise XLA finds what the forward pass has computed as well, and keeps that in memory.
  x, gradient = jax.lax.optimization_barrier((x, gradient))
  return jax.vjp(partial(jax.nn.gelu, approximate=False), x)[1](gradient)


_gelu.defvjp(lambda x: (_gelu(x), x), _gelu_backward)


class MLP(nnx.Module):
  """Two linear layers with the exact (erf) GELU in between, and dropout after each."""

  def __init__(self, channels: int, config, *, rngs: nnx.Rngs):
    # Ratios that are derived from weight files may be inexact.
    hidden = round(channels * config.mlp_ratio)
    self.dropout_rate = config.dropout_rate
    self.fc1 = linear(channels, hidden, config, rngs)
    self.fc2 = linear(hidden, channels, config, rngs)

  @jax.named_scope("mlp")
  def __call__(self, x: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
    hidden_key, output_key = split_key(key, 2)
    x = gelu(self.fc1(x))
    x = dropout(x, self.dropout_rate, hidden_key)
    return dropout(self.fc2(x), self.dropout_rate, output_key)
