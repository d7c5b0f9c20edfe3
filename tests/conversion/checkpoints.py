"""PyTorch files as users have them, filled by the golden rule."""

import json
import pathlib

import numpy as np
import pytest

from tests.helpers.golden import GOLDEN, golden, tensor_for


def golden_keys(case: str) -> dict[str, tuple[list[int], str]]:
  """Every entry of a reference's file: name -> (shape, dtype)."""
  return json.loads((GOLDEN / f"{case}.keys.json").read_text())


def official_keys(meta: dict) -> dict[str, tuple[list[int], str]]:
  """The entries of the official file of a model, from its size alone."""
  arch, window = meta["arch"], meta["window"]
  keys = {}
  width = arch["embed_dim"]

  def linear(name, outputs, inputs, bias=True):
    keys[f"{name}.weight"] = ([outputs, inputs], "float32")
    if bias:
      keys[f"{name}.bias"] = ([outputs], "float32")

  def norm(name, channels):
    keys[f"{name}.weight"] = keys[f"{name}.bias"] = ([channels], "float32")

  keys["backbone.patch_embed.proj.weight"] = ([width, 3, *meta["patch_size"]], "float32")
  keys["backbone.patch_embed.proj.bias"] = ([width], "float32")
  norm("backbone.patch_embed.norm", width)
  rows = int(np.prod([2 * size - 1 for size in window]))
  tokens = int(np.prod(window))
  for stage, (depth, heads) in enumerate(zip(arch["depths"], arch["num_heads"])):
    channels = width * 2**stage
    for block in range(depth):
      prefix = f"backbone.layers.{stage}.blocks.{block}."
      norm(f"{prefix}norm1", channels)
      keys[f"{prefix}attn.relative_position_bias_table"] = ([rows, heads], "float32")
      keys[f"{prefix}attn.relative_position_index"] = ([tokens, tokens], "int64")
      linear(f"{prefix}attn.qkv", 3 * channels, channels)
      linear(f"{prefix}attn.proj", channels, channels)
      norm(f"{prefix}norm2", channels)
      linear(f"{prefix}mlp.fc1", 4 * channels, channels)
      linear(f"{prefix}mlp.fc2", channels, 4 * channels)
    if stage + 1 < len(arch["depths"]):
      linear(f"backbone.layers.{stage}.downsample.reduction", 2 * channels, 4 * channels, False)
      norm(f"backbone.layers.{stage}.downsample.norm", 4 * channels)
  norm("backbone.norm", width * 2 ** (len(arch["depths"]) - 1))
  linear("cls_head.fc_cls", meta["num_classes"], width * 2 ** (len(arch["depths"]) - 1))
  return keys


def fill(keys: dict) -> dict[str, np.ndarray]:
  """Tensors by the golden rule; buffers, which no converter reads, count up."""
  return {
    name: tensor_for(name, shape).astype(dtype)
    if dtype.startswith("float")
    else np.arange(np.prod(shape), dtype=dtype).reshape(shape)
    for name, (shape, dtype) in keys.items()
  }


def official_tensors(case: str) -> dict[str, np.ndarray]:
  return fill(official_keys(golden(case)[0]))


def tiny_tensors(num_classes: int = 11) -> dict[str, np.ndarray]:
  """An official file of two small blocks, for tests in which the size is not the point."""
  arch = {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2]}
  meta = {"arch": arch, "window": [2, 2, 2], "patch_size": [2, 4, 4], "num_classes": num_classes}
  return fill(official_keys(meta))


def save_torch(path: pathlib.Path, content: object) -> pathlib.Path:
  """`torch.save` with every array of `content`, a nested dict, as a tensor."""
  torch = pytest.importorskip("torch")

  def as_tensors(value):
    if isinstance(value, dict):
      return {key: as_tensors(entry) for key, entry in value.items()}
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value

  torch.save(as_tensors(content), path)
  return path


def save_vtn(path: pathlib.Path, tensors: dict) -> pathlib.Path:
  """A file as the released training code writes it, optimizer and all."""
  positions = np.arange(288)[None]
  return save_torch(
    path,
    {
      "epoch": 24,
      "model_state": {**tensors, "temporal_encoder.embeddings.position_ids": positions},
      "optimizer_state": {"state": {0: {"momentum_buffer": np.zeros(3, np.float32)}}},
      "cfg": "MODEL:\n  ARCH: VIT\n",
    },
  )


def save_official(path: pathlib.Path, tensors: dict) -> pathlib.Path:
  """A file as the official training code writes it."""
  meta = {"epoch": 30, "config": "model = dict(type='Recognizer3D')", "mmcv_version": "1.3.3"}
  return save_torch(path, {"meta": meta, "state_dict": tensors})
