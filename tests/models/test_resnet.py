"""Convolutions with their own backward rule."""

import jax
import numpy as np
import pytest
from flax import nnx

from vswin_jax.models.resnet import Convolution, ResNetConfig


@pytest.mark.parametrize(
  ("size", "stride", "sides"), [(7, 2, (33, 20)), (3, 1, (8, 7)), (3, 2, (9, 8)), (1, 2, (8, 7))]
)
def test_convolution_and_its_gradients_equal_flax(size, stride, sides):
  ours = Convolution(3, 5, size, stride, ResNetConfig(), nnx.Rngs(0))
  flax = nnx.Conv(
    3, 5, (size, size), strides=stride, padding=size // 2, use_bias=False, rngs=nnx.Rngs(0)
  )
  random = np.random.default_rng(0)
  images = random.normal(size=(2, *sides, 3)).astype(np.float32)
  kernel = random.normal(size=(size, size, 3, 5)).astype(np.float32)

  def outputs(layer, images, kernel):
    layer = nnx.clone(layer)
    layer.kernel[...] = kernel
    return layer(images)

  @jax.jit
  def outputs_and_gradients(images, kernel):
    found = []
    for layer in (ours, flax):
      y, transpose = jax.vjp(lambda *x, layer=layer: outputs(layer, *x), images, kernel)
      found.append((y, *transpose(jax.numpy.cos(y))))
    return found

  for actual, expected in zip(*outputs_and_gradients(images, kernel)):
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-4)
