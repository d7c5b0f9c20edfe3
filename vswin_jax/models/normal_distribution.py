"""Normal distribution of mean 0 and variance 1, of which GELU and its gradient are made."""

import math

import jax
import jax.numpy as jnp


def normal_probability(x: jax.Array) -> jax.Array:
  """Returns the probability of numbers below `x`."""
  return 0.5 * (1.0 + jax.lax.erf(x * math.sqrt(0.5)))


def normal_density(x: jax.Array) -> jax.Array:
  """Returns the probability density at `x`."""
  return jnp.exp(-0.5 * x * x) * (2 * math.pi) ** -0.5
