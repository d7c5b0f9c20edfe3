"""Config keys: every key, its default, its range and its meaning.

A config file has a `get_config()` that returns `base_config()` with a few values replaced. Any key
can be set on the command line, as in `--config.train.batch_size=32`. `read_settings` turns a config
into the typed `Settings` that everything else uses.
"""

import contextlib
import dataclasses
import json
import math
from collections.abc import Iterator

from flax.traverse_util import flatten_dict
from ml_collections import config_dict

from vswin_jax.augmentation.augmentation import Augmentation
from vswin_jax.common.checks import check_at_least, check_rates, fields
from vswin_jax.data.clips import ClipSpec, Views, check_views
from vswin_jax.data.pipeline import LoaderOptions
from vswin_jax.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from vswin_jax.models.catalog import CATALOG, check_clips, model_config
from vswin_jax.training.optimizer import OptimizerOptions
from vswin_jax.training.schedules import ScheduleOptions


class ConfigError(ValueError):
  """Raised when values of a config are out of range or do not fit together."""


@dataclasses.dataclass(frozen=True)
class DataSettings:
  """Data set and normalization.

  Attributes:
    name: name of a TFDS data set of video records.
    dir: folder of data sets.
    train_split: split to train on.
    eval_split: split to evaluate on.
    mean: mean of red, green and blue (0-255), subtracted on the device.
    std: standard deviation of red, green and blue (0-255), divided by on the device.
    max_failed_share: training stops when a larger share of clips can't be decoded.
  """

  name: str = ""
  dir: str = "~/tensorflow_datasets"
  train_split: str = "train"
  eval_split: str = "validation"
  mean: tuple[float, float, float] = IMAGENET_MEAN
  std: tuple[float, float, float] = IMAGENET_STD
  max_failed_share: float = 0.02

  def __post_init__(self):
    for name, value in fields(self, "mean", "std").items():
      if len(value) != 3:
        raise ValueError(f"data.{name} must be three numbers (red, green, blue), got {value}")
      object.__setattr__(self, name, tuple(value))


@dataclasses.dataclass(frozen=True)
class TrainSettings:
  """Length of the training, and what is logged, evaluated and saved when.

  Attributes:
    batch_size: clips of one optimizer step over all devices.
    grad_accum_steps: parts into which a batch is split to save memory; mixup and cutmix mix within
      a part.
    epochs: passes over the training split.
    repeats: clips of each video in an epoch, cut and augmented independently.
    label_smoothing: share of the target spread over all classes; single-label data only.
    ema_decay: decay of the moving average of the parameters, evaluated beside them; 0: no average.
    log_every: steps between logged metrics.
    eval_every: steps between evaluations; the last step is always evaluated.
    save_every: steps between checkpoints; the last step is always saved.
    keep: number of newest checkpoints to keep.
    keep_best: number of checkpoints with the best validation score to keep.
    keep_every: also keep the checkpoints of steps that this divides; 0: none.
  """

  batch_size: int = 64
  grad_accum_steps: int = 1
  epochs: float = 30.0
  repeats: int = 1
  label_smoothing: float = 0.0
  ema_decay: float = 0.0
  log_every: int = 50
  eval_every: int = 5000
  save_every: int = 1000
  keep: int = 3
  keep_best: int = 0
  keep_every: int = 0

  def __post_init__(self):
    names = ("grad_accum_steps", "repeats", "log_every", "eval_every", "save_every", "keep")
    check_at_least(1, **{f"train.{name}": getattr(self, name) for name in names})
    check_at_least(0, **{"train.keep_best": self.keep_best, "train.keep_every": self.keep_every})
    check_rates(
      **{"train.label_smoothing": self.label_smoothing, "train.ema_decay": self.ema_decay}
    )
    if not (math.isfinite(self.epochs) and self.epochs > 0):
      raise ValueError(f"train.epochs must be a positive number, got {self.epochs}")


@dataclasses.dataclass(frozen=True)
class MeshSettings:
  """Layout of the devices.

  Attributes:
    fsdp: devices that share one copy of the parameters and the optimizer state.
    slices: groups of devices connected by a slower network; 0: as the devices report.
  """

  fsdp: int = 1
  slices: int = 0


