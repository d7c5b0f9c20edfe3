"""PyTorch weights of Video Swin, in three families: names, layouts and inference of the model."""

import math
import re
from collections.abc import Callable, Mapping

import numpy as np

from vswin_jax.attention.relative_position import table_rows
from vswin_jax.attention.windows import Size3D
from vswin_jax.conversion.matching import ConversionError, inference_of

# Buffers of the reference that follow from the window and the grid.
BUFFERS = r".*\.(relative_position_index|attn_mask)"
BIAS_TABLE = "attn.relative_position_bias_table"

# Path of a parameter -> name in the file; all patterns apply, in order.
_OFFICIAL = (
  (r"^stages\.", "layers."),
  (r"\.attention\.", ".attn."),
  (r"\.(kernel|scale)$", ".weight"),
  (r"^head\.", "cls_head.fc_cls."),
  (r"^(?!cls_head)", "backbone."),
)
_RENAMES = {
  "official": _OFFICIAL,
  "mmaction2": (*_OFFICIAL, (r"^backbone\.norm\.", "backbone.norm3.")),
  "torchvision": (
    (r"^stages\.(\d+)\.blocks\.", lambda match: f"features.{2 * int(match[1])}."),
    (r"^stages\.(\d+)\.downsample\.", lambda match: f"features.{2 * int(match[1]) + 1}."),
    (r"\.attention\.", ".attn."),
    (r"\.(kernel|scale)$", ".weight"),
    (r"\.mlp\.fc1\.", ".mlp.0."),
    (r"\.mlp\.fc2\.", ".mlp.3."),
  ),
}
FAMILIES = tuple(_RENAMES)


def recognize(tensors: Mapping[str, np.ndarray]) -> str | None:
  """Returns the family of 3D weights; None if they are something else."""
  patch = tensors.get("backbone.patch_embed.proj.weight", tensors.get("patch_embed.proj.weight"))
  if patch is None or patch.ndim != 5:
    return None
  if f"features.0.0.{BIAS_TABLE}" in tensors:
    return "torchvision"
  if any(name.removeprefix("backbone.").startswith("layers.0.") for name in tensors):
    is_mmaction2 = any(f"{prefix}norm3.weight" in tensors for prefix in ("backbone.", ""))
    return "mmaction2" if is_mmaction2 else "official"
  return None


def name_in(family: str, *, bare: bool = False) -> Callable[[str], str]:
  """Returns a function that maps the path of a parameter to its name in a family's files.

  Args:
    family: one of `FAMILIES`.
    bare: leave out the prefix "backbone.".
  """

  def name_of(path: str) -> str:
    for pattern, replacement in _RENAMES[family]:
      path = re.sub(pattern, replacement, path)
    return path.removeprefix("backbone.") if bare else path

  return name_of


def is_bare(tensors: Mapping[str, np.ndarray]) -> bool:
  """Whether the names of the backbone's tensors have no prefix."""
  return "backbone.patch_embed.proj.weight" not in tensors


def from_source(path: str, tensor: np.ndarray) -> np.ndarray:
  """Converts a tensor from PyTorch's layout to that of the parameter.

  Linear layers are stored as `[outputs, inputs]`, here `[inputs, outputs]`; the patch embedding as
  a convolution `[channels, 3, time, height, width]`, here `[time * height * width * 3, channels]`.
  """
  if path == "patch_embed.proj.kernel":
    return tensor.transpose(2, 3, 4, 1, 0).reshape(-1, tensor.shape[0])
  return tensor.T if path.endswith(".kernel") else tensor


def to_source(path: str, parameter: np.ndarray, patch_size: Size3D) -> np.ndarray:
  """Converts a parameter to PyTorch's layout: the inverse of `from_source`."""
  if path == "patch_embed.proj.kernel":
    return parameter.reshape(*patch_size, 3, -1).transpose(4, 3, 0, 1, 2)
  return parameter.T if path.endswith(".kernel") else parameter


