"""Names of the parts of a model, by which a profile shows its operations."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from vswin_jax.models import create_model
from vswin_jax.models.parameters import merge_model, split_model

VTN = {"num_layers": 2, "num_heads": 2, "intermediate_size": 8}


@pytest.mark.parametrize(
  ("name", "options", "scopes"),
  [
    (
      "video_swin_t",
      {"embed_dim": 4, "depths": (1, 2), "num_heads": (1, 2), "window_size": (2, 2, 2)},
      ("patch_embed", "stage0/patch_merging", "stage1/block1/attention", "stage1/block1/mlp"),
    ),
    (
      "vtn_r50",
      VTN | {"width": 32, "backbone_options": {"width": 1, "depths": (1, 1, 1, 2)}},
      (
        "backbone/stage3/block1",
        "layer1/attention",
        "layer0/attention/banded_attention",
        "layer1/mlp",
      ),
    ),
  ],
)
def test_parts_are_named(name, options, scopes):
  graph, params = split_model(nnx.eval_shape(lambda: create_model(name, num_classes=3, **options)))
  video = jax.ShapeDtypeStruct((1, 4, 32, 32, 3), jnp.float32)
  lowered = jax.jit(lambda params, video: merge_model(graph, params)(video)).lower(params, video)
  text = lowered.as_text(debug_info=True)
  for scope in scopes:
    assert f"/{scope}/" in text, scope
