"""Export of a checkpoint to a file that the original PyTorch code loads."""

import json
import os
import pathlib
from collections.abc import Callable

import numpy as np
from safetensors.numpy import save_file

from vswin_jax import __version__
from vswin_jax.common.paths import local_path, replacing
from vswin_jax.conversion import video_swin
from vswin_jax.conversion.matching import ConversionError
from vswin_jax.inference.loading import load_model
from vswin_jax.models.parameters import flatten, split_model
from vswin_jax.models.video_swin import VideoSwin

# Families whose files hold the weights under "state_dict"; those of torchvision hold them alone.
_WRAPPED = ("official", "mmaction2")


def export_file(source: str | os.PathLike, destination: str | os.PathLike, family: str) -> int:
  """Writes the weights of a checkpoint as a file of a PyTorch family, atomically.

  Args:
    source: workdir of a run, or result of a conversion.
    destination: `.safetensors`, or `.pth` or `.pt` (needs PyTorch); replaced if it exists.
    family: one of `video_swin.FAMILIES`.

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
  write = _writer(destination.suffix)
  model = load_model(source)
  network = model.network
  if not isinstance(network, VideoSwin):
    raise ConversionError(
      f"{source} holds a {type(network).__name__}, which {family} does not have"
    )
  config = network.config
  name_of = video_swin.name_in(family)
  tensors = video_swin.index_buffers(family, config.depths, config.window_size)
  for path, parameter in flatten(split_model(network)[1]).items():
    tensor = video_swin.to_source(path, np.asarray(parameter, np.float32), config.patch_size)
    # A copy: PyTorch takes no read-only memory.
    tensors[name_of(path)] = np.array(tensor, order="C")
  with replacing(destination) as incomplete:
    write(tensors, incomplete, family, model.labels)
  return len(tensors)


def _writer(suffix: str) -> Callable:
  if suffix == ".safetensors":
    return _write_safetensors
  if suffix not in (".pth", ".pt"):
    raise ConversionError(f"unknown suffix {suffix!r}; expected .safetensors, .pth or .pt")
  try:
    import torch
  except ImportError as error:
    raise ConversionError(
      f"{suffix} files are written by PyTorch, which is not installed; write .safetensors instead, "
      "or pip install torch"
    ) from error

  def write(tensors: dict, path: pathlib.Path, family: str, labels) -> None:
    content = {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}
    if family in _WRAPPED:
      meta = {"vswin_jax_version": __version__} | ({"CLASSES": list(labels)} if labels else {})
      content = {"meta": meta, "state_dict": content}
    torch.save(content, path)

  return write


def _write_safetensors(tensors: dict, path: pathlib.Path, family: str, labels) -> None:
  # Metadata are text in this format.
  metadata = {"format": "pt", "family": family, "labels": json.dumps(labels)}
  # The library makes files readable by the owner only; the usual permissions are those of touch.
  path.touch()
  mode = path.stat().st_mode
  save_file(tensors, path, metadata=metadata)
  path.chmod(mode)
