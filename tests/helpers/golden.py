"""Golden files, and models with the weights of the reference implementation.

`tests/golden` holds outputs of the reference for weights that `tensor_for` computes from their
names, so that no checkpoint is stored.
"""

import json
import pathlib
import re
import zlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vswin_jax.models.parameters import merge_model, parameter_path, split_model
from vswin_jax.models.video_swin import VideoSwin, VideoSwinConfig

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"

# Our parameter path -> the reference's key; the first pattern that matches.
_NAMES = [
  (r"patch_embed\.(.*)", r"backbone.patch_embed.\1"),
  (r"stages\.(\d+)\.downsample\.(.*)", r"backbone.layers.\1.downsample.\2"),
  (r"stages\.(\d+)\.blocks\.(\d+)\.attention\.(.*)", r"backbone.layers.\1.blocks.\2.attn.\3"),
  (r"stages\.(\d+)\.blocks\.(\d+)\.(.*)", r"backbone.layers.\1.blocks.\2.\3"),
  (r"norm\.(.*)", r"backbone.norm.\1"),
  (r"head\.(.*)", r"cls_head.fc_cls.\1"),
]


def tensor_for(name: str, shape) -> np.ndarray:
  """Returns the float64 values of one reference tensor, from its name and shape."""
  random = np.random.RandomState(zlib.crc32(name.encode()))
  x = random.standard_normal(shape)
  if name.endswith("relative_position_bias_table"):
    return 0.5 * x
  if len(shape) <= 1:
    return 1 + 0.2 * x if name.endswith("weight") else 0.1 * x
  return x / np.sqrt(np.prod(shape[1:]))


def reference_name(path: str) -> str:
  for pattern, replacement in _NAMES:
    if re.fullmatch(pattern, path):
      name = re.sub(pattern, replacement, path)
      return re.sub(r"\.(kernel|scale)$", ".weight", name)
  raise KeyError(path)


def reference_tensor(path: str, shape, patch_size) -> np.ndarray:
  """Returns the reference's tensor for one of our parameters, in our layout."""
  name = reference_name(path)
  if path == "patch_embed.proj.kernel":
    tensor = tensor_for(name, (shape[1], 3, *patch_size))
    return tensor.transpose(2, 3, 4, 1, 0).reshape(shape)
  if path.endswith(".kernel"):
    return tensor_for(name, shape[::-1]).T
  return tensor_for(name, shape)


def reference_model(meta: dict, **overrides) -> VideoSwin:
  """Returns the model of a golden file with its weights."""
  config = VideoSwinConfig(
    num_classes=meta["num_classes"],
    window_size=meta["window"],
    patch_size=meta["patch_size"],
    **meta["arch"],
    **overrides,
  )
  graph, shapes = split_model(nnx.eval_shape(lambda: VideoSwin(config, rngs=nnx.Rngs(0))))

  def fill(path, leaf):
    tensor = reference_tensor(parameter_path(path), leaf.shape, config.patch_size)
    return jnp.asarray(tensor, jnp.float32)

  return merge_model(graph, jax.tree_util.tree_map_with_path(fill, shapes))


def golden(case: str) -> tuple[dict, dict[str, np.ndarray]]:
  """Returns the metadata and the arrays of a golden file."""
  with np.load(GOLDEN / f"{case}.npz") as arrays:
    return json.loads(str(arrays["meta"])), {
      name: arrays[name] for name in arrays.files if name != "meta"
    }


def golden_video(meta: dict) -> np.ndarray:
  """Returns the input of a golden file."""
  random = np.random.RandomState(meta["input_seed"])
  return random.standard_normal(meta["input_shape"]).astype(np.float32)
