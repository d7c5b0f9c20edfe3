"""Inference of the configuration of a model from the names and shapes of its tensors."""

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np

from vswin_jax.attention.relative_position import table_rows
from vswin_jax.attention.windows import Size3D
from vswin_jax.common.checks import fields
from vswin_jax.conversion.layouts import vtn_names
from vswin_jax.conversion.matching import ConversionError
from vswin_jax.models import CATALOG
from vswin_jax.models.backbones import BACKBONES
from vswin_jax.models.resnet import ResNetConfig
from vswin_jax.models.video_swin import VideoSwinConfig
from vswin_jax.models.vit import ViTConfig
from vswin_jax.models.vtn import VTNConfig

# Channels of an attention head, in all released models.
_HEAD_CHANNELS = 64


@contextlib.contextmanager
def _inference_errors() -> Iterator[None]:
  """Turns errors at tensors that are missing or of unexpected shapes into `ConversionError`."""
  try:
    yield
  except ConversionError:
    raise
  except (IndexError, KeyError, ValueError, ZeroDivisionError) as error:
    reason = "a tensor is empty or has an unexpected number of axes"
    if isinstance(error, KeyError):
      reason = f"{error} is missing"
    raise ConversionError(
      f"the size of the model can't be inferred from the file: {reason}; expected complete weights"
    ) from error


def nearest(known: Mapping[str, object], kind: type, values: Mapping) -> tuple[str, dict]:
  """Returns the name of the configuration with most fields in common, and those that differ."""
  differing = {
    name: {field: value for field, value in values.items() if getattr(config, field) != value}
    for name, config in known.items()
    if isinstance(config, kind)
  }
  return min(differing.items(), key=lambda item: len(item[1]))


@_inference_errors()
def infer_video_swin(
  tensors: Mapping[str, np.ndarray], name_of: Callable[[str], str], window: Size3D | None
) -> dict:
  """Returns the fields of `VideoSwinConfig` in a file; `num_classes` only if there is a head.

  Args:
    name_of: maps paths to names of tensors, from `layouts.video_swin_names`.
    window: attention window that is preferred where the bias tables fit several.

  Raises:
    ConversionError: a tensor is missing or of an unexpected shape.
  """

  def exists(stage: int, block: int) -> bool:
    prefix = name_of(f"stages.{stage}.blocks.{block}.")
    return any(name.startswith(prefix) for name in tensors)

  depths = _depths(exists)
  first = [f"stages.{stage}.blocks.0." for stage in range(len(depths))]
  patch = tensors[name_of("patch_embed.proj.kernel")]
  tables = [tensors[name_of(f"{block}attention.relative_position_bias_table")] for block in first]
  hidden = tensors[name_of("stages.0.blocks.0.mlp.fc1.kernel")].shape[0]
  index = tensors.get(name_of("stages.0.blocks.0.attention.relative_position_index"))
  head = tensors.get(name_of("head.kernel"))
  return {
    "embed_dim": patch.shape[0],
    "depths": depths,
    "num_heads": tuple(table.shape[1] for table in tables),
    "patch_size": patch.shape[2:],
    "window_size": infer_window(tables[0].shape[0], index, window),
    "mlp_ratio": hidden / patch.shape[0],
  } | ({} if head is None else {"num_classes": head.shape[0]})


