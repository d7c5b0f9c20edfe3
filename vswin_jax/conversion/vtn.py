"""PyTorch weights of VTN and of the image backbones it can be built on: names, layouts, sizes.

VTN's own files hold a timm ViT under "backbone.", a HuggingFace Longformer under
"temporal_encoder." and an MLP. Files of a backbone alone are those of timm (ViT, DeiT, ResNet),
torchvision (ResNet) and the authors of Swin.
"""

import contextlib
import math
import re
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from vswin_jax.conversion import video_swin
from vswin_jax.conversion.matching import ConversionError
from vswin_jax.models import CATALOG
from vswin_jax.models.backbones import BACKBONES
from vswin_jax.models.resnet import ResNetConfig
from vswin_jax.models.video_swin import VideoSwinConfig
from vswin_jax.models.vit import ViTConfig

FAMILIES = ("vtn", "vit", "resnet")
# What the references store although it follows from the sizes, or serves training only.
BUFFERS = (
  rf"{video_swin.BUFFERS}|.*\.num_batches_tracked|temporal_encoder\.embeddings\.position_ids"
)
# The classifiers of image files, which a video has no use for.
CLASSIFIERS = r"(head|head_dist|fc|head\.fc)\.(weight|bias)"
# Beginnings of our paths of what a file of a backbone alone does not have.
BEYOND_BACKBONE = ("temporal_encoder.", "head.")
# Channels of an attention head where a file does not tell, as in all released models.
_HEAD_CHANNELS = 64

# Our path -> the name in the file; all patterns apply, in order.
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


def recognise_backbone(tensors: Mapping[str, np.ndarray]) -> str | None:
  """The kind of image backbone that a file holds, a key of `_BACKBONE_NAMES`; None if none.

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
  """The family of VTN weights or of a backbone alone; None if they are something else."""
  if "temporal_encoder.encoder.layer.0.attention.self.query_global.weight" in tensors:
    return "vtn"
  family = recognise_backbone(tensors)
  return family if family in FAMILIES else None


def backbone_tensors(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The tensors of a VTN's backbone under the names of its own files."""
  prefix = "backbone."
  return {
    name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)
  }


def name_in(kind: str, *, whole: bool) -> Callable[[str], str]:
  """Path of our parameter -> its name in a file.

  Args:
    kind: of the backbone, from `recognise_backbone`.
    whole: of a VTN; otherwise of the backbone alone.
  """

  def name_of(path: str) -> str:
    if path.startswith("backbone."):
      name = _BACKBONE_NAMES[kind](path.removeprefix("backbone."))
      return f"backbone.{name}" if whole else name
    return _rename(path, _HEAD if path.startswith("head.") else _TEMPORAL)

  return name_of


def from_source(path: str, tensor: np.ndarray) -> np.ndarray:
  """A tensor in PyTorch's layout -> our parameter."""
  if path.endswith("patch_embed.kernel"):
    # A convolution [channels, 3, height, width], here the matrix of the flattened patch.
    return tensor.transpose(2, 3, 1, 0).reshape(-1, tensor.shape[0])
  if path.endswith("patch_embed.proj.kernel"):
    return video_swin.from_source("patch_embed.proj.kernel", tensor[:, :, None])
  if path.endswith(".conv.kernel"):
    return tensor.transpose(2, 3, 1, 0)
  if path.endswith((".class_token", ".distillation_token", ".position_embedding")):
    return tensor.reshape(tensor.shape[1:] if path.endswith("embedding") else -1)
  return tensor.T if path.endswith(".kernel") else tensor


def infer_backbone(kind: str, tensors: Mapping[str, np.ndarray], heads: int | None) -> dict:
  """Reads name, options and width of a backbone off its tensors.

  Args:
    tensors: under the names of a file of the backbone alone.
    heads: attention heads of a ViT, which its file does not tell; None: 64 channels each.

  Returns:
    The fields "backbone", "backbone_options" (those that differ from the named one's) and "width"
    of `VTNConfig`.

  Raises:
    ConversionError: a tensor is missing or of a shape that tells nothing.
  """
  with _explained("backbone", "image backbone"):
    options, width = _INFER[kind](tensors)
  if kind == "vit":
    options["num_heads"] = heads or max(width // _HEAD_CHANNELS, 1)
  sizes = {name: value for name, value in options.items() if name in _TELLING[kind]}

  def differing(name: str) -> dict:
    known = BACKBONES[name]
    return {key: value for key, value in options.items() if getattr(known, key) != value}

  candidates = [name for name, known in BACKBONES.items() if _KINDS[type(known)] == kind]
  alike = [name for name in candidates if not sizes.keys() & differing(name).keys()]
  name = (alike or candidates)[0]
  return {"backbone": name, "backbone_options": differing(name), "width": width}


_KINDS = {ViTConfig: "vit", ResNetConfig: "resnet", VideoSwinConfig: "swin_2d"}
# The options by which a named backbone is known.
_TELLING = {
  "vit": ("width", "depth", "num_heads", "distilled"),
  "resnet": ("depths", "width"),
  "swin_2d": ("embed_dim", "depths", "num_heads"),
}


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
  """Reads the temporal encoder and the head off the tensors of a VTN: fields of `VTNConfig`.

  Args:
    heads: of the temporal encoder, which the file does not tell; None: see `default_temporal`.

  Raises:
    ConversionError: a tensor is missing or of a shape that tells nothing.
  """
  prefix = "temporal_encoder."
  with _explained("temporal encoder", "VTN"):
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
  """Heads and MLPs of a temporal encoder: those of the models of its width in the catalog."""
  known = (config for config in CATALOG.values() if getattr(config, "width", None) == width)
  alike = next(known, None)
  return {
    "num_heads": heads or (alike.num_heads if alike else max(width // _HEAD_CHANNELS, 1)),
    "intermediate_size": alike.intermediate_size if alike else 4 * width,
  }


@contextlib.contextmanager
def _explained(part: str, whole: str) -> Iterator[None]:
  """Turns what tensors that are missing or of other shapes raise into one line."""
  expected = f"expected the complete weights of {'an' if whole[0] in 'aeiou' else 'a'} {whole}"
  try:
    yield
  except KeyError as error:
    raise ConversionError(
      f"the size of the {part} can't be read off the file: {error} is missing; {expected}"
    ) from error
  except (IndexError, ValueError, ZeroDivisionError) as error:
    if isinstance(error, ConversionError):
      raise
    raise ConversionError(
      f"the size of the {part} can't be read off the file: its first tensors are empty or have "
      f"another number of axes; {expected}"
    ) from error


def _count(tensors: Mapping, pattern: str, first: int = 0) -> int:
  """How many names there are without a gap."""
  count = 0
  while pattern.format(first + count) in tensors:
    count += 1
  return count
