"""ResNet for single images (arXiv 1512.03385), as torchvision and timm define it.

Bottlenecks carry the stride in their 3 x 3 convolution ("v1.5"). Batch normalization uses its
stored statistics in training too: then the features of a frame depend on that frame alone, and
frames may be computed in chunks, or cached, with the same result.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from vswin_jax.common.checks import check_at_least, check_choices, fields, set_sizes
from vswin_jax.models.layers import BLOCK_REMATERIALIZATIONS, DTYPES

BATCH_NORM_EPSILON = 1e-5
# Channels of a stage over those inside its bottlenecks.
_EXPANSION = 4


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
  """Everything that defines a ResNet of bottlenecks.

  Attributes:
    depths: blocks per stage; every stage but the first halves height and width.
    width: channels after the stem; those of the features are 4 * 2**(stages - 1) times as many.
    dtype: of the computation; normalization is float32.
    param_dtype: of the parameters.
    rematerialization: what the backward pass recomputes: "none" or "block".
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
    self.running_mean = nnx.Param(jnp.zeros_like(ones))
    self.running_variance = nnx.Param(ones)

  def __call__(self, x: jax.Array) -> jax.Array:
    mean, variance = (
      jax.lax.stop_gradient(statistic[...].astype(jnp.float32))
      for statistic in (self.running_mean, self.running_variance)
    )
    multiplier = self.scale[...] * jax.lax.rsqrt(variance + BATCH_NORM_EPSILON)
    return ((x - mean) * multiplier + self.bias[...]).astype(x.dtype)


def _convolution(
  inputs: int, outputs: int, size: int, stride: int, config: ResNetConfig, rngs: nnx.Rngs
) -> nnx.Conv:
  return nnx.Conv(
    inputs,
    outputs,
    (size, size),
    strides=stride,
    padding=size // 2,
    use_bias=False,
    dtype=config.dtype,
    param_dtype=config.param_dtype,
    kernel_init=nnx.initializers.variance_scaling(2.0, "fan_out", "normal"),
    rngs=rngs,
  )


class ConvolutionNorm(nnx.Module):
  """A convolution without bias, then normalization."""

  def __init__(
    self, inputs: int, outputs: int, size: int, stride: int, config: ResNetConfig, *, rngs: nnx.Rngs
  ):
    self.conv = _convolution(inputs, outputs, size, stride, config, rngs)
    self.norm = FrozenBatchNorm(outputs, config)

  def __call__(self, x: jax.Array) -> jax.Array:
    return self.norm(self.conv(x))


class Bottleneck(nnx.Module):
  """1 x 1, 3 x 3 and 1 x 1 convolutions, residual."""

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
  """ResNet without a classifier: `model(images)` gives pooled features."""

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
    """Features of images: float `[batch, height, width, 3]`, normalized RGB of any size ->
    float32 `[batch, channels]`, the mean over the last stage's grid."""
    x = jax.nn.relu(self.stem(images.astype(self.config.dtype)))
    x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))

    def run(block, x):
      return block(x)

    if self.config.rematerialization == "block":
      run = jax.checkpoint(run)
    for blocks in self.stages:
      for block in blocks:
        x = run(block, x)
    return x.mean((1, 2), dtype=jnp.float32)
