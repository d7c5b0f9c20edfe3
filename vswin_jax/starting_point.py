"""Where the weights of a run come from, what they decide about it, and whether they fit it."""

import pathlib
from collections.abc import Collection

import jax
import jax.numpy as jnp
from ml_collections import config_dict

from vswin_jax.data.preprocessing import Preprocessing
from vswin_jax.loading import Usage, read_usage
from vswin_jax.local_files import local_path
from vswin_jax.models.parameters import CLASSIFIERS, flatten
from vswin_jax.training import checkpointing, sharding
from vswin_jax.training.progress import logger
from vswin_jax.training.step import TrainState


class StartError(ValueError):
  """A run that has nothing to start from; one line says what to give."""


def source_of(
  config: config_dict.ConfigDict, workdir: pathlib.Path, mode: str, checkpoint: str | None
) -> pathlib.Path | None:
  """The folder, of a run or of converted weights, whose weights a run takes; None: random ones.

  Raises:
    StartError: training from the beginning, and no weights are given.
  """
  if checkpoint is not None:
    return local_path(checkpoint)
  if mode == "eval" or _has_checkpoint(workdir):
    return workdir
  if config.init_from is None:
    example = f"`python -m vswin_jax.convert {config.starts_from} models/start`, then add "
    raise StartError(
      "this recipe starts from pretrained weights: "
      + (example if config.starts_from else "give ")
      + "--config.init_from=models/start (converted weights, or the workdir of a run); "
      "--config.init_from=random trains from random weights (far lower accuracy)"
    )
  if config.init_from != "random":
    return local_path(config.init_from)
  if config.model.name is None:
    raise StartError(
      "random weights of which model? This config takes the model from the weights it starts "
      "from; give --config.init_from=DIR of converted weights or of a run"
    )
  return None


def _has_checkpoint(workdir: pathlib.Path) -> bool:
  directory = checkpointing.checkpoints_of(workdir)
  if not directory.is_dir():
    return False
  with checkpointing.open_checkpoints(directory) as checkpoints:
    return checkpointing.latest_step(checkpoints) is not None


def settle(
  config: config_dict.ConfigDict,
  source: pathlib.Path | None,
  *,
  mode: str,
  explicit: Collection[str],
) -> config_dict.ConfigDict:
  """The config with what the weights decide: how they are used, and which model they are.

  In an evaluation the preprocessing of the weights takes the place of the config's. It does so in
  training, and so does their model, where the config names no model.

  Args:
    source: from `source_of`.
    explicit: keys of `config` that hold against the preprocessing of the weights.
  """
  takes_model = config.model.name is None
  if source is None or not (mode == "eval" or takes_model):
    return config
  usage = read_usage(checkpointing.checkpoints_of(source))
  config = config.copy_and_resolve_references()
  for key, value in _preprocessing_values(usage.preprocessing, all_views=takes_model).items():
    section, name = key.split(".")
    if config[section][name] != value and key not in explicit:
      logger.info("config.%s: %s, as the checkpoint says", key, value)
      config[section][name] = value
  if takes_model:
    config.model = config_dict.ConfigDict(_model_options(usage, config.model))
  return config.lock()


def _preprocessing_values(preprocessing: Preprocessing, *, all_views: bool) -> dict:
  """Config keys and values.

  Args:
    all_views: also those of training and validation that follow from the size of a clip: short
      sides as in the recipes, 256 pixels for clips of 224.
  """
  facts = preprocessing.as_facts()
  values = {
    "data.mean": preprocessing.mean,
    "data.std": preprocessing.std,
    **{f"clip.{name}": value for name, value in facts["clip"].items()},
    **{f"test.{name}": value for name, value in facts["views"].items()},
  }
  if all_views:
    short_side = preprocessing.clip.size * 256 // 224
    values["clip.train_short_side"] = values["validation.short_side"] = short_side
    values["validation.whole_frames"] = preprocessing.views.whole_frames
  return values


def _model_options(usage: Usage, section: config_dict.ConfigDict) -> dict:
  given = {name: value for name, value in section.items() if value is not None}
  options = {name: value for name, value in usage.model.items() if name != "num_classes"}
  return options | given


def with_weights_of(
  source: pathlib.Path, state: TrainState, class_names: tuple[str, ...]
) -> TrainState:
  """Replaces the parameters by those of another run, or of converted weights.

  A classifier of another size or of other classes stays random, and so does what was random in the
  converted weights.
  """
  directory = checkpointing.checkpoints_of(source)
  shapes = sharding.with_shardings(state.params, jax.tree.map(lambda p: p.sharding, state.params))
  facts = checkpointing.read_facts(directory)
  random = tuple(facts.get("source", {}).get("random", ()))
  if facts.get("labels") not in (None, list(class_names)):
    random += CLASSIFIERS
  step, loaded, _ = checkpointing.restore_params(
    directory, shapes, replaceable="head.", ignored=random
  )
  params = jax.tree.map(
    lambda new, old: old if isinstance(new, jax.ShapeDtypeStruct) else new, loaded, state.params
  )
  logger.info("weights from step %d of %s", step, directory)
  drawn = [name for name, leaf in flatten(loaded).items() if isinstance(leaf, jax.ShapeDtypeStruct)]
  if drawn:
    logger.info("not taken from there, so random: %s", ", ".join(_modules(drawn)))
  average = jax.tree.map(jnp.copy, params) if state.average else {}
  return state.replace(params=params, average=average)


def _modules(paths: list[str]) -> list[str]:
  """The modules of parameters: those of a head by name, all else by its first name."""
  return sorted(
    {
      path.rpartition(".")[0] if path.startswith("head.") else path.partition(".")[0]
      for path in paths
    }
  )


def check_facts(directory: pathlib.Path, facts: dict, now: dict, *, resuming: bool) -> None:
  """Compares what a checkpoint says about its weights with what a run would say.

  Raises:
    CheckpointError: it is of other classes, of another kind of labels or, to be resumed, of other
      videos.
  """
  data = now["training"]["data"]
  new_run = "or start a new run with --config.init_from"
  # Converted weights may not know the names of their classes; their number is checked elsewhere.
  if facts.get("labels") not in (None, now["labels"]):
    raise checkpointing.CheckpointError(
      f"the classes of {directory} are not those of the data set {data}, or stand in another "
      f"order; use the data set it was trained on, {new_run}"
    )
  if "training" in facts and facts.get("multi_label", False) != now["multi_label"]:
    raise checkpointing.CheckpointError(
      f"one of {directory} and the data set {data} gives a video one label, the other any number "
      f"of them; use the data set it was trained on, {new_run}"
    )
  # What a checkpoint does not say had its default.
  before = read_usage(directory).preprocessing.as_facts()
  for name, value in now["preprocessing"].items():
    if name != "views" and before[name] != value:
      logger.warning("the weights were trained with %s %s, now it is %s", name, before[name], value)
  videos = facts.get("training", {}).get("videos")
  if resuming and videos != now["training"]["videos"]:
    raise checkpointing.CheckpointError(
      f"{directory} was trained on {videos} videos, the training split now has "
      f"{now['training']['videos']}: the order of the data would change. Restore the data set, "
      f"{new_run}"
    )
