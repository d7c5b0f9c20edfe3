"""A model out of a checkpoint, trained or converted."""

import os

import jax
from flax import nnx

from vswin_jax.data.preprocessing import Preprocessing
from vswin_jax.models import create_model
from vswin_jax.models.parameters import merge_model, split_model
from vswin_jax.training.checkpointing import (
  CheckpointError,
  checkpoints_of,
  read_facts,
  restore_params,
)


def load_model(path: str | os.PathLike, **overrides) -> nnx.Module:
  """Loads the newest checkpoint of a run or of a conversion, for use.

  Args:
    path: workdir of a run of `vswin_jax.main`, or the DEST of `vswin_jax.convert`.
    **overrides: fields of the model's configuration that change no parameter, such as
      `dtype="bfloat16"` or `attention="chunked"`.

  Returns:
    The model on one device: `model(video)` with normalised float `[batch, time, height, width,
    3]` gives logits `[batch, num_classes]`, `model.features(video)` the pooled features. It
    carries `labels` (a tuple of class names, None if unknown) and `preprocessing` (a
    `Preprocessing`: normalisation, clips and views).

  Raises:
    CheckpointError: no checkpoint there, or not one of this library.
    ValueError: an override that does not exist or fit.
  """
  directory = checkpoints_of(path)
  facts = read_facts(directory)
  try:
    options = dict(facts["model"])
    preprocessing = Preprocessing.from_facts(facts["preprocessing"])
  except (KeyError, TypeError, ValueError) as error:
    raise CheckpointError(
      f"{directory} does not say which model it holds ({error!r}); expected a checkpoint of "
      "vswin_jax.main or vswin_jax.convert"
    ) from error
  graph, shapes = split_model(nnx.eval_shape(lambda: create_model(**options | overrides)))
  place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  shapes = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), shapes
  )
  _, params, _ = restore_params(directory, shapes)
  model = merge_model(graph, params)
  model.labels = tuple(facts["labels"]) if facts.get("labels") else None
  model.preprocessing = preprocessing
  return model
