"""A model out of a checkpoint, trained or converted."""

import dataclasses
import os

import jax
from flax import nnx

from vswin_jax.checkpoints.manager import (
  CheckpointError,
  checkpoints_of,
  read_metadata,
  restore_params,
)
from vswin_jax.data.preprocessing import Preprocessing
from vswin_jax.models import create_model
from vswin_jax.models.parameters import merge_model, split_model, with_shardings


@dataclasses.dataclass(frozen=True)
class Usage:
  """What a checkpoint says about the use of its weights.

  Attributes:
    model: arguments of `create_model`.
    labels: names of the classes, by index; None: unknown.
    preprocessing: from a video to the model's input.
    multi_label: a video may show any number of classes; probabilities are sigmoids.
    random_parts: starts of the paths of parameters that converted weights left random.
  """

  model: dict
  labels: tuple[str, ...] | None
  preprocessing: Preprocessing
  multi_label: bool = False
  random_parts: tuple[str, ...] = ()


def read_usage(directory: str | os.PathLike) -> Usage:
  """Reads how the weights of the newest checkpoint in a folder, here or in a bucket, are used.

  Raises:
    CheckpointError: no checkpoint there, or not one of this library.
  """
  metadata = read_metadata(directory)
  try:
    return Usage(
      model=metadata["model"],
      labels=tuple(metadata["labels"]) if metadata.get("labels") else None,
      preprocessing=Preprocessing.from_metadata(metadata["preprocessing"]),
      multi_label=bool(metadata.get("multi_label", False)),
      random_parts=tuple(metadata.get("source", {}).get("random", ())),
    )
  except (KeyError, ValueError) as error:
    raise CheckpointError(
      f"{directory} does not say which model it holds ({error}); expected a checkpoint of "
      "vswin_jax.main or vswin_jax.convert"
    ) from error


def load_model(path: str | os.PathLike, **overrides) -> nnx.Module:
  """Loads the newest checkpoint of a run or of a conversion, for use.

  Args:
    path: workdir of a run of `vswin_jax.main`, or the DEST of `vswin_jax.convert`; local, or
      "gs://bucket/folder".
    **overrides: fields of the model's configuration that change no parameter, such as
      `dtype="bfloat16"` or `attention="chunked"`; those of `backbone_options` one by one.

  Returns:
    The model on one device: `model(video)` with normalized float `[batch, time, height, width,
    3]` gives logits `[batch, num_classes]`, `model.features(video)` the pooled features. It
    carries `labels` (a tuple of class names, None if unknown), `preprocessing` (a
    `Preprocessing`: normalization, clips and views) and `multi_label` (True: probabilities are
    sigmoids of the logits, class by class; False: their softmax).

  Raises:
    CheckpointError: no checkpoint there, or not one of this library.
    ValueError: an override that does not exist or fit.
  """
  directory = checkpoints_of(path)
  usage = read_usage(directory)
  options = usage.model | overrides
  if "backbone_options" in overrides:
    stored = dict(usage.model.get("backbone_options", {}))
    options["backbone_options"] = stored | dict(overrides["backbone_options"])
  graph, shapes = split_model(nnx.eval_shape(lambda: create_model(**options)))
  place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  _, params, _ = restore_params(directory, with_shardings(shapes, place))
  model = merge_model(graph, params)
  model.labels = usage.labels
  model.preprocessing = usage.preprocessing
  model.multi_label = usage.multi_label
  return model
