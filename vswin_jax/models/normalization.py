"""Normalization of pixels on the device."""

import jax
import jax.numpy as jnp


def normalize(video: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
  """Returns uint8 pixels as float32, normalized by a mean and standard deviation (0-255, RGB)."""
  mean = jnp.asarray(mean, jnp.float32)
  return (video.astype(jnp.float32) - mean) * (1.0 / jnp.asarray(std, jnp.float32))


def denormalize(pixels: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
  """Returns the inverse of `normalize`, rounded to uint8."""
  values = pixels * jnp.asarray(std, jnp.float32) + jnp.asarray(mean, jnp.float32)
  return jnp.clip(jnp.round(values), 0, 255).astype(jnp.uint8)
