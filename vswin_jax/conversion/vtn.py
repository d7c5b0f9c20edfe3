"""PyTorch weights of VTN and its image backbones: names, layouts and inference of the model.

VTN's own files hold a timm ViT under "backbone.", a HuggingFace Longformer under
"temporal_encoder." and an MLP. Files of a backbone alone are those of timm (ViT, DeiT, ResNet),
torchvision (ResNet) and the authors of Swin.
"""

import math
import re
from collections.abc import Callable, Mapping

import numpy as np

from vswin_jax.conversion import video_swin
from vswin_jax.conversion.matching import ConversionError, inference_of, nearest
from vswin_jax.models import CATALOG
from vswin_jax.models.backbones import BACKBONES
from vswin_jax.models.resnet import ResNetConfig
from vswin_jax.models.video_swin import VideoSwinConfig
from vswin_jax.models.vit import ViTConfig

FAMILIES = ("vtn", "vit", "resnet")
# Buffers of the references that follow from the sizes, or serve training only.
BUFFERS = (
  rf"{video_swin.BUFFERS}|.*\.num_batches_tracked|temporal_encoder\.embeddings\.position_ids"
)
# Image classifiers, which are not converted.
CLASSIFIERS = r"(head|head_dist|fc|head\.fc)\.(weight|bias)"
# Prefixes of the paths of parameters that a file of a backbone alone does not have.
BEYOND_BACKBONE = ("temporal_encoder.", "head.")
# Channels of an attention head, in all released models.
_HEAD_CHANNELS = 64

# Path of a parameter -> name in the file; all patterns apply, in order.
_LEAVES = ((r"\.(kernel|scale)$", ".weight"),)
_TEMPORAL = (
  (r"^temporal_encoder\.class_token$", "cls_token"),
  (r"^temporal_encoder\.position_embeddings$", "temporal_encoder.position_embeddings.weight"),
  (r"^temporal_encoder\.type_embeddings$", "temporal_encoder.token_type_embeddings.weight"),
  (r"^temporal_encoder\.norm\.", "temporal_encoder.LayerNorm."),
  (r"^temporal_encoder\.(?!layers)", "temporal_encoder.embeddings."),
  (r"^temporal_encoder\.layers\.", "temporal_encoder.encoder.layer."),
  (r"\.attention\.proj\.", ".attention.output.dense."),
  (r"\.norm1\.", ".attention.output.LayerNorm."),
  (r"\.attention\.(?!output)", ".attention.self."),
  (r"\.fc1\.", ".intermediate.dense."),
  (r"\.fc2\.", ".output.dense."),
  (r"\.norm2\.", ".output.LayerNorm."),
)
_HEAD = (
  (r"^head\.norm\.", "mlp_head.0."),
  (r"^head\.fc1\.", "mlp_head.1."),
  (r"^head\.fc2\.", "mlp_head.4."),
)
_VIT = (
  (r"^class_token$", "cls_token"),
  (r"^distillation_token$", "dist_token"),
  (r"^position_embedding$", "pos_embed"),
  (r"^patch_embed\.", "patch_embed.proj."),
  (r"\.attention\.", ".attn."),
)
_RESNET = (
  (r"^stem\.", "layer1."),
  (r"^stages\.(\d+)\.", lambda match: f"layer{int(match[1]) + 1}."),
  (r"\.downsample\.conv\.", ".downsample.0."),
  (r"\.downsample\.norm\.", ".downsample.1."),
  (r"(^|\.)layer(\d+)\.conv\.", r"\1conv\2."),
  (r"(^|\.)layer(\d+)\.norm\.", r"\1bn\2."),
  (r"\.running_variance$", ".running_var"),
)


def _rename(path: str, patterns) -> str:
  for pattern, replacement in (*patterns, *_LEAVES):
    path = re.sub(pattern, replacement, path)
  return path


