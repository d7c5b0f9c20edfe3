"""Weight initialization: finds the initial weights of a run and overrides the config from them."""

from collections.abc import Collection

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from ml_collections import config_dict

from vswin_jax.checkpoints import manager
from vswin_jax.checkpoints.errors import CheckpointError
from vswin_jax.checkpoints.metadata import CheckpointMetadata
from vswin_jax.checkpoints.selection import newest_step, read_metadata
from vswin_jax.common.logging import logger
from vswin_jax.common.paths import AnyPath, file_path
from vswin_jax.data.clips import short_side_of_crops
from vswin_jax.data.preprocessing import Preprocessing
from vswin_jax.experiment import results
from vswin_jax.experiment.config import config_errors, set_options
from vswin_jax.experiment.workdir import RunFolder
from vswin_jax.inference.loading import check_model
from vswin_jax.models.catalog import different_options
from vswin_jax.models.parameters import CLASSIFIERS, flatten, with_shardings
from vswin_jax.training.step import TrainState

# Values that weights decide only for training; a resumed run keeps those it was started with.
_TRAINING_KEYS = ("clip.train_short_side", "validation.short_side", "validation.whole_frames")


class InitializationError(ValueError):
  """Raised when a run needs weights and none were given."""


def find_source(
  config: config_dict.ConfigDict, folder: RunFolder, mode: str, checkpoint: str | None
) -> AnyPath | None:
  """Returns the workdir or the converted weights that a run takes its weights from.

  Args:
    folder: folder of the run; if it has a checkpoint, the run takes that one.
    mode: "train" or "eval".
    checkpoint: folder that takes precedence over all others.

  Returns:
    The folder; None for random weights.

  Raises:
    InitializationError: no weights are given, or none to evaluate.
  """
  if checkpoint is not None:
    return file_path(checkpoint)
  if newest_step(folder.checkpoints) is not None:
    return folder.path
  if mode == "eval":
    raise InitializationError(
      f"there is no checkpoint in {folder.path}; give --checkpoint=DIR, the workdir of a run or "
      "converted weights"
    )
  if config.init_from is None:
    raise InitializationError(f"this recipe starts from pretrained weights: {_advice(config)}")
  if config.init_from != "random":
    return file_path(config.init_from)
  if config.model.name is None:
    raise InitializationError(
      "--config.init_from=random needs a model, and this config takes it from the initial weights; "
      "give --config.init_from=DIR of converted weights or of a run"
    )
  return None


def _advice(config: config_dict.ConfigDict) -> str:
  given = "--config.init_from=models/start (converted weights, or the workdir of a run)"
  random = "--config.init_from=random trains from random weights (far lower accuracy)"
  if not config.starts_from:
    return f"give {given}; {random}"
  command = f"`python -m vswin_jax.convert {config.starts_from} models/start`"
  name = config.starts_from.split()[0]
  if name.endswith(".safetensors"):
    page = f"https://huggingface.co/timm/{name.removesuffix('.safetensors')}"
    command += f" (that file is model.safetensors of {page})"
  return f"{command}, then add {given}; {random}"


def override_config(
  config: config_dict.ConfigDict,
  source: AnyPath | None,
  *,
  mode: str,
  folder: RunFolder | None = None,
  overridden_keys: Collection[str],
) -> config_dict.ConfigDict:
  """Returns the config with the values that its weights decide.

  An evaluation uses the preprocessing of the weights and, where the config leaves an option of the
  model open, their option. So does training with a config that names no model.

  Args:
    source: folder of the weights, from `find_source`.
    folder: folder of the run; if it is the source, the run keeps the values it started with.
    overridden_keys: keys given on the command line, which the weights do not override.

  Raises:
    CheckpointError: the weights belong to another model than the config names.
    ConfigError: options that make no model.
  """
  config = config.copy_and_resolve_references()
  if source is not None:
    directory = manager.checkpoints_of(source)
    saved = read_metadata(directory)
    check_model(directory, saved)
    names_no_model = config.model.name is None
    if mode == "eval" or names_no_model:
      values = _checkpoint_values(saved.preprocessing, config, overridden_keys)
      started_with = folder and source == folder.path and results.read_config(folder.local)
      if mode == "eval":
        values = {key: value for key, value in values.items() if key not in _TRAINING_KEYS}
      elif started_with:
        started_with = flatten_dict(started_with, sep=".")
        values |= {key: started_with[key] for key in _TRAINING_KEYS}
      for key, value in values.items():
        section, name = key.split(".")
        if config[section][name] != value and key not in overridden_keys:
          kept = started_with and key in _TRAINING_KEYS
          origin = "the config of the run" if kept else "the preprocessing of the checkpoint"
          logger.info("config.%s: %s (follows from %s)", key, value, origin)
          config[section][name] = value
    if names_no_model or (mode == "eval" and config.model.name == saved.model["name"]):
      config.model = config_dict.ConfigDict(_merge_options(saved.model, set_options(config.model)))
    _check_same_model(directory, saved, config, mode)
  for section in ("validation", "test"):
    # Crops that were given on the command line without a short side decide it.
    given = f"{section}.crops" in overridden_keys
    if given and f"{section}.short_side" not in overridden_keys:
      views = config[section]
      views.short_side = short_side_of_crops(views.crops, config.clip.size, views.short_side)
  return config.lock()


