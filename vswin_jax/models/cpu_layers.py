"""LayerNorm and GELU for CPUs, with their own backward passes.

On a CPU, XLA computes sums along rows slower than matrix products with ones, and writes most of the
intermediate results of autodiff to memory.
"""

from functools import partial

import jax
import jax.numpy as jnp

from vswin_jax.models.normal_distribution import normal_density, normal_probability


def _row_means(x: jax.Array) -> jax.Array:
  """Returns the means of the rows of `[tokens, channels]`: `[tokens, 1]`."""
  ones = jnp.full((x.shape[1], 1), 1 / x.shape[1], x.dtype)
  return jnp.dot(x, ones, precision="highest")


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> jax.Array:
  """Normalizes each row of float32 `[tokens, channels]`, then scales and shifts it."""
  return _layer_norm_forward(x, scale, bias, epsilon)[0]


def _layer_norm_forward(x, scale, bias, epsilon):
  mean = _row_means(x)
  factor = jax.lax.rsqrt(_row_means(jnp.square(x - mean)) + epsilon)
  return (x - mean) * factor * scale + bias, (x, mean, factor, scale, bias)


def _layer_norm_backward(epsilon, residuals, gradient):
  del epsilon
  x, mean, factor, scale, bias = residuals
  normalized, scaled = (x - mean) * factor, gradient * scale
  projection = _row_means(scaled) + normalized * _row_means(scaled * normalized)
  return (
    factor * (scaled - projection),
    (gradient * normalized).sum(0).astype(scale.dtype),
    gradient.sum(0).astype(bias.dtype),
  )


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
  """Returns `x` times the normal distribution function of `x`; its backward pass keeps only `x`."""
  wide = x.astype(jnp.float32)
  return (wide * normal_probability(wide)).astype(x.dtype)


def _gelu_forward(x):
  return gelu(x), x


def _gelu_backward(x, gradient):
  wide = x.astype(jnp.float32)
  slope = normal_probability(wide) + wide * normal_density(wide)
  return ((gradient * slope).astype(x.dtype),)


gelu.defvjp(_gelu_forward, _gelu_backward)
