"""A model out of a checkpoint, trained or converted."""

import os

import jax
from flax import nnx

from vswin_jax.checkpoints.manager import checkpoints_of, restore_params
from vswin_jax.checkpoints.selection import read_metadata
from vswin_jax.models import create_model
from vswin_jax.models.parameters import merge_model, split_model, with_shardings


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
  metadata = read_metadata(directory)
  options = metadata.model | overrides
  if "backbone_options" in overrides:
    stored = dict(metadata.model.get("backbone_options", {}))
    options["backbone_options"] = stored | dict(overrides["backbone_options"])
  graph, shapes = split_model(nnx.eval_shape(lambda: create_model(**options)))
  place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  _, params, _ = restore_params(directory, with_shardings(shapes, place))
  model = merge_model(graph, params)
  model.labels = metadata.labels
  model.preprocessing = metadata.preprocessing
  model.multi_label = metadata.multi_label
  return model
