"""Where the weights of a run come from, what they decide about it, and whether they fit it."""

from collections.abc import Collection

import jax
import jax.numpy as jnp
from ml_collections import config_dict

from vswin_jax.checkpoints import manager
from vswin_jax.common.paths import AnyPath, file_path
from vswin_jax.common.progress import logger
from vswin_jax.data.preprocessing import Preprocessing
from vswin_jax.experiment import results
from vswin_jax.experiment.config import set_options
from vswin_jax.inference.loading import ModelMetadata, read_model_metadata
from vswin_jax.models.catalog import different_options
from vswin_jax.models.parameters import CLASSIFIERS, flatten, with_shardings
from vswin_jax.training.step import TrainState


class StartError(ValueError):
  """A run that has nothing to start from; one line says what to give."""


def source_of(
  config: config_dict.ConfigDict, workdir: AnyPath, mode: str, checkpoint: str | None
) -> AnyPath | None:
  """The folder, of a run or of converted weights, whose weights a run takes; None: random ones.

  Raises:
    StartError: no weights are given, or none to evaluate.
  """
  if checkpoint is not None:
    return file_path(checkpoint)
  if manager.newest_step(manager.checkpoints_of(workdir)) is not None:
    return workdir
  if mode == "eval":
    raise StartError(
      f"there is no checkpoint in {workdir}; give --checkpoint=DIR, the workdir of a run or "
      "converted weights"
    )
  if config.init_from is None:
    raise StartError(f"this recipe starts from pretrained weights: {_how_to_start(config)}")
  if config.init_from != "random":
    return file_path(config.init_from)
  if config.model.name is None:
    raise StartError(
      "random weights of which model? This config takes the model from the weights it starts "
      "from; give --config.init_from=DIR of converted weights or of a run"
    )
  return None


def _how_to_start(config: config_dict.ConfigDict) -> str:
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


def settle(
  config: config_dict.ConfigDict,
  source: AnyPath | None,
  *,
  mode: str,
  workdir: AnyPath | None = None,
  overridden_keys: Collection[str],
) -> config_dict.ConfigDict:
  """The config with what the weights decide.

  An evaluation uses the weights as they say: with their preprocessing, and as their model where the
  config does not set an option of it. So does training with a config that names no model.

  Args:
    source: from `source_of`.
    workdir: of the run; if it is the source, the run goes on as it was started.
    overridden_keys: keys of `config` that hold against the preprocessing of the weights.

  Raises:
    CheckpointError: the weights are those of another model than the config names.
  """
  if source is None:
    return config
  directory = manager.checkpoints_of(source)
  usage = read_model_metadata(directory)
  names_no_model = config.model.name is None
  if mode == "eval" or names_no_model:
    config = config.copy_and_resolve_references()
    size = config.clip.size if "clip.size" in overridden_keys else usage.preprocessing.clip.size
    values = _values_of_use(usage.preprocessing, size)
    if mode == "train":
      started_with = results.read_config(workdir) if source == workdir else None
      values |= _values_of_training(usage.preprocessing, size, started_with)
    for key, value in values.items():
      section, name = key.split(".")
      if config[section][name] != value and key not in overridden_keys:
        logger.info("config.%s: %s, as the checkpoint says", key, value)
        config[section][name] = value
    if names_no_model or config.model.name == usage.model["name"]:
      config.model = config_dict.ConfigDict(_model_options(usage, set_options(config.model)))
    config.lock()
  _check_model(directory, usage, config, mode)
  return config


def _model_options(usage: ModelMetadata, given: dict) -> dict:
  """The options of a model, with those given in the place of some."""
  own = {name: value for name, value in usage.model.items() if name != "num_classes"}
  backbone = {**own.get("backbone_options", {}), **given.get("backbone_options", {})}
  return {**own, **given} | ({"backbone_options": backbone} if backbone else {})


def _values_of_use(preprocessing: Preprocessing, size: int) -> dict:
  """Config keys and values of how weights are used, for clips of `size` pixels."""
  metadata = preprocessing.to_metadata()
  views = preprocessing.views
  return {
    "data.mean": preprocessing.mean,
    "data.std": preprocessing.std,
    **{f"clip.{name}": value for name, value in metadata["clip"].items()},
    **{f"test.{name}": value for name, value in metadata["views"].items()},
    "test.short_side": round(views.short_side * size / preprocessing.clip.size),
  }


