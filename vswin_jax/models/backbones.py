"""Catalog of image backbones: float images `[batch, height, width, 3]` -> `[batch, features]`."""

import types

import jax
from flax import nnx

from vswin_jax.common.checks import closest, replace_fields
from vswin_jax.models.resnet import ResNet, ResNetConfig
from vswin_jax.models.video_swin import VideoSwin, VideoSwinConfig
from vswin_jax.models.vit import ViT, ViTConfig


class ImageSwin(VideoSwin):
  """2D Swin Transformer (arXiv 2103.14030), computed as a Video Swin over a single frame."""

  def __init__(self, config: VideoSwinConfig, *, rngs: nnx.Rngs):
    if config.num_classes or config.patch_size[0] != 1 or config.window_size[0] != 1:
      raise ValueError(
        "an image backbone needs num_classes=0 and a patch_size and window_size of one frame; got "
        f"num_classes={config.num_classes}, patch_size={config.patch_size}, "
        f"window_size={config.window_size}"
      )
    super().__init__(config, rngs=rngs)

  def __call__(self, images: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
    return self.features(images[:, None], key=key)


def _image_swin(**fields) -> VideoSwinConfig:
  return VideoSwinConfig(
    num_classes=0, patch_size=(1, 4, 4), window_size=(1, 7, 7), drop_path_rate=0.0, **fields
  )


BACKBONES = types.MappingProxyType(
  {
    "vit_b_16": ViTConfig(),
    "deit_ti_16": ViTConfig(width=192, num_heads=3),
    "deit_b_16": ViTConfig(),
    "deit_b_16_distilled": ViTConfig(distilled=True),
    "resnet50": ResNetConfig(),
    "resnet101": ResNetConfig(depths=(3, 4, 23, 3)),
    "swin_t": _image_swin(),
    "swin_s": _image_swin(depths=(2, 2, 18, 2)),
    "swin_b": _image_swin(embed_dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32)),
  }
)

_CLASSES = {ViTConfig: ViT, ResNetConfig: ResNet, VideoSwinConfig: ImageSwin}


def backbone_config(name: str, **overrides) -> ViTConfig | ResNetConfig | VideoSwinConfig:
  """Returns the configuration of a named backbone with some fields replaced.

  Raises:
    ValueError: unknown name, unknown field or invalid value.
  """
  if name not in BACKBONES:
    raise ValueError(f"unknown backbone {name!r}: {closest(name, BACKBONES)}")
  return replace_fields(BACKBONES[name], name, overrides)


def create_backbone(
  config: ViTConfig | ResNetConfig | VideoSwinConfig, *, rngs: nnx.Rngs
) -> nnx.Module:
  """Builds a backbone with random parameters."""
  return _CLASSES[type(config)](config, rngs=rngs)
