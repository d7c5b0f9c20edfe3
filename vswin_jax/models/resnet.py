"""ResNet for single images (arXiv 1512.03385), as torchvision and timm define it.

Bottlenecks have their stride in the 3 x 3 convolution ("v1.5"). Batch normalization uses its
stored statistics in training too. The features of a frame then depend on that frame alone, so
frames may be computed in chunks, or cached, with the same result.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from vswin_jax.common.checks import check_at_least, check_choices, fields, set_sizes
from vswin_jax.models.layers import BLOCK_REMATERIALIZATIONS, DTYPES

BATCH_NORM_EPSILON = 1e-5
# Ratio of the channels of a stage to those inside its bottlenecks.
_EXPANSION = 4


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
  """Configuration of a ResNet of bottlenecks.

  Attributes:
    depths: blocks per stage; every stage but the first halves height and width.
    width: channels after the stem; features have 4 * 2**(stages - 1) times as many.
    dtype: dtype of the computation; normalization is float32.
    param_dtype: dtype of the parameters.
    rematerialization: recomputation in the backward pass: "none" or "block".
  """

  depths: tuple[int, ...] = (3, 4, 6, 3)
  width: int = 64
  dtype: str = "float32"
  param_dtype: str = "float32"
  rematerialization: str = "none"

  def __post_init__(self):
    set_sizes(self, "depths")
    check_at_least(1, **fields(self, "width"))
    check_choices(DTYPES, **fields(self, "dtype", "param_dtype"))
    check_choices(BLOCK_REMATERIALIZATIONS, **fields(self, "rematerialization"))


class FrozenBatchNorm(nnx.Module):
  """Batch normalization with stored statistics, which no gradient reaches."""

  def __init__(self, channels: int, config: ResNetConfig):
    ones = jnp.ones(channels, config.param_dtype)
    self.scale = nnx.Param(ones)
    self.bias = nnx.Param(jnp.zeros_like(ones))
    self.running_mean = nnx.BatchStat(jnp.zeros_like(ones))
    self.running_variance = nnx.BatchStat(ones)

  def __call__(self, x: jax.Array) -> jax.Array:
    mean, variance = (
      jax.lax.stop_gradient(statistic[...].astype(jnp.float32))
      for statistic in (self.running_mean, self.running_variance)
    )
    multiplier = self.scale[...] * jax.lax.rsqrt(variance + BATCH_NORM_EPSILON)
    return ((x - mean) * multiplier + self.bias[...]).astype(x.dtype)


class Convolution(nnx.Conv):
  """A convolution with a square kernel, padded by half its size, without bias."""

  def __init__(
    self, inputs: int, outputs: int, size: int, stride: int, config: ResNetConfig, rngs: nnx.Rngs
  ):
    super().__init__(
      inputs,
      outputs,
      (size, size),
      strides=stride,
      use_bias=False,
      dtype=config.dtype,
      param_dtype=config.param_dtype,
      kernel_init=nnx.initializers.variance_scaling(2.0, "fan_out", "normal"),
      rngs=rngs,
    )

  def __call__(self, x: jax.Array) -> jax.Array:
    return _convolve(x.astype(self.dtype), self.kernel[...], self.strides)


def _convolve_images(images: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
  return jax.lax.conv_general_dilated(
    images,
    kernel.astype(images.dtype),
    (stride, stride),
    [(len(kernel) // 2,) * 2] * 2,
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )


# As in `models.layers`, the gradient of the parameters is summed in float32.
_convolve = jax.custom_vjp(_convolve_images, nondiff_argnums=(2,))


def _convolve_forward(images, kernel, stride):
  return _convolve(images, kernel, stride), (images, kernel)


def _convolve_backward(stride, residuals, gradient):
  images, kernel = residuals
  _, transpose = jax.vjp(lambda images: _convolve_images(images, kernel, stride), images)
  size = len(kernel)
  # The images are convolved with the gradient; the padding makes the result as large as the kernel.
  padding = [
    (size // 2, size - size // 2 - side + (steps - 1) * stride)
    for side, steps in zip(images.shape[1:3], gradient.shape[1:3])
  ]
  kernel_gradient = jax.lax.conv_general_dilated(
    images,
    gradient,
    (1, 1),
    padding,
    rhs_dilation=(stride, stride),
    dimension_numbers=("CHWN", "IHWO", "HWNC"),
    preferred_element_type=jnp.float32,
  )
  return (*transpose(gradient), kernel_gradient.astype(kernel.dtype))


_convolve.defvjp(_convolve_forward, _convolve_backward)


class ConvolutionNorm(nnx.Module):
  """A convolution without bias, followed by batch normalization."""

  def __init__(
    self, inputs: int, outputs: int, size: int, stride: int, config: ResNetConfig, *, rngs: nnx.Rngs
  ):
    self.conv = Convolution(inputs, outputs, size, stride, config, rngs)
    self.norm = FrozenBatchNorm(outputs, config)

  def __call__(self, x: jax.Array) -> jax.Array:
    return self.norm(self.conv(x))


class Bottleneck(nnx.Module):
  """A residual block of 1 x 1, 3 x 3 and 1 x 1 convolutions."""

  def __init__(self, inputs: int, width: int, stride: int, config: ResNetConfig, *, rngs: nnx.Rngs):
    outputs = _EXPANSION * width
    self.layer1 = ConvolutionNorm(inputs, width, 1, 1, config, rngs=rngs)
    self.layer2 = ConvolutionNorm(width, width, 3, stride, config, rngs=rngs)
    self.layer3 = ConvolutionNorm(width, outputs, 1, 1, config, rngs=rngs)
    is_same = stride == 1 and inputs == outputs
    self.downsample = (
      None if is_same else ConvolutionNorm(inputs, outputs, 1, stride, config, rngs=rngs)
    )

  def __call__(self, x: jax.Array) -> jax.Array:
    residual = x if self.downsample is None else self.downsample(x)
    x = jax.nn.relu(self.layer1(x))
    x = jax.nn.relu(self.layer2(x))
    return jax.nn.relu(self.layer3(x) + residual)


class ResNet(nnx.Module):
  """ResNet without a classifier: `model(images)` returns pooled features."""

  def __init__(self, config: ResNetConfig, *, rngs: nnx.Rngs):
    self.config = config
    self.stem = ConvolutionNorm(3, config.width, 7, 2, config, rngs=rngs)
    stages, channels = [], config.width
    for stage, depth in enumerate(config.depths):
      width, blocks = config.width * 2**stage, []
      for block in range(depth):
        stride = 2 if stage and not block else 1
        blocks.append(Bottleneck(channels, width, stride, config, rngs=rngs))
        channels = _EXPANSION * width
      stages.append(nnx.List(blocks))
    self.stages = nnx.List(stages)
    self.num_features = channels

  def __call__(self, images: jax.Array) -> jax.Array:
    """Returns features of images, the mean over the grid of the last stage.

    Args:
      images: float `[batch, height, width, 3]`, normalized RGB of any size.

    Returns:
      float32 `[batch, channels]`.
    """
    x = jax.nn.relu(self.stem(images.astype(self.config.dtype)))
    x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))

    def run(block, x):
      return block(x)

    if self.config.rematerialization == "block":
      run = jax.checkpoint(run)
    for stage, blocks in enumerate(self.stages):
      for index, block in enumerate(blocks):
        with jax.named_scope(f"stage{stage}/block{index}"):
          x = run(block, x)
    return x.mean((1, 2), dtype=jnp.float32)
