"""Loading of trained and converted models from checkpoints."""

import os

import jax
from flax import nnx

from vswin_jax.checkpoints.errors import CheckpointError
from vswin_jax.checkpoints.manager import checkpoints_of, restore_params
from vswin_jax.checkpoints.metadata import CheckpointMetadata
from vswin_jax.checkpoints.selection import read_metadata
from vswin_jax.inference.video_model import VideoModel
from vswin_jax.models import create_model, model_config
from vswin_jax.models.parameters import merge_model, split_model, with_shardings


def read_model_metadata(directory: str | os.PathLike) -> CheckpointMetadata:
  """Reads the metadata of the newest checkpoint in a local or remote folder.

  Raises:
    CheckpointError: there is no checkpoint, or this version can't build its model.
  """
  metadata = read_metadata(directory)
  try:
    model_config(**metadata.model)
  except (TypeError, ValueError) as error:
    raise CheckpointError(
      f"{directory} holds a model that this version can't build: {error}; use the version that "
      "wrote it, or train or convert again"
    ) from error
  return metadata


def load_model(path: str | os.PathLike, **overrides) -> VideoModel:
  """Loads the newest checkpoint of a run or of a conversion.

  Args:
    path: workdir of a run of `vswin_jax.main`, or the DEST of `vswin_jax.convert`; local, or
      "gs://bucket/folder".
    **overrides: fields of the model's configuration that change no parameter, such as
      `dtype="bfloat16"` or `attention="chunked"`; `backbone_options` are overridden one by one.

  Returns:
    The model, on one device.

  Raises:
    CheckpointError: there is no checkpoint, or this version can't build its model.
    ValueError: an override that does not exist or does not fit.
  """
  directory = checkpoints_of(path)
  metadata = read_model_metadata(directory)
  options = metadata.model | overrides
  if "backbone_options" in overrides:
    stored = dict(metadata.model.get("backbone_options", {}))
    options["backbone_options"] = stored | dict(overrides["backbone_options"])
  graph, shapes = split_model(nnx.eval_shape(lambda: create_model(**options)))
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  _, params, _ = restore_params(directory, with_shardings(shapes, device))
  return VideoModel(
    merge_model(graph, params), metadata.preprocessing, metadata.labels, metadata.multi_label
  )
