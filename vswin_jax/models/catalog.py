"""Catalog of named models, and functions that build and check them."""

import dataclasses
import types

import jax
import jax.numpy as jnp
from flax import nnx

from vswin_jax.common.checks import closest, replace_fields
from vswin_jax.models.video_swin import VideoSwin, VideoSwinConfig
from vswin_jax.models.vtn import VTN, VTNConfig

CATALOG = types.MappingProxyType(
  {
    # Video Swin, table 1 of the paper; drop path as in the Kinetics-400 recipes.
    "video_swin_t": VideoSwinConfig(drop_path_rate=0.1),
    "video_swin_s": VideoSwinConfig(depths=(2, 2, 18, 2), drop_path_rate=0.1),
    "video_swin_b": VideoSwinConfig(
      embed_dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32), drop_path_rate=0.3
    ),
    "video_swin_l": VideoSwinConfig(
      embed_dim=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48), drop_path_rate=0.2
    ),
    # VTN, section 3 of the paper. Only the first two are fully specified there; the temporal
    # encoders of the others follow them, with heads of 64 channels (ResNets: 128).
    "vtn_vit_b": VTNConfig(),
    "vtn_vit_b_1layer": VTNConfig(num_layers=1),
    "vtn_deit_ti": VTNConfig(backbone="deit_ti_16", width=192, num_heads=3, intermediate_size=768),
    "vtn_deit_b": VTNConfig(backbone="deit_b_16"),
    "vtn_deit_b_distilled": VTNConfig(backbone="deit_b_16_distilled"),
    "vtn_r50": VTNConfig(backbone="resnet50", width=2048, num_heads=16),
    "vtn_r101": VTNConfig(backbone="resnet101", width=2048, num_heads=16),
    "vtn_swin_t": VTNConfig(backbone="swin_t"),
    "vtn_swin_s": VTNConfig(backbone="swin_s"),
    "vtn_swin_b": VTNConfig(backbone="swin_b", width=1024, num_heads=16, intermediate_size=4096),
  }
)

# Fields that do not change the outputs for given parameters, and the number of classes.
_IGNORED_FIELDS = frozenset(
  {
    *("num_classes", "dtype", "param_dtype", "rematerialization", "attention", "frames_per_chunk"),
    *("dropout_rate", "attention_dropout_rate", "drop_path_rate", "head_dropout_rate"),
    *("init_std", "embedding_std"),
  }
)

_CLASSES = {VideoSwinConfig: VideoSwin, VTNConfig: VTN}


def model_config(name: str, **overrides) -> VideoSwinConfig | VTNConfig:
  """Returns the configuration of a named model with some fields replaced.

  Raises:
    ValueError: unknown name, unknown field or invalid value.
  """
  if name not in CATALOG:
    raise ValueError(f"unknown model {name!r}: {closest(name, CATALOG)}")
  return replace_fields(CATALOG[name], name, overrides)


def different_options(options: dict, others: dict) -> list[tuple[str, object, object]]:
  """Returns (option, value, other value) for each option that changes the outputs of a model.

  Options of its computation, initialization and regularization do not, nor does the number of
  classes count.

  Args:
    options: arguments of `create_model`.
    others: as `options`, of the other model.

  Raises:
    ValueError: invalid options.
  """
  configs = [
    model_config(given["name"], **{key: value for key, value in given.items() if key != "name"})
    for given in (options, others)
  ]
  return _differences(*configs)


def _differences(config, other, prefix: str = "") -> list[tuple[str, object, object]]:
  if type(config) is not type(other):
    kinds = (type(one).__name__.removesuffix("Config") for one in (config, other))
    return [(f"{prefix}name", *kinds)]
  found = []
  for field in dataclasses.fields(config):
    values = getattr(config, field.name), getattr(other, field.name)
    if field.name == "backbone_options":
      if config.backbone == other.backbone and isinstance(config.backbone, str):
        backbones = config.named_backbone(), other.named_backbone()
        found += _differences(*backbones, "backbone_options.")
    elif field.name not in _IGNORED_FIELDS and values[0] != values[1]:
      found.append((prefix + field.name, *values))
  return found


def check_clips(options: dict, frames: int, size: int) -> None:
  """Checks that a model can be built and accepts clips of a shape, without computing anything.

  Args:
    options: arguments of `create_model`.
    frames: frames of a clip.
    size: height and width of a clip in pixels.

  Raises:
    ValueError: invalid options, or a shape that the model does not accept.
  """
  clip = jax.ShapeDtypeStruct((1, frames, size, size, 3), jnp.float32)
  jax.eval_shape(lambda clip: create_model(**options)(clip), clip)


def create_model(name: str, *, num_classes: int = 400, seed: int = 0, **overrides) -> nnx.Module:
  """Builds a model with random parameters.

  Args:
    name: a key of `CATALOG`, such as "video_swin_t".
    num_classes: number of logits.
    seed: seed of the parameters.
    **overrides: fields of the model's configuration, such as `window_size=(16, 7, 7)`. The
      `backbone` of a VTN may be a module or function, see `VTNConfig`.

  Returns:
    An NNX module; `model(video)` maps float `[batch, time, height, width, 3]` to float32 logits
    `[batch, num_classes]`.

  Raises:
    ValueError: unknown name, unknown field or invalid value.
  """
  config = model_config(name, num_classes=num_classes, **overrides)
  return _CLASSES[type(config)](config, rngs=nnx.Rngs(seed))