@dataclasses.dataclass(frozen=True)
class Settings:
  """A config as typed, checked values.

  Attributes:
    seed: seed of the parameters, the order of the data, augmentation and dropout.
    init_from: initial weights: "random", the workdir of a run, or converted weights.
    starts_from: initial weights of the recipe, as arguments of `vswin_jax.convert`; used in the
      message to users who give no `init_from`.
    model: arguments of `create_model` without `num_classes`; options that a config leaves at None
      have the value of the catalog and are not in here.
    validation: views of each video (clips x crops) in evaluations during training.
    test: views of each video (clips x crops) in the final evaluation.
    eval_batch_size: videos of one evaluation step over all devices, rounded up to a multiple of
      the number of devices.
  """

  model: dict
  seed: int = 0
  init_from: str | None = None
  starts_from: str = ""
  data: DataSettings = DataSettings()
  clip: ClipSpec = ClipSpec()
  loader: LoaderOptions = LoaderOptions()
  validation: Views = Views(num_clips=1, crops="center", short_side=256)
  test: Views = Views(num_clips=4, crops="three", short_side=224)
  train: TrainSettings = TrainSettings()
  augmentation: Augmentation = Augmentation()
  eval_batch_size: int = 16
  schedule: ScheduleOptions = ScheduleOptions()
  optimizer: OptimizerOptions = OptimizerOptions()
  mesh: MeshSettings = MeshSettings()

  def __post_init__(self):
    check_at_least(0, seed=self.seed)
    check_at_least(1, eval_batch_size=self.eval_batch_size)
    train = self.train
    if self.augmentation.mixes and train.batch_size < 2 * train.grad_accum_steps:
      raise ValueError(
        "mixup and cutmix need at least two clips in each part of a batch; got train.batch_size "
        f"{train.batch_size} with train.grad_accum_steps {train.grad_accum_steps}"
      )

  def values(self) -> dict:
    """Returns all values as nested dicts of JSON types."""
    return json.loads(json.dumps(dataclasses.asdict(self)))


_SECTIONS = {
  field.name: type(field.default)
  for field in dataclasses.fields(Settings)
  if dataclasses.is_dataclass(field.default)
}


def base_config(model: str | None = "video_swin_t") -> config_dict.ConfigDict:
  """Returns the defaults: the recipe shared by the published Kinetics models, without a data set.

  Args:
    model: a name of the catalog, which decides the options of the section `model`; None: the model
      and the preprocessing come from the weights of `init_from`.
  """
  options = _placeholders_of_all_models() if model is None else _placeholders(model_config(model))
  values = dataclasses.asdict(Settings(model={"name": config_dict.placeholder(str), **options}))
  values["init_from"] = config_dict.placeholder(str)
  config = config_dict.ConfigDict(values)
  config.model.name = model
  return config.lock()


def _placeholders(model) -> dict:
  """Returns every option of a model without a value; those of a VTN's backbone in a section."""
  options = {
    field.name: config_dict.placeholder(type(getattr(model, field.name)))
    for field in dataclasses.fields(model)
    if field.name != "num_classes"
  }
  if "backbone_options" in options:
    options["backbone_options"] = config_dict.ConfigDict(_placeholders(model.named_backbone()))
  return options


def _placeholders_of_all_models() -> dict:
  """Returns the options of all models whose type is the same in each; no sections."""
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


def set_options(section: config_dict.ConfigDict) -> dict:
  """Returns the options of a section that have a value; empty sections are omitted."""
  options = {
    name: set_options(value) if isinstance(value, config_dict.ConfigDict) else value
    for name, value in section.items()
  }
  return {name: value for name, value in options.items() if value is not None and value != {}}


@contextlib.contextmanager
def config_errors() -> Iterator[None]:
  """Converts ValueError and TypeError to `ConfigError`."""
  try:
    yield
  except (TypeError, ValueError) as error:
    raise ConfigError(str(error)) from error


def read_settings(config: config_dict.ConfigDict, mode: str = "train") -> Settings:
  """Returns the typed settings of a config.

  Args:
    mode: "train" or "eval"; the views of `validation` need not fit an evaluation.

  Raises:
    ConfigError: a value is out of range or of the wrong type, or the clips do not fit the model.
  """
  with config_errors():
    values = {name: section(**config[name]) for name, section in _SECTIONS.items()}
    values |= {name: config[name] for name in config if name not in ("model", *_SECTIONS)}
    settings = Settings(model=set_options(config.model), **values)
    check_views(settings.clip, settings.test, "config.test")
    if mode == "train":
      check_views(settings.clip, settings.validation, "config.validation")
    check_clips(settings.model, settings.clip.num_frames, settings.clip.size)
  return settings


def shared_flags(values: dict) -> dict[str, str]:
  """Returns, by flag, the config values that must be equal in all processes of a run."""
  return {
    f"--config.{key}": str(value)
    for key, value in flatten_dict(values, sep=".").items()
    if key != "data.dir" and not key.startswith("loader.")
  }