_BACKBONE_NAMES: Mapping[str, Callable[[str], str]] = {
  "vit": lambda path: _rename(path, _VIT),
  "resnet": lambda path: _rename(path, _RESNET),
  "swin_2d": video_swin.name_in("official", bare=True),
}


def recognize_backbone(tensors: Mapping[str, np.ndarray]) -> str | None:
  """Returns the kind of image backbone in a file, a key of `_BACKBONE_NAMES`; None if unknown.

  Raises:
    ConversionError: a Swin Transformer V2.
  """
  patch = tensors.get("patch_embed.proj.weight")
  if patch is not None and patch.ndim == 4:
    if "blocks.0.attn.qkv.weight" in tensors and "cls_token" in tensors:
      return "vit"
    if any(name.startswith("layers.0.") for name in tensors):
      if any(name.endswith(".logit_scale") for name in tensors):
        raise ConversionError(
          "these are weights of a Swin Transformer V2, which has no model here; take those of V1"
        )
      return "swin_2d"
  return "resnet" if {"conv1.weight", "layer1.0.conv3.weight"} <= tensors.keys() else None


def recognize(tensors: Mapping[str, np.ndarray]) -> str | None:
  """Returns "vtn" for the weights of a complete VTN; None if they are something else."""
  name = "temporal_encoder.encoder.layer.0.attention.self.query_global.weight"
  return "vtn" if name in tensors else None


def backbone_tensors(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Returns the tensors of a VTN's backbone, under the names of a file of the backbone alone."""
  prefix = "backbone."
  return {
    name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)
  }


def name_in(kind: str, *, whole: bool) -> Callable[[str], str]:
  """Returns a function that maps the path of a parameter to its name in a file.

  Args:
    kind: kind of the backbone, from `recognize_backbone`.
    whole: whether the file holds a complete VTN, or the backbone alone.
  """

  def name_of(path: str) -> str:
    if path.startswith("backbone."):
      name = _BACKBONE_NAMES[kind](path.removeprefix("backbone."))
      return f"backbone.{name}" if whole else name
    return _rename(path, _HEAD if path.startswith("head.") else _TEMPORAL)

  return name_of


def from_source(path: str, tensor: np.ndarray) -> np.ndarray:
  """Converts a tensor from PyTorch's layout to that of the parameter."""
  if path.endswith("patch_embed.kernel"):
    # A convolution [channels, 3, height, width] becomes a matrix [patch pixels, channels].
    return tensor.transpose(2, 3, 1, 0).reshape(-1, tensor.shape[0])
  if path.endswith("patch_embed.proj.kernel"):
    return video_swin.from_source("patch_embed.proj.kernel", tensor[:, :, None])
  if path.endswith(".conv.kernel"):
    return tensor.transpose(2, 3, 1, 0)
  if path.endswith((".class_token", ".distillation_token", ".position_embedding")):
    return tensor.reshape(tensor.shape[1:] if path.endswith("embedding") else -1)
  return tensor.T if path.endswith(".kernel") else tensor


