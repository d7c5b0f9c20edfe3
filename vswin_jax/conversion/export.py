"""Export of a checkpoint to a file that the original PyTorch code loads."""

import json
import os

import numpy as np
from safetensors.numpy import save

from vswin_jax import __version__
from vswin_jax.common.paths import local_path, replacing
from vswin_jax.conversion.layouts import index_buffers, to_source, video_swin_names
from vswin_jax.conversion.matching import ConversionError
from vswin_jax.inference.loading import load_model
from vswin_jax.models.parameters import flatten, split_model
from vswin_jax.models.video_swin import VideoSwin


def export_file(source: str | os.PathLike, destination: str | os.PathLike, family: str) -> int:
  """Writes the weights of a checkpoint as a file of a PyTorch family, atomically.

  Args:
    source: workdir of a run, or result of a conversion.
    destination: `.safetensors`, or `.pth` or `.pt` (needs PyTorch); replaced if it exists.
    family: one of `layouts.VIDEO_SWIN_FAMILIES`.

  Returns:
    The number of tensors written: all parameters in float32, and the int64 index buffers that
    `load_state_dict(strict=True)` expects.

  Raises:
    LocalPathError: a path names a file on another machine.
    CheckpointError: there is no checkpoint.
    ConversionError: a model that the family does not have, or an unknown suffix.
  """
  destination = local_path(destination)
  if not destination.parent.is_dir():
    raise ConversionError(f"the folder {destination.parent} does not exist; create it first")
  if destination.suffix not in (".safetensors", ".pth", ".pt"):
    raise ConversionError(
      f"unknown suffix {destination.suffix!r}; expected .safetensors, .pth or .pt"
    )
  model = load_model(source)
  network = model.network
  if not isinstance(network, VideoSwin):
    raise ConversionError(
      f"{source} holds a {type(network).__name__}, which {family} does not have"
    )
  config = network.config
  name_of = video_swin_names(family)
  tensors = index_buffers(family, config.depths, config.window_size)
  for path, parameter in flatten(split_model(network)[1]).items():
    tensor = to_source(path, np.asarray(parameter, np.float32), config.patch_size)
    # A copy: PyTorch takes no read-only memory.
    tensors[name_of(path)] = np.array(tensor, order="C")
  with replacing(destination) as incomplete:
    if destination.suffix == ".safetensors":
      # Metadata are text in this format. Its `save_file` would ignore the umask.
      metadata = {"format": "pt", "family": family, "labels": json.dumps(model.labels)}
      incomplete.write_bytes(save(tensors, metadata))
    else:
      _save_torch(tensors, incomplete, family, model.labels)
  return len(tensors)


def _save_torch(tensors: dict, path: os.PathLike, family: str, labels) -> None:
  try:
    import torch
  except ImportError as error:
    raise ConversionError(
      "PyTorch, which writes .pth and .pt files, is not installed; write .safetensors instead, or "
      "pip install torch"
    ) from error
  content = {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}
  # torchvision's files hold the weights alone.
  if family != "torchvision":
    meta = {"vswin_jax_version": __version__} | ({"CLASSES": list(labels)} if labels else {})
    content = {"meta": meta, "state_dict": content}
  torch.save(content, path)