def _checkpoint_values(
  preprocessing: Preprocessing, config: config_dict.ConfigDict, overridden_keys: Collection[str]
) -> dict:
  """Returns the config values, by dotted key, that follow from the preprocessing of weights.

  In training, frames are larger than clips by the ratio of the views or, where frames of the views
  are as large as clips, by that of the recipes: 256 pixels for clips of 224.
  """
  metadata, views, own_size = (
    preprocessing.to_metadata(),
    preprocessing.views,
    preprocessing.clip.size,
  )
  size = config.clip.size if "clip.size" in overridden_keys else own_size
  larger = views.short_side if views.short_side > own_size else own_size * 256 // 224
  short_side = round(larger * size / own_size)
  return {
    "data.mean": preprocessing.mean,
    "data.std": preprocessing.std,
    **{f"clip.{name}": value for name, value in metadata["clip"].items()},
    **{f"test.{name}": value for name, value in metadata["views"].items()},
    "clip.size": size,
    "test.short_side": round(views.short_side * size / own_size),
    "clip.train_short_side": short_side,
    "validation.short_side": short_side,
    "validation.whole_frames": views.whole_frames,
  }


def _merge_options(own: dict, given: dict) -> dict:
  """Returns the options of the weights' model, replaced by those of the config."""
  own = {name: value for name, value in own.items() if name != "num_classes"}
  backbone = {**own.get("backbone_options", {}), **given.get("backbone_options", {})}
  return {**own, **given} | ({"backbone_options": backbone} if backbone else {})


def _check_same_model(
  directory: AnyPath, saved: CheckpointMetadata, config: config_dict.ConfigDict, mode: str
) -> None:
  """Raises CheckpointError if the weights belong to another model than the config names."""
  ours, theirs = config.model.name, saved.model["name"]
  # If more than the head is random, only the backbone was converted.
  only_backbone = any(not start.startswith("head.") for start in saved.random)
  with config_errors():
    differences = different_options(set_options(config.model), saved.model)
  for option, here, there in differences:
    is_new = mode == "train" and option == "head_width"
    if is_new or (only_backbone and not option.startswith("backbone")):
      continue
    if ours != theirs:
      raise CheckpointError(
        f"{directory} holds a {theirs}, the config is for a {ours}; use a config of that model, or "
        "convert or train weights of the one that is wanted"
      )
    raise CheckpointError(
      f"{directory} holds a model with {option} {there}, the config says {here}; set "
      f"--config.model.{option}, or convert or train weights of the model that is wanted"
    )


def load_initial_weights(
  source: AnyPath, state: TrainState, class_names: tuple[str, ...]
) -> TrainState:
  """Returns the state with the parameters of another run, or of converted weights.

  A classifier of another size or of other classes stays random, and so does what was random in the
  converted weights.

  Raises:
    CheckpointError: no checkpoint, or one of another model.
  """
  directory = manager.checkpoints_of(source)
  shapes = with_shardings(state.params, jax.tree.map(lambda p: p.sharding, state.params))

  def random_parts(saved: CheckpointMetadata) -> tuple[str, ...]:
    return saved.random if saved.labels in (None, class_names) else saved.random + CLASSIFIERS

  step, loaded, saved = manager.restore_params(
    directory, shapes, replaceable=("head.",), ignored=random_parts
  )
  params = jax.tree.map(
    lambda new, old: old if isinstance(new, jax.ShapeDtypeStruct) else new, loaded, state.params
  )
  logger.info("loaded weights of step %d of %s", step, directory)
  kept = [name for name, leaf in flatten(loaded).items() if isinstance(leaf, jax.ShapeDtypeStruct)]
  if kept:
    # The layers of a head, otherwise top-level modules.
    modules = {
      path.rpartition(".")[0] if path.startswith("head.") else path.partition(".")[0]
      for path in kept
    }
    logger.info("randomly initialized: %s", ", ".join(sorted(modules)))
  if saved.labels is None and not any(name.startswith(CLASSIFIERS) for name in kept):
    logger.warning(
      "%s does not name its classes: its classifier is used for the %d classes of the data set",
      directory,
      len(class_names),
    )
  ema_params = jax.tree.map(jnp.copy, params) if state.ema_params else {}
  return state.replace(params=params, ema_params=ema_params)


def check_metadata(
  directory: AnyPath, saved: CheckpointMetadata, now: CheckpointMetadata, *, resuming: bool
) -> None:
  """Compares the metadata of a checkpoint with that of a run.

  Args:
    saved: metadata of the checkpoint.
    now: metadata of the run.
    resuming: whether training goes on from the checkpoint.

  Raises:
    CheckpointError: other classes, another kind of labels or, when resuming, other videos.
  """
  data = now.training["data"]
  new_run = "or start a new run with --config.init_from"
  # Converted weights may not know the names of their classes; restoring checks their number.
  if saved.labels not in (None, now.labels):
    raise CheckpointError(
      f"the classes of {directory} are not those of the data set {data}, or are in another order; "
      f"use the data set it was trained on, {new_run}"
    )
  if saved.training and saved.multi_label != now.multi_label:
    raise CheckpointError(
      f"one of {directory} and the data set {data} gives a video one label, the other any number "
      f"of them; use the data set it was trained on, {new_run}"
    )
  before = saved.preprocessing.to_metadata()
  for name, value in now.preprocessing.to_metadata().items():
    if name != "views" and before[name] != value:
      logger.warning("the weights were trained with %s %s, now it is %s", name, before[name], value)
  videos = (saved.training or {}).get("videos")
  if resuming and videos != now.training["videos"]:
    raise CheckpointError(
      f"{directory} was trained on {videos} videos, the training split now has "
      f"{now.training['videos']}: the order of the data would change. Restore the data set, "
      f"{new_run}"
    )
