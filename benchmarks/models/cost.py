"""Parameters and multiply-accumulates of all models, as computed and as published.

VTN's paper counts linear layers and convolutions over all tokens; for Swin backbones, which it does
not have, all products count. The computed number includes the products of attention, but only those
for the class token in the last ViT block and the last temporal layer.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks.models.cases import LONG_VIDEO, SIZE, SWIN_FRAMES
from benchmarks.models.tables import markdown
from vswin_jax.models import CATALOG, create_model
from vswin_jax.models.cost import count_macs
from vswin_jax.models.parameters import merge_model, split_model
from vswin_jax.models.vit import ViTConfig
from vswin_jax.models.vtn import VTNConfig

# Multiply-accumulates in billions and parameters in millions, from the papers.
PUBLISHED = {
  "video_swin_t": (88, 28.2),
  "video_swin_s": (166, 49.8),
  "video_swin_b": (282, 88.1),
  "video_swin_l": (604, 197.0),
  "vtn_vit_b": (4218, 114.0),
}


def model_macs(model: nnx.Module, *inputs: jax.ShapeDtypeStruct, method: str = "__call__") -> int:
  """Returns the multiply-accumulates of a method of a model."""
  graph, shapes = split_model(model)
  return count_macs(
    lambda params, *inputs: getattr(merge_model(graph, params), method)(*inputs), shapes, *inputs
  )


def count(name: str) -> tuple[int, int, int]:
  """Returns parameters, multiply-accumulates as its paper counts, and as computed.

  Video Swin: a clip of 32 x 224 x 224; VTN: a video of 250 frames.
  """
  config = CATALOG[name]
  frames = LONG_VIDEO if isinstance(config, VTNConfig) else SWIN_FRAMES
  model = nnx.eval_shape(lambda: create_model(name))
  parameters = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
  video = jax.ShapeDtypeStruct((1, frames, SIZE, SIZE, 3), jnp.float32)
  computed = model_macs(model, video)
  if not isinstance(config, VTNConfig):
    return parameters, computed, computed
  image = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32)
  backbone = model_macs(model, image, method="backbone")
  return parameters, vtn_paper_macs(config, backbone, frames), computed


def vtn_paper_macs(config: VTNConfig, backbone_macs: int, frames: int) -> int:
  """Returns the multiply-accumulates of linear layers and convolutions.

  Args:
    backbone_macs: per frame, for backbones other than ViT.
  """
  backbone = config.named_backbone()
  if isinstance(backbone, ViTConfig):
    patches = (backbone.image_size // backbone.patch_size) ** 2
    tokens = patches + (2 if backbone.distilled else 1)
    block = (4 + 2 * backbone.mlp_ratio) * backbone.width**2
    patch = 3 * backbone.patch_size**2 * backbone.width
    backbone_macs = int(patches * patch + backbone.depth * tokens * block)
  width, hidden = config.width, config.head_width or config.width
  # query, key, value, the global key and value, the projection; the MLP.
  layer = 6 * width**2 + 2 * width * config.intermediate_size
  head = hidden * (width + config.num_classes)
  return frames * backbone_macs + (1 + frames) * config.num_layers * layer + head


def cost_table() -> str:
  """Returns the costs of the catalog as a Markdown table."""
  rows = []
  for name in CATALOG:
    parameters, by_paper, computed = count(name)
    known = PUBLISHED.get(name)
    published = f"{known[0]:,} G, {known[1]} M" if known else "-"
    numbers = f"{parameters:,}", f"{by_paper / 1e9:,.2f}", f"{computed / 1e9:,.2f}"
    rows.append((f"`{name}`", *numbers, published))
  return markdown(("model", "parameters", "G, the paper's count", "G computed", "published"), rows)