def infer_backbone(kind: str, tensors: Mapping[str, np.ndarray], heads: int | None) -> dict:
  """Infers name, options and width of a backbone from the shapes of its tensors.

  Args:
    kind: kind of the backbone, from `recognize_backbone`.
    tensors: tensors under the names of a file of the backbone alone.
    heads: attention heads of a ViT, which its file does not tell; None: 64 channels each.

  Returns:
    The fields "backbone", "width" and, where options differ from those of the named backbone,
    "backbone_options" of `VTNConfig`.

  Raises:
    ConversionError: a tensor is missing or of an unexpected shape.
  """
  with inference_of("backbone"):
    options, width = _INFER[kind](tensors)
  if kind == "vit":
    options["num_heads"] = heads or max(width // _HEAD_CHANNELS, 1)
  known = {name: config for name, config in BACKBONES.items() if _KINDS.get(type(config)) == kind}
  name, differing = nearest(known, options)
  config = {"backbone": name, "width": width}
  return config | ({"backbone_options": differing} if differing else {})


_KINDS = {ViTConfig: "vit", ResNetConfig: "resnet", VideoSwinConfig: "swin_2d"}


def _infer_vit(tensors) -> tuple[dict, int]:
  width, _, patch, _ = tensors["patch_embed.proj.weight"].shape
  is_distilled = "dist_token" in tensors
  patches = tensors["pos_embed"].shape[1] - (2 if is_distilled else 1)
  options = {
    "image_size": math.isqrt(max(patches, 0)) * patch,
    "patch_size": patch,
    "width": width,
    "depth": _count(tensors, "blocks.{}.norm1.weight"),
    "mlp_ratio": tensors["blocks.0.mlp.fc1.weight"].shape[0] / width,
    "distilled": is_distilled,
  }
  return options, width


def _infer_resnet(tensors) -> tuple[dict, int]:
  stages = _count(tensors, "layer{}.0.conv1.weight", first=1)
  depths = tuple(_count(tensors, f"layer{stage + 1}.{{}}.conv1.weight") for stage in range(stages))
  options = {"depths": depths, "width": tensors["conv1.weight"].shape[0]}
  return options, tensors[f"layer{stages}.0.conv3.weight"].shape[0]


def _infer_swin(tensors) -> tuple[dict, int]:
  name_of = _BACKBONE_NAMES["swin_2d"]
  rows = tensors[f"layers.0.blocks.0.{video_swin.BIAS_TABLE}"].shape[0]
  side = (math.isqrt(rows) + 1) // 2
  options = video_swin.infer_options(tensors, name_of, (1, side, side))
  options.pop("num_classes", None)
  options["patch_size"] = (1, *options["patch_size"])
  return options, options["embed_dim"] * 2 ** (len(options["depths"]) - 1)


_INFER = {"vit": _infer_vit, "resnet": _infer_resnet, "swin_2d": _infer_swin}


def infer_temporal(tensors: Mapping[str, np.ndarray], heads: int | None) -> dict:
  """Infers the fields of `VTNConfig` for the temporal encoder and the head from a file.

  Args:
    tensors: tensors of a complete VTN, by name.
    heads: heads of the temporal encoder, which the file does not tell; None: see
      `default_temporal`.

  Raises:
    ConversionError: a tensor is missing or of an unexpected shape.
  """
  prefix = "temporal_encoder."
  with inference_of("temporal encoder"):
    positions, width = tensors[f"{prefix}embeddings.position_embeddings.weight"].shape
    options = default_temporal(width, heads) | {
      "num_layers": _count(tensors, f"{prefix}encoder.layer.{{}}.output.dense.weight"),
      "intermediate_size": tensors[f"{prefix}encoder.layer.0.intermediate.dense.weight"].shape[0],
      "num_positions": positions,
    }
    if {"mlp_head.1.weight", "mlp_head.4.weight"} <= tensors.keys():
      hidden = tensors["mlp_head.1.weight"].shape[0]
      options["head_width"] = 0 if hidden == width else hidden
      options["num_classes"] = tensors["mlp_head.4.weight"].shape[0]
  return options


def default_temporal(width: int, heads: int | None) -> dict:
  """Returns heads and MLP width of a temporal encoder, as in models of its width in the catalog."""
  known = (config for config in CATALOG.values() if getattr(config, "width", None) == width)
  alike = next(known, None)
  return {
    "num_heads": heads or (alike.num_heads if alike else max(width // _HEAD_CHANNELS, 1)),
    "intermediate_size": alike.intermediate_size if alike else 4 * width,
  }


def _count(tensors: Mapping, pattern: str, first: int = 0) -> int:
  """Counts the consecutive names of a pattern."""
  count = 0
  while pattern.format(first + count) in tensors:
    count += 1
  return count
