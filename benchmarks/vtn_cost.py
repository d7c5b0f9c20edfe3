"""Parameters and multiply-accumulates of the VTN variants, by the paper's count and as computed.

The paper counts linear layers and convolutions over all tokens; for Swin backbones, which it does
not have, all products count. The computed number includes the products of attention, but only those
for the class token in the last ViT block and the last temporal layer.

  python -m benchmarks.vtn_cost [--frames=250]
"""

import argparse

import jax
import jax.numpy as jnp
from flax import nnx

from vswin_jax.models import CATALOG, create_model
from vswin_jax.models.cost import count_macs
from vswin_jax.models.parameters import merge_model, split_model
from vswin_jax.models.vit import ViTConfig
from vswin_jax.models.vtn import VTNConfig

PUBLISHED = {"vtn_vit_b": (4218, 114.0)}


def published_macs(config: VTNConfig, backbone_macs: int, frames: int) -> int:
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


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--frames", type=int, default=250)
  frames = parser.parse_args().frames
  print(
    f"| model | parameters | G of {frames} frames, the paper's count | G computed | published |"
  )
  print("|---|---|---|---|---|")
  for name, config in CATALOG.items():
    if not isinstance(config, VTNConfig):
      continue
    model = nnx.eval_shape(lambda name=name: create_model(name))
    graph, shapes = split_model(model)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))

    def run(params, video, graph=graph):
      return merge_model(graph, params)(video)

    def encode(params, images, graph=graph):
      return merge_model(graph, params).backbone(images)

    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    backbone_macs = count_macs(encode, shapes, image)
    macs = published_macs(config, backbone_macs, frames)
    video = jax.ShapeDtypeStruct((1, frames, 224, 224, 3), jnp.float32)
    computed = count_macs(run, shapes, video)
    known = PUBLISHED.get(name) if frames == 250 else None
    published = f"{known[0]} G, {known[1]} M" if known else "-"
    print(
      f"| `{name}` | {parameters:,} | {macs / 1e9:,.2f} | {computed / 1e9:,.2f} | {published} |"
    )


if __name__ == "__main__":
  main()