def _values_of_training(preprocessing: Preprocessing, size: int, started_with: dict | None) -> dict:
  """Config keys and values of training and validation that follow from the use of the weights.

  Frames are as much larger than clips as in the views of the weights or, where those show no more
  than a clip does, as in the recipes: 256 pixels for 224.

  Args:
    started_with: the config of a run that goes on, whose values stay.
  """
  views, own_size = preprocessing.views, preprocessing.clip.size
  larger = views.short_side if views.short_side > own_size else own_size * 256 // 224
  short_side = round(larger * size / own_size)
  values = {
    "clip.train_short_side": short_side,
    "validation.short_side": short_side,
    "validation.whole_frames": views.whole_frames,
  }
  if started_with is None:
    return values
  return {key: started_with[section][name] for key in values for section, name in [key.split(".")]}


def _check_model(
  directory: AnyPath, usage: ModelMetadata, config: config_dict.ConfigDict, mode: str
) -> None:
  """Raises CheckpointError if weights would be used as those of another model than they are of."""
  ours, theirs = config.model.name, usage.model["name"]
  ignores_rest = _are_of_a_backbone_alone(directory)
  for option, here, there in different_options(set_options(config.model), usage.model):
    is_new = mode == "train" and option == "head_width"
    if is_new or (ignores_rest and not option.startswith("backbone")):
      continue
    if ours != theirs:
      raise manager.CheckpointError(
        f"{directory} holds a {theirs}, the config is for a {ours}; use a config of that model, or "
        "convert or train weights of the one that is wanted"
      )
    raise manager.CheckpointError(
      f"{directory} holds a model with {option} {there}, the config says {here}; set "
      f"--config.model.{option}, or convert or train weights of the model that is wanted"
    )


def _are_of_a_backbone_alone(directory: AnyPath) -> bool:
  """Whether more than the head is random, so that nothing is known of what surrounds a backbone."""
  return any(not start.startswith("head.") for start in _random_parts(directory))


def _random_parts(directory: AnyPath) -> tuple[str, ...]:
  """Starts of the paths of parameters that converted weights left random."""
  return tuple(manager.read_metadata(directory).get("source", {}).get("random", ()))


def with_weights_of(source: AnyPath, state: TrainState, class_names: tuple[str, ...]) -> TrainState:
  """Replaces the parameters by those of another run, or of converted weights.

  A classifier of another size or of other classes stays random, and so does what was random in the
  converted weights.
  """
  directory = manager.checkpoints_of(source)
  shapes = with_shardings(state.params, jax.tree.map(lambda p: p.sharding, state.params))
  random = _random_parts(directory)
  labels = manager.read_metadata(directory).get("labels")
  if labels not in (None, list(class_names)):
    random += CLASSIFIERS
  step, loaded, _ = manager.restore_params(directory, shapes, replaceable="head.", ignored=random)
  params = jax.tree.map(
    lambda new, old: old if isinstance(new, jax.ShapeDtypeStruct) else new, loaded, state.params
  )
  logger.info("weights from step %d of %s", step, directory)
  drawn = [name for name, leaf in flatten(loaded).items() if isinstance(leaf, jax.ShapeDtypeStruct)]
  if drawn:
    logger.info("not taken from there, so random: %s", ", ".join(_modules(drawn)))
  if labels is None and not any(name.startswith(CLASSIFIERS) for name in drawn):
    logger.warning(
      "the classes of %s have no names: its classifier is taken for one of the %d classes of the "
      "data set",
      directory,
      len(class_names),
    )
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


def check_metadata(directory: AnyPath, metadata: dict, now: dict, *, resuming: bool) -> None:
  """Compares what a checkpoint says about its weights with what a run would say.

  Raises:
    CheckpointError: it is of other classes, of another kind of labels or, to be resumed, of other
      videos.
  """
  data = now["training"]["data"]
  new_run = "or start a new run with --config.init_from"
  # Converted weights may not know the names of their classes; their number is checked elsewhere.
  if metadata.get("labels") not in (None, now["labels"]):
    raise manager.CheckpointError(
      f"the classes of {directory} are not those of the data set {data}, or stand in another "
      f"order; use the data set it was trained on, {new_run}"
    )
  if "training" in metadata and metadata.get("multi_label", False) != now["multi_label"]:
    raise manager.CheckpointError(
      f"one of {directory} and the data set {data} gives a video one label, the other any number "
      f"of them; use the data set it was trained on, {new_run}"
    )
  # What a checkpoint does not say had its default.
  before = read_model_metadata(directory).preprocessing.to_metadata()
  for name, value in now["preprocessing"].items():
    if name != "views" and before[name] != value:
      logger.warning("the weights were trained with %s %s, now it is %s", name, before[name], value)
  videos = metadata.get("training", {}).get("videos")
  if resuming and videos != now["training"]["videos"]:
    raise manager.CheckpointError(
      f"{directory} was trained on {videos} videos, the training split now has "
      f"{now['training']['videos']}: the order of the data would change. Restore the data set, "
      f"{new_run}"
    )
