"""From a PyTorch file to a checkpoint of this library."""

import dataclasses
import math
import os
import pathlib
from collections.abc import Mapping

from vswin_jax.checkpoints import manager
from vswin_jax.checkpoints.metadata import CheckpointMetadata
from vswin_jax.common.paths import local_path
from vswin_jax.conversion import released
from vswin_jax.conversion.download import file_sha256
from vswin_jax.conversion.families import Converted, Options, convert_tensors
from vswin_jax.conversion.matching import ConversionError, find_tensors
from vswin_jax.conversion.torch_files import read_file
from vswin_jax.data.clips import describe_views, view_frames
from vswin_jax.data.label_names import label_names
from vswin_jax.data.preprocessing import Preprocessing
from vswin_jax.models import check_clips, model_config
from vswin_jax.models.parameters import unflatten
from vswin_jax.models.video_swin import VideoSwinConfig
from vswin_jax.models.vtn import VTNConfig

_LICENCE = "the reference code is Apache-2.0; no license is stated for the weights themselves"


@dataclasses.dataclass(frozen=True)
class Request(Options):
  """What is asked of a conversion besides the weights.

  Attributes:
    labels: a text file of class names, one a line; None: those of the file or the data set.
    clip: fields of `ClipSpec` that differ from the released model's.
  """

  labels: pathlib.Path | None = None
  clip: Mapping = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Conversion:
  """What `convert_file` did."""

  source: pathlib.Path
  released: released.Released | None
  converted: Converted
  labels: tuple[str, ...] | None
  preprocessing: Preprocessing


def convert_file(
  source: str | os.PathLike, destination: str | os.PathLike, request: Request
) -> Conversion:
  """Converts a PyTorch file to a checkpoint; it appears whole or not at all.

  Raises:
    LocalPathError: names of files on another machine.
    FileError: the file can't be read.
    ConversionError: its weights are of no known model, incomplete, or the request does not fit.
    CheckpointError: the destination exists or can't be written.
  """
  source, destination = local_path(source), local_path(destination)
  manager.check_absent(destination)
  content = read_file(source)
  converted = convert_tensors(find_tensors(content), request)
  labels = _labels(request, content, converted)
  preprocessing = _preprocessing(converted, request)
  digest = file_sha256(source)
  metadata = CheckpointMetadata(
    model=converted.model,
    preprocessing=preprocessing,
    labels=labels,
    source={
      "file": source.name,
      "sha256": digest,
      "family": converted.family,
      "license": _LICENCE,
      "notes": list(converted.notes),
      "random": list(converted.random),
    },
  )
  manager.write_params(destination, unflatten(converted.params), metadata)
  known = released.identify(source.name, digest, source.stat().st_size)
  return Conversion(source, known, converted, labels, preprocessing)


def _preprocessing(converted: Converted, request: Request) -> Preprocessing:
  """That of the released model with what the request says of clips."""
  own = converted.preprocessing
  views = own.views
  try:
    clip = dataclasses.replace(own.clip, **request.clip)
    check_clips(converted.model, clip.num_frames, clip.size)
  except ValueError as error:
    raise ConversionError(str(error)) from error
  if "size" in request.clip:
    short_side = round(views.short_side * clip.size / own.clip.size)
    views = dataclasses.replace(views, short_side=short_side)
  if views.whole_frames and "sampling" in request.clip:
    views = dataclasses.replace(views, whole_frames=0)
  elif views.whole_frames and "num_frames" in request.clip:
    views = dataclasses.replace(views, whole_frames=clip.num_frames)
  return dataclasses.replace(own, clip=clip, views=views)


def _labels(request: Request, content, converted: Converted) -> tuple[str, ...] | None:
  """Class names from the request, the file or the data set; None if none of them has any."""
  num_classes = converted.model["num_classes"]
  if request.labels is not None:
    try:
      text = request.labels.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
      raise ConversionError(f"{request.labels} is no UTF-8 text: {error}") from error
    labels = tuple(line.strip() for line in text.splitlines() if line.strip())
    if len(labels) != num_classes:
      raise ConversionError(
        f"{request.labels} names {len(labels)} classes, the head has {num_classes}"
      )
    return labels
  in_file = None if converted.has_new_head else _labels_in_file(content)
  if (
    isinstance(in_file, list | tuple)
    and len(in_file) == num_classes
    and all(isinstance(name, str) for name in in_file)
  ):
    return tuple(in_file)
  return None if converted.dataset is None else label_names(converted.dataset)


def _labels_in_file(content) -> object:
  """What mmcv ("CLASSES") or mmengine ("dataset_meta") put beside the weights, if anything."""

  def get(mapping, name):
    return mapping.get(name) if isinstance(mapping, Mapping) else None

  meta = get(content, "meta")
  return get(meta, "CLASSES") or get(get(meta, "dataset_meta"), "classes")


def describe(conversion: Conversion) -> str:
  """What was found in the file, for a person: one fact a line."""
  converted, preprocessing = conversion.converted, conversion.preprocessing
  clip, views = preprocessing.clip, preprocessing.views
  model, config = dict(converted.model), model_config(**converted.model)
  known = conversion.released
  lines = {
    "file": f"{conversion.source} ({conversion.source.stat().st_size / 1e6:.1f} MB)",
    "released as": None if known is None else f"{known.name}: {known.dataset}, {known.url}",
    "family": converted.family,
    "model": model.pop("name"),
    "classes": f"{model.pop('num_classes')} ({converted.dataset or 'data set unknown'}, "
    + ("names known)" if conversion.labels else "no names: --labels=FILE)"),
    **_describe_sizes(config),
    "differs in": ", ".join(f"{name}={value}" for name, value in model.items()) or None,
    "parameters": f"{sum(math.prod(p.shape) for p in converted.params.values()):,}",
    "clips": f"{view_frames(clip, views)} frames of {clip.size} x {clip.size}, {clip.sampling}"
    + ("" if clip.sampling == "uniform" else f", interval {clip.frame_interval}")
    + (f" at {clip.frame_rate:g} a second" if clip.frame_rate else ""),
    "views": f"{describe_views(clip, views)} (clips x crops), short side {views.short_side}",
    "note": "; ".join(converted.notes) or None,
  }
  return "\n".join(f"{name:<12} {value}" for name, value in lines.items() if value is not None)


def _describe_sizes(config: VideoSwinConfig | VTNConfig) -> dict[str, object]:
  if isinstance(config, VTNConfig):
    return {
      "backbone": config.backbone,
      "encoder": f"{config.num_layers} layers of {config.width} channels, "
      f"{config.num_heads} heads, window {config.attention_window}",
    }
  return {
    "channels": config.embed_dim,
    "blocks": _listed(config.depths),
    "heads": _listed(config.num_heads),
    "patch": _listed(config.patch_size, " x "),
    "window": _listed(config.window_size, " x "),
  }


def _listed(sizes: tuple[int, ...], separator: str = ", ") -> str:
  return separator.join(map(str, sizes))
