"""The base of all configs: every key, its default and its meaning.

A config file is `get_config()` returning `base_config()` with a few values replaced. Any leaf can
also be set on the command line, as in `--config.train.batch_size=32`.
"""

import dataclasses
import json

from ml_collections import config_dict

from vswin_jax.augmentation.augmentation import Augmentation
from vswin_jax.data.clips import ClipSpec, Views
from vswin_jax.data.pipeline import LoaderOptions
from vswin_jax.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from vswin_jax.models.catalog import CATALOG, model_config


def base_config(model: str | None = "video_swin_t") -> config_dict.ConfigDict:
  """The defaults: the recipe shared by the published Kinetics models, with no data set named.

  Args:
    model: a name of the catalog, which decides what options the section `model` has; None: the
      model and the preprocessing of `init_from`.
  """
  config = config_dict.ConfigDict()

  # Of the parameters, the order of the data, augmentation, dropout.
  config.seed = 0

  # Where the parameters start: "random", the workdir of a run, or converted weights.
  config.init_from = config_dict.placeholder(str)
  # What a recipe starts from, said to those who give no `init_from`: arguments of
  # `vswin_jax.convert`.
  config.starts_from = ""

  # A name of the catalog; other keys replace what the catalog says (None: keep it).
  options = _placeholders_of_all_models() if model is None else _placeholders(model_config(model))
  config.model = config_dict.ConfigDict({"name": config_dict.placeholder(str), **options})
  config.model.name = model

  config.data = config_dict.ConfigDict(
    {
      # Name of a TFDS data set of video records, and the folder of data sets it lies in.
      "name": "",
      "dir": "~/tensorflow_datasets",
      "train_split": "train",
      "eval_split": "validation",
      # Pixels (0-255, RGB) are normalized with these on the device.
      "mean": IMAGENET_MEAN,
      "std": IMAGENET_STD,
      # Training stops when a larger share of clips can't be decoded.
      "max_failed_share": 0.02,
    }
  )

  # See the classes' docstrings.
  config.clip = _section(ClipSpec())
  config.loader = _section(LoaderOptions())

  # Views of a video: while training (one center crop), and for the final result.
  config.validation = _section(Views(num_clips=1, crops="center", short_side=256))
  config.test = _section(Views(num_clips=4, crops="three", short_side=224))

  config.train = config_dict.ConfigDict(
    {
      # Clips of one optimizer step over all devices, in `grad_accum_steps` parts (each of which is
      # mixed by itself, if `augmentation` mixes).
      "batch_size": 64,
      "grad_accum_steps": 1,
      "epochs": 30.0,
      # Clips of a video in an epoch, which gets that much longer; each is cut and augmented by
      # itself.
      "repeats": 1,
      # Only where videos have one label.
      "label_smoothing": 0.0,
      # Decay of the EMA of the parameters, which is evaluated beside them; 0: no EMA.
      "ema_decay": 0.0,
      # In steps; the last step always evaluates and saves.
      "log_every": 50,
      "eval_every": 5000,
      "save_every": 1000,
      # Checkpoints to keep: so many of the newest, at least one; so many of those with the best
      # validation; and those of steps that `keep_every` divides. 0: none for that reason.
      "keep": 3,
      "keep_best": 0,
      "keep_every": 0,
    }
  )

  # See `training.augmentation.Augmentation`; cropping and flipping are part of `clip`.
  config.augmentation = _section(Augmentation())

  # Videos of one evaluation step over all devices, rounded up to a multiple of them.
  config.eval_batch_size = 16

  # See `training.schedules.make_schedule`.
  config.schedule = config_dict.ConfigDict(
    {
      "name": "cosine_epochs",
      "learning_rate": 1e-3,
      "warmup_epochs": 2.5,
      "warmup_start": 0.1,
      "decay_epochs": (),
      "decay_factor": 0.1,
    }
  )

  # See `training.optimizer.make_optimizer`. Rules are (regular expression, multiplier), the first
  # that matches a parameter's whole path counts.
  config.optimizer = config_dict.ConfigDict(
    {
      "name": "adamw",
      "weight_decay": 0.05,
      "beta1": 0.9,
      "beta2": 0.999,
      "epsilon": 1e-8,
      "momentum": 0.9,
      "clip_norm": 0.0,
      "learning_rate_multipliers": ((r".*", 1.0),),
      "weight_decay_multipliers": ((r".*", 1.0),),
    }
  )

  config.mesh = config_dict.ConfigDict(
    {
      # Devices that share one copy of the parameters and the optimizer's state.
      "fsdp": 1,
      # Groups of devices that a slower network joins; 0: as the devices say.
      "slices": 0,
    }
  )

  return config.lock()


def _placeholders(model) -> dict:
  """Every option of a model, still without a value; those of a VTN's backbone in a section."""
  options = {
    field.name: config_dict.placeholder(type(getattr(model, field.name)))
    for field in dataclasses.fields(model)
    if field.name != "num_classes"
  }
  if "backbone_options" in options:
    options["backbone_options"] = config_dict.ConfigDict(_placeholders(model.named_backbone()))
  return options


def _placeholders_of_all_models() -> dict:
  """The options of all models, but for sections and for those whose type depends on the model."""
  kinds: dict[str, dict] = {}
  for name in CATALOG:
    for option, value in _placeholders(model_config(name)).items():
      kind = None if isinstance(value, config_dict.ConfigDict) else value.get_type()
      kinds.setdefault(option, {})[kind] = value
  return {
    option: next(iter(found.values()))
    for option, found in kinds.items()
    if len(found) == 1 and None not in found
  }


def _section(defaults) -> config_dict.ConfigDict:
  return config_dict.ConfigDict(dataclasses.asdict(defaults))


def set_options(section: config_dict.ConfigDict) -> dict:
  """What a section with placeholders says; sections in it that say nothing are left out."""
  options = {
    name: set_options(value) if isinstance(value, config_dict.ConfigDict) else value
    for name, value in section.items()
  }
  return {name: value for name, value in options.items() if value is not None and value != {}}


def flat_values(config: config_dict.ConfigDict) -> dict:
  """All values of a config as JSON would give them back, by dotted key."""
  return flatten_values(json.loads(config.to_json_best_effort()))


def flatten_values(tree: dict, prefix: str = "") -> dict:
  """Values of nested dicts by dotted key."""
  values = {}
  for key, value in tree.items():
    if isinstance(value, dict):
      values |= flatten_values(value, f"{prefix}{key}.")
    else:
      values[prefix + key] = value
  return values
