"""The base of all configs: every key, its default and its meaning.

A config file is `get_config()` returning `base_config()` with a few values replaced. Any leaf can
also be set on the command line, as in `--config.train.batch_size=32`.
"""

import dataclasses

from ml_collections import config_dict

from vswin_jax.data.clips import ClipSpec, Views
from vswin_jax.data.pipeline import LoaderOptions
from vswin_jax.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD, VTN_MEAN, VTN_STD
from vswin_jax.models import model_config


def base_config(model: str = "video_swin_t") -> config_dict.ConfigDict:
  """The defaults: the recipe shared by the published Kinetics models, with no data set named.

  Args:
    model: a name of the catalog, which decides what options the section `model` has.
  """
  config = config_dict.ConfigDict()

  # Of the parameters, the order of the data, augmentation, dropout.
  config.seed = 0

  # Where the parameters start: "random", the workdir of a run, or converted weights.
  config.init_from = config_dict.placeholder(str)

  # A name of the catalog; other keys replace what the catalog says (None: keep it).
  config.model = config_dict.ConfigDict({"name": model, **_placeholders(model_config(model))})

  config.data = config_dict.ConfigDict(
    {
      # Name of a TFDS data set of video records, and the folder of data sets it lies in.
      "name": "",
      "dir": "~/tensorflow_datasets",
      "train_split": "train",
      "eval_split": "validation",
      # Pixels (0-255, RGB) are normalised with these on the device.
      "mean": IMAGENET_MEAN,
      "std": IMAGENET_STD,
      # Training stops when a larger share of clips can't be decoded.
      "max_failed_share": 0.02,
    }
  )

  # See the classes' docstrings.
  config.clip = _section(ClipSpec())
  config.loader = _section(LoaderOptions())

  # Views of a video: while training (one centre crop), and for the final result.
  config.validation = _section(Views(num_clips=1, crops="center", short_side=256))
  config.test = _section(Views(num_clips=4, crops="three", short_side=224))

  config.train = config_dict.ConfigDict(
    {
      # Clips of one optimizer step over all devices, in `accumulate` parts.
      "batch_size": 64,
      "accumulate": 1,
      "epochs": 30.0,
      "label_smoothing": 0.0,
      # Of the moving average of the parameters, evaluated beside them; 0: none.
      "average_decay": 0.0,
      # In steps; the last step always evaluates and saves.
      "log_every": 50,
      "eval_every": 5000,
      "save_every": 1000,
      # Newest checkpoints to keep.
      "keep": 3,
    }
  )

  # Videos of one evaluation step over all devices.
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

  # Devices that share one copy of the parameters and the optimizer's state.
  config.mesh = config_dict.ConfigDict({"fsdp": 1})

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


def _section(defaults) -> config_dict.ConfigDict:
  return config_dict.ConfigDict(dataclasses.asdict(defaults))


def kinetics_swin_config(model: str) -> config_dict.ConfigDict:
  """The recipe of the published Kinetics-400 Video Swins, as their code executed it.

  Written down otherwise in the official configs, but executed: LayerNorm parameters and biases
  decay too, and the bias tables learn at the full rate, ten times faster than the rest of the
  backbone.
  """
  config = base_config(model)
  config.model.dtype = "bfloat16"
  config.data.name = "kinetics400"
  config.loader.num_workers = 8
  config.optimizer.learning_rate_multipliers = (
    (r".*\.relative_position_bias_table", 1.0),
    (r"head\..*", 1.0),
    (r".*", 0.1),
  )
  config.optimizer.weight_decay_multipliers = (
    (r".*\.relative_position_bias_table", 0.0),
    (r".*", 1.0),
  )
  return config


def kinetics_vtn_config(model: str) -> config_dict.ConfigDict:
  """The recipe of the released Kinetics-400 VTN: every parameter at one rate, decay on all of them.

  Clips of 16 frames from 5.12 s in training, 250 frames from 10 s in evaluation.
  """
  config = base_config(model)
  config.model.dtype = "bfloat16"
  config.model.frames_per_chunk = 16
  config.data.name = "kinetics400"
  config.data.mean = VTN_MEAN
  config.data.std = VTN_STD
  config.loader.num_workers = 8

  config.clip.num_frames = 16
  config.clip.frame_interval = 8
  config.clip.frame_rate = 25.0
  config.clip.sampling = "time"
  config.clip.train_crop = "jittered"
  config.clip.rounding = "pyslowfast"
  for views in (config.validation, config.test):
    views.update({"num_clips": 1, "crops": "center", "short_side": 256, "whole_frames": 250})

  config.train.batch_size = 16
  config.train.epochs = 25.0
  config.eval_batch_size = 4
  config.schedule.name = "steps"
  config.schedule.learning_rate = 1e-3
  config.schedule.warmup_epochs = 0.0
  config.schedule.decay_epochs = (13.0, 24.0)
  config.optimizer.name = "sgd"
  config.optimizer.weight_decay = 1e-4
  return config


def kinetics_vtn_resnet_config(model: str) -> config_dict.ConfigDict:
  """`kinetics_vtn_config` with the paper's batch for ResNets; batch norm does not decay."""
  config = kinetics_vtn_config(model)
  config.train.batch_size = 32
  config.optimizer.weight_decay_multipliers = (
    (r"backbone\..*\.norm\.(scale|bias)", 0.0),
    (r".*", 1.0),
  )
  return config


def quickstart_config(model: str) -> config_dict.ConfigDict:
  """Small clips of the motions that the library generates, for a small model of random weights."""
  config = base_config(model)
  config.init_from = "random"
  config.data.name = "motion_clips"
  config.data.mean = (110.0, 110.0, 110.0)
  config.data.std = (60.0, 60.0, 60.0)

  config.clip.num_frames = 16
  config.clip.frame_interval = 1
  config.clip.size = 32
  config.clip.train_short_side = 48
  config.clip.area_range = (0.5, 1.0)
  # A mirrored clip would move the other way.
  config.clip.flip_probability = 0.0
  config.validation.short_side = 36
  config.test.update({"num_clips": 1, "crops": "center", "short_side": 36})

  # Two cores are shared with the training itself.
  config.loader.num_workers = 1

  config.train.batch_size = 32
  config.train.epochs = 6.0
  config.train.log_every = 25
  config.train.eval_every = 256
  config.train.save_every = 256
  config.eval_batch_size = 64
  config.schedule.name = "cosine"
  config.schedule.warmup_epochs = 1.0
  config.schedule.warmup_start = 0.0
  config.optimizer.clip_norm = 1.0
  return config