def index_buffers(family: str, depths: tuple[int, ...], window: Size3D) -> dict[str, np.ndarray]:
  """Returns the relative position indices that the PyTorch models expect in a file.

  Each is int64 `[tokens, tokens]`: the row of the bias table for query i and key j.
  """
  axes = np.stack(np.meshgrid(*map(np.arange, window), indexing="ij")).reshape(3, -1)
  offsets = axes[:, :, None] - axes[:, None, :]
  index = np.zeros(offsets.shape[1:], np.int64)
  for offset, size in zip(offsets, window):
    index = index * (2 * size - 1) + offset + size - 1
  name_of = name_in(family)
  return {
    name_of(f"stages.{stage}.blocks.{block}.attention.relative_position_index"): index
    for stage, depth in enumerate(depths)
    for block in range(depth)
  }


def infer_options(
  tensors: Mapping[str, np.ndarray], name_of: Callable[[str], str], window: Size3D | None = None
) -> dict:
  """Infers the configuration of a Video Swin from the shapes of its tensors.

  Args:
    tensors: tensors of the file, by name.
    name_of: maps paths to names, from `name_in`.
    window: attention window, if the bias tables fit several.

  Returns:
    Fields of `VideoSwinConfig`; `num_classes` only if there is a head.

  Raises:
    ConversionError: a tensor is missing or of an unexpected shape.
  """
  depths = _count_blocks(tensors, name_of)
  if not depths:
    raise ConversionError("the file holds no block of a Video Swin; expected its complete weights")
  first = [f"stages.{stage}.blocks.0." for stage in range(len(depths))]
  with inference_of("Video Swin"):
    patch = tensors[name_of("patch_embed.proj.kernel")]
    tables = [tensors[name_of(f"{block}attention.relative_position_bias_table")] for block in first]
    hidden = tensors[name_of(f"{first[0]}mlp.fc1.kernel")].shape[0]
    index = tensors.get(name_of(f"{first[0]}attention.relative_position_index"))
    options = {
      "embed_dim": patch.shape[0],
      "depths": depths,
      "num_heads": tuple(table.shape[1] for table in tables),
      "patch_size": patch.shape[2:],
      "window_size": window or infer_window(tables[0].shape[0], index),
      "mlp_ratio": hidden / patch.shape[0],
    }
    head = tensors.get(name_of("head.kernel"))
    if head is not None:
      options["num_classes"] = head.shape[0]
  return options


def _count_blocks(tensors, name_of) -> tuple[int, ...]:
  """Returns the number of consecutive blocks of each stage."""

  def exists(stage: int, block: int) -> bool:
    prefix = name_of(f"stages.{stage}.blocks.{block}.")
    return any(name.startswith(prefix) for name in tensors)

  depths = []
  while exists(len(depths), 0):
    depth = 1
    while exists(len(depths), depth):
      depth += 1
    depths.append(depth)
  return tuple(depths)


def infer_window(rows: int, index: np.ndarray | None) -> Size3D:
  """Infers the attention window, square in space, from a bias table.

  Args:
    rows: rows of the bias table.
    index: relative position index `[tokens, tokens]`, if the file has one.

  Raises:
    ConversionError: no window fits, or several do.
  """
  tokens = None if index is None else math.isqrt(index.size)
  windows = [
    (depth, side, side)
    for side in range(1, math.isqrt(rows) + 1)
    for depth in [(rows // (2 * side - 1) ** 2 + 1) // 2]
    if table_rows((depth, side, side)) == rows and tokens in (None, depth * side * side)
  ]
  # Tables of several windows can be equally long; those of the released models are not.
  released = [window for window in windows if window in ((8, 7, 7), (16, 7, 7), (8, 12, 12))]
  windows = released or windows
  if len(windows) != 1:
    listed = " or ".join(",".join(map(str, window)) for window in windows) or "none square in space"
    raise ConversionError(
      f"the window can't be inferred from bias tables of {rows} rows: {listed}; give "
      "--source_window=TIME,HEIGHT,WIDTH"
    )
  return windows[0]