def infer_window(rows: int, index: np.ndarray | None, preferred: Size3D | None = None) -> Size3D:
  """Infers the attention window, square in space unless it is the preferred one.

  Args:
    rows: rows of a bias table.
    index: relative position index `[tokens, tokens]`, if the file has one.
    preferred: the window if it fits.

  Raises:
    ConversionError: no window fits, or several do.
  """
  tokens = None if index is None else math.isqrt(index.size)

  def fits(window: Size3D) -> bool:
    return table_rows(window) == rows and tokens in (None, math.prod(window))

  # Tables of several windows can be equally long; those of the released models are not.
  for window in (preferred, (8, 7, 7), (16, 7, 7), (8, 12, 12)):
    if window and fits(window):
      return window
  # No window of a model has more rows; a damaged file may claim any number.
  sides = range(1, math.isqrt(min(rows, 2**24)) + 1)
  candidates = (((rows // (2 * side - 1) ** 2 + 1) // 2, side, side) for side in sides)
  windows = [window for window in candidates if fits(window)]
  if len(windows) == 1:
    return windows[0]
  listed = " or ".join(",".join(map(str, window)) for window in windows) or "none square in space"
  raise ConversionError(
    f"the window can't be inferred from bias tables of {rows} rows: {listed}; give "
    "the window of the file with --window=TIME,HEIGHT,WIDTH (it can't be resized at the same time)"
  )


@_inference_errors()
def infer_backbone(kind: str, tensors: Mapping[str, np.ndarray], heads: int | None) -> dict:
  """Returns the fields `backbone`, `width` and, if needed, `backbone_options` of `VTNConfig`.

  Args:
    kind: "vit", "resnet" or "swin_2d".
    tensors: tensors under the names of a file of the backbone alone.
    heads: attention heads of a ViT, which its file does not tell; None: 64 channels each.

  Raises:
    ConversionError: a tensor is missing or of an unexpected shape.
  """
  config_type, infer = _BACKBONES[kind]
  options, width = infer(tensors)
  if kind == "vit":
    options["num_heads"] = heads or max(width // _HEAD_CHANNELS, 1)
  name, differing = nearest(BACKBONES, config_type, options)
  config = {"backbone": name, "width": width}
  return config | ({"backbone_options": differing} if differing else {})


def _infer_vit(tensors) -> tuple[dict, int]:
  width, _, patch, _ = tensors["patch_embed.proj.weight"].shape
  is_distilled = "dist_token" in tensors
  patches = tensors["pos_embed"].shape[1] - (2 if is_distilled else 1)
  options = {
    "image_size": math.isqrt(max(patches, 0)) * patch,
    "patch_size": patch,
    "width": width,
    "depth": _count(lambda block: f"blocks.{block}.norm1.weight" in tensors),
    "mlp_ratio": tensors["blocks.0.mlp.fc1.weight"].shape[0] / width,
    "distilled": is_distilled,
  }
  return options, width


def _infer_resnet(tensors) -> tuple[dict, int]:
  def exists(stage: int, block: int) -> bool:
    return f"layer{stage + 1}.{block}.conv1.weight" in tensors

  depths = _depths(exists)
  options = {"depths": depths, "width": tensors["conv1.weight"].shape[0]}
  return options, tensors[f"layer{len(depths)}.0.conv3.weight"].shape[0]


def _infer_swin(tensors) -> tuple[dict, int]:
  rows = tensors["layers.0.blocks.0.attn.relative_position_bias_table"].shape[0]
  side = (math.isqrt(rows) + 1) // 2
  names = vtn_names("swin_2d", whole=False)
  options = infer_video_swin(tensors, lambda path: names(f"backbone.{path}"), (1, side, side))
  options["patch_size"] = (1, *options["patch_size"])
  return options, options["embed_dim"] * 2 ** (len(options["depths"]) - 1)


_BACKBONES = {
  "vit": (ViTConfig, _infer_vit),
  "resnet": (ResNetConfig, _infer_resnet),
  "swin_2d": (VideoSwinConfig, _infer_swin),
}


@_inference_errors()
def infer_temporal(tensors: Mapping[str, np.ndarray], width: int, heads: int | None) -> dict:
  """Returns the fields of `VTNConfig` for the temporal encoder and the head.

  Args:
    tensors: tensors of a complete VTN, or of a backbone alone.
    width: channels of the backbone's features.
    heads: heads of the temporal encoder, which no file tells; None: those of the models of its
      width in the catalog, or 64 channels each.

  Raises:
    ConversionError: a tensor is missing or of an unexpected shape.
  """
  options = {"num_heads": max(width // _HEAD_CHANNELS, 1), "intermediate_size": 4 * width}
  for config in CATALOG.values():
    if isinstance(config, VTNConfig) and config.width == width:
      options |= fields(config, *options)
  if heads is not None:
    options["num_heads"] = heads
  layer = "temporal_encoder.encoder.layer.{}.{}.dense.weight".format
  if layer(0, "output") in tensors:
    options["num_layers"] = _count(lambda index: layer(index, "output") in tensors)
    options["intermediate_size"] = tensors[layer(0, "intermediate")].shape[0]
    positions = tensors["temporal_encoder.embeddings.position_embeddings.weight"]
    options["num_positions"] = positions.shape[0]
  if {"mlp_head.1.weight", "mlp_head.4.weight"} <= tensors.keys():
    hidden = tensors["mlp_head.1.weight"].shape[0]
    options["head_width"] = 0 if hidden == width else hidden
    options["num_classes"] = tensors["mlp_head.4.weight"].shape[0]
  return options


def _depths(exists: Callable[[int, int], bool]) -> tuple[int, ...]:
  """Returns the blocks per stage, from whether a block of a stage exists."""
  stages = _count(lambda stage: exists(stage, 0))
  return tuple(_count(partial(exists, stage)) for stage in range(stages))


def _count(exists: Callable[[int], bool]) -> int:
  """Returns the number of consecutive things that exist."""
  return next(number for number in itertools.count() if not exists(number))
