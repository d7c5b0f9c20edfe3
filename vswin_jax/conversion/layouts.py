"""Names and layouts of parameters in PyTorch files, by family.

Files of a VTN hold a timm ViT under "backbone.", a HuggingFace Longformer under
"temporal_encoder." and an MLP. Files of a backbone alone are those of timm (ViT, DeiT, ResNet),
torchvision (ResNet) and the authors of Swin.
"""

import re
from collections.abc import Callable

import numpy as np

from vswin_jax.attention.windows import Size3D

VIDEO_SWIN_FAMILIES = ("official", "mmaction2", "torchvision")
VTN_FAMILIES = ("vtn", "vit", "resnet")
# Names of tensors that are not converted, since they follow from the sizes of the model; and those
# of image models that serve training only, or classify images.
_BUFFERS = r".*\.(relative_position_index|attn_mask)|temporal_encoder\.embeddings\.position_ids"
_IMAGE_MODELS = r".*\.num_batches_tracked|(head|head_dist|fc|head\.fc)\.(weight|bias)"

# Path of a parameter -> name in the file; all patterns of a family apply, in order.
_SWIN = (
  (r"^stages\.", "layers."),
  (r"\.attention\.", ".attn."),
  (r"^head\.", "cls_head.fc_cls."),
)
_PREFIX = (r"^(?!cls_head)", "backbone.")
_PATTERNS = {
  "swin_2d": _SWIN,
  "official": (*_SWIN, _PREFIX),
  "mmaction2": (*_SWIN, (r"^norm\.", "norm3."), _PREFIX),
  "torchvision": (
    (r"^stages\.(\d+)\.blocks\.", lambda match: f"features.{2 * int(match[1])}."),
    (r"^stages\.(\d+)\.downsample\.", lambda match: f"features.{2 * int(match[1]) + 1}."),
    (r"\.attention\.", ".attn."),
    (r"\.mlp\.fc1\.", ".mlp.0."),
    (r"\.mlp\.fc2\.", ".mlp.3."),
  ),
  # All of it but the backbone.
  "vtn": (
    (r"^head\.norm\.", "mlp_head.0."),
    (r"^head\.fc1\.", "mlp_head.1."),
    (r"^head\.fc2\.", "mlp_head.4."),
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
  ),
  "vit": (
    (r"^class_token$", "cls_token"),
    (r"^distillation_token$", "dist_token"),
    (r"^position_embedding$", "pos_embed"),
    (r"^patch_embed\.", "patch_embed.proj."),
    (r"\.attention\.", ".attn."),
  ),
  "resnet": (
    (r"^stem\.", "layer1."),
    (r"^stages\.(\d+)\.", lambda match: f"layer{int(match[1]) + 1}."),
    (r"\.downsample\.conv\.", ".downsample.0."),
    (r"\.downsample\.norm\.", ".downsample.1."),
    (r"(^|\.)layer(\d+)\.conv\.", r"\1conv\2."),
    (r"(^|\.)layer(\d+)\.norm\.", r"\1bn\2."),
    (r"\.running_variance$", ".running_var"),
  ),
}


def _rename(family: str, path: str) -> str:
  for pattern, replacement in (*_PATTERNS[family], (r"\.(kernel|scale)$", ".weight")):
    path = re.sub(pattern, replacement, path)
  return path


def video_swin_names(family: str, *, bare: bool = False) -> Callable[[str], str]:
  """Returns a function that maps the path of a parameter to its name in a family's files.

  Args:
    family: one of `VIDEO_SWIN_FAMILIES`.
    bare: leave out the prefix "backbone.".
  """
  return lambda path: _rename(family, path).removeprefix("backbone." if bare else "")


def vtn_names(backbone: str, *, whole: bool = True) -> Callable[[str], str]:
  """Returns a function that maps the path of a parameter of a VTN to its name in a file.

  Args:
    backbone: "vit", "resnet" or "swin_2d".
    whole: whether the file holds a complete VTN, or the backbone alone.
  """

  def name_of(path: str) -> str:
    if not path.startswith("backbone."):
      return _rename("vtn", path)
    name = _rename(backbone, path.removeprefix("backbone."))
    return f"backbone.{name}" if whole else name

  return name_of


def original_names(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Renames timm's 2D Swin weights to their authors' names; returns others unchanged.

  timm counts patch merging to the stage after it.
  """
  merging = re.compile(r"^((?:backbone\.)?layers)\.(\d+)\.downsample\.")
  if any((found := merging.match(name)) and found[2] == "0" for name in tensors):
    return tensors
  return {
    merging.sub(lambda match: f"{match[1]}.{int(match[2]) - 1}.downsample.", name): tensor
    for name, tensor in tensors.items()
  }


def from_source(path: str, tensor: np.ndarray) -> np.ndarray:
  """Converts a tensor from PyTorch's layout to that of the parameter.

  Linear layers are stored as `[outputs, inputs]`, here `[inputs, outputs]`; convolutions as
  `[outputs, inputs, *size]`, here `[*size, inputs, outputs]`, patch embeddings among them
  `[size * inputs, outputs]`; tokens and embeddings of positions with axes of size 1 before theirs.

  Raises:
    ValueError: a tensor has too few axes, or too many.
  """
  if path.endswith((".conv.kernel", "patch_embed.kernel", "patch_embed.proj.kernel")):
    tensor = np.moveaxis(tensor, (0, 1), (-1, -2))
    return tensor if path.endswith(".conv.kernel") else tensor.reshape(-1, tensor.shape[-1])
  if path.endswith((".class_token", ".distillation_token")):
    return tensor.reshape(-1)
  if path.endswith(".position_embedding"):
    return tensor.reshape(tensor.shape[1:])
  return tensor.T if path.endswith(".kernel") else tensor


def to_source(path: str, parameter: np.ndarray, patch_size: Size3D) -> np.ndarray:
  """Converts a parameter of a Video Swin to PyTorch's layout: the inverse of `from_source`."""
  if path == "patch_embed.proj.kernel":
    return parameter.reshape(*patch_size, 3, -1).transpose(4, 3, 0, 1, 2)
  return parameter.T if path.endswith(".kernel") else parameter


def index_buffers(family: str, depths: tuple[int, ...], window: Size3D) -> dict[str, np.ndarray]:
  """Returns the relative position indices that the PyTorch models of Video Swin expect in a file.

  Each is int64 `[tokens, tokens]`: the row of the bias table for query i and key j.
  """
  axes = np.indices(window).reshape(3, -1)
  offsets = axes[:, :, None] - axes[:, None, :] + np.reshape(window, (3, 1, 1)) - 1
  index = np.ravel_multi_index(tuple(offsets), [2 * size - 1 for size in window])
  name_of = video_swin_names(family)
  return {
    name_of(f"stages.{stage}.blocks.{block}.attention.relative_position_index"): index
    for stage, depth in enumerate(depths)
    for block in range(depth)
  }


def ignored_names(family: str) -> str:
  """Returns a pattern of the names of tensors that are not converted."""
  return _BUFFERS if family in VIDEO_SWIN_FAMILIES else f"{_BUFFERS}|{_IMAGE_MODELS}"
