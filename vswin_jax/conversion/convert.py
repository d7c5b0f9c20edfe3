"""Conversion of a PyTorch file to a checkpoint of this library."""

import dataclasses
import math
import os

from vswin_jax.checkpoints import manager
from vswin_jax.checkpoints.metadata import CheckpointMetadata
from vswin_jax.common.paths import local_path
from vswin_jax.conversion.download import file_sha256
from vswin_jax.conversion.families import ConversionOptions, Converted, convert_tensors
from vswin_jax.conversion.matching import ConversionError, find_tensors
from vswin_jax.conversion.torch_files import read_file
from vswin_jax.data.annotations import read_class_names
from vswin_jax.data.clips import describe_views, view_frames
from vswin_jax.data.label_names import label_names
from vswin_jax.data.preprocessing import Preprocessing
from vswin_jax.models import check_clips, model_config
from vswin_jax.models.parameters import unflatten
from vswin_jax.models.video_swin import VideoSwinConfig
from vswin_jax.models.vtn import VTNConfig

_LICENSE = "the reference code is Apache-2.0; no license is stated for the weights themselves"


def convert_file(
  source: str | os.PathLike, destination: str | os.PathLike, options: ConversionOptions
) -> Converted:
  """Converts a PyTorch or .safetensors file to a checkpoint, which is written atomically.

  Raises:
    LocalPathError: a path names a file on another machine.
    FileError: the file can't be read.
    ConversionError: weights of an unknown model, incomplete weights, or options that do not fit.
    CheckpointError: the destination exists or can't be written.
  """
  source, destination = local_path(source), local_path(destination)
  manager.check_absent(destination)
  content = read_file(source)
  converted = convert_tensors(find_tensors(content), options)
  converted = dataclasses.replace(
    converted,
    labels=_labels(options, content, converted),
    preprocessing=_preprocessing(converted, options),
  )
  metadata = CheckpointMetadata(
    model=converted.model,
    preprocessing=converted.preprocessing,
    labels=converted.labels,
    source={
      "file": source.name,
      "sha256": file_sha256(source),
      "family": converted.family,
      "license": _LICENSE,
      "notes": list(converted.notes),
      "random": list(converted.random),
    },
  )
  manager.write_params(destination, unflatten(converted.params), metadata)
  return converted


def _preprocessing(converted: Converted, options: ConversionOptions) -> Preprocessing:
  """Returns the preprocessing of the released model with the clip options applied."""
  default = converted.preprocessing
  views = default.views
  try:
    clip = dataclasses.replace(default.clip, **options.clip)
    check_clips(converted.model, clip.num_frames, clip.size)
  except ValueError as error:
    raise ConversionError(str(error)) from error
  whole_frames = 0 if "sampling" in options.clip else views.whole_frames
  if whole_frames:
    whole_frames = options.clip.get("num_frames", whole_frames)
  short_side = round(views.short_side * clip.size / default.clip.size)
  views = dataclasses.replace(views, short_side=short_side, whole_frames=whole_frames)
  return dataclasses.replace(default, clip=clip, views=views)


def _labels(
  options: ConversionOptions, content: object, converted: Converted
) -> tuple[str, ...] | None:
  """Returns class names from the options, the file or the data set; None if none has any."""
  num_classes = converted.model["num_classes"]
  if options.labels is not None:
    labels = read_class_names(options.labels)
    if len(labels) != num_classes:
      raise ConversionError(
        f"{options.labels} names {len(labels)} classes, the head has {num_classes}"
      )
    return labels
  # As saved by mmcv or mmengine; they name the classes of the file's head.
  match content:
    case {"meta": {"CLASSES": names}} | {"meta": {"dataset_meta": {"classes": names}}}:
      is_list = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
      if is_list and len(names) == num_classes and not converted.random:
        return tuple(names)
  return None if converted.dataset is None else label_names(converted.dataset)


# Fields of a configuration that a summary shows.
_SHOWN = {
  VideoSwinConfig: ("embed_dim", "depths", "num_heads", "patch_size", "window_size"),
  VTNConfig: ("backbone", "width", "num_layers", "num_heads", "attention_window"),
}


def describe(source: str | os.PathLike, converted: Converted) -> str:
  """Returns a human-readable summary of a conversion, one line per property."""
  clip, views = converted.preprocessing.clip, converted.preprocessing.views
  model, config = dict(converted.model), model_config(**converted.model)
  sizes = {name: getattr(config, name) for name in _SHOWN[type(config)]}
  lines = {
    "file": f"{source} ({os.path.getsize(source) / 1e6:.1f} MB)",
    "family": converted.family,
    "model": model.pop("name"),
    "classes": f"{model.pop('num_classes')} ({converted.dataset or 'data set unknown'}, "
    + ("names known)" if converted.labels else "no names: --labels=FILE)"),
    **(sizes | model),
    "parameters": f"{sum(math.prod(p.shape) for p in converted.params.values()):,}",
    "clips": f"{view_frames(clip, views)} frames of {clip.size} x {clip.size}, {clip.sampling}"
    + ("" if clip.sampling == "uniform" else f", interval {clip.frame_interval}")
    + (f" at {clip.frame_rate:g} a second" if clip.frame_rate else ""),
    "views": f"{describe_views(clip, views)} (clips x crops), short side {views.short_side}",
    "note": "; ".join(converted.notes) or None,
  }
  return "\n".join(f"{name:<16} {value}" for name, value in lines.items() if value is not None)
