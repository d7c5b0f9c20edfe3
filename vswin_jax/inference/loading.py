"""Loading of trained and converted models from checkpoints."""

import os

import jax
from flax import nnx

from vswin_jax.checkpoints.errors import CheckpointError
from vswin_jax.checkpoints.manager import checkpoints_of, restore_params
from vswin_jax.checkpoints.metadata import CheckpointMetadata
from vswin_jax.common.huge_pages import suggest_huge_pages
from vswin_jax.common.paths import AnyPath
from vswin_jax.inference.self_check import choose_attention, with_attention
from vswin_jax.inference.video_model import VideoModel
from vswin_jax.models import create_model, model_config
from vswin_jax.models.parameters import merge_model, split_model, with_shardings


def check_model(directory: AnyPath, metadata: CheckpointMetadata) -> None:
  """Checks that this version can build the model of a checkpoint; raises CheckpointError if not."""
  try:
    model_config(**metadata.model)
  except (TypeError, ValueError) as error:
    raise CheckpointError(
      f"{directory} holds a model that this version can't build: {error}; use the version that "
      "wrote it, or train or convert again"
    ) from error


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
  if jax.default_backend() == "cpu":
    suggest_huge_pages()
  directory = checkpoints_of(path)
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  graph = None

  def shapes_of(metadata: CheckpointMetadata) -> dict:
    nonlocal graph
    check_model(directory, metadata)
    options = metadata.model | overrides
    if "backbone_options" in overrides:
      stored = dict(metadata.model.get("backbone_options", {}))
      options["backbone_options"] = stored | dict(overrides["backbone_options"])
    clip = metadata.preprocessing.clip
    implementations = choose_attention(options, clip.num_frames, clip.size)
    if implementations:
      options = with_attention(options, implementations[0])
    graph, shapes = split_model(nnx.eval_shape(lambda: create_model(**options)))
    return with_shardings(shapes, device)

  _, params, metadata = restore_params(directory, shapes_of)
  return VideoModel(
    merge_model(graph, params), metadata.preprocessing, metadata.labels, metadata.multi_label
  )
