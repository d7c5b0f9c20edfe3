"""What the recipes of several config files share.

Where the executed behavior of a reference differs from what its config files say, its recipes come
in two: `--config=configs/k400_swin_b.py` is what produced the published numbers,
`--config=configs/k400_swin_b.py:written` what was written down.
"""

from ml_collections import config_dict

from vswin_jax.common.checks import check_choices
from vswin_jax.data.preprocessing import VTN_MEAN, VTN_STD
from vswin_jax.experiment.config import base_config

_TABLES = r".*\.relative_position_bias_table"
_HEAD = r"head\..*"
_NORMS = r".*norm\d?\.(scale|bias)"
_REST = r".*"

# Of learning rate and weight decay, the backbone at a tenth of the head's rate. The constructor of
# the official code's mmcv applies the longest key that matches a name and no other: tables learn at
# the full rate, and LayerNorm parameters and biases decay.
_EXECUTED = (
  ((_TABLES, 1.0), (_HEAD, 1.0), (_REST, 0.1)),
  ((_TABLES, 0.0), (_REST, 1.0)),
)
# Every key that matches counts, as the config files mean it and as mmaction2 1.x executes it.
_WRITTEN = (
  ((_HEAD, 1.0), (_REST, 0.1)),
  ((_TABLES, 0.0), (_NORMS, 0.0), (_REST, 1.0)),
)
_VERSIONS = ("executed", "written")


def video_swin_config(
  model: str, starts_from: str, version: str = "executed"
) -> config_dict.ConfigDict:
  """The recipe of the official Video Swins: AdamW, 30 epochs of 64 clips, cosine by epoch.

  Args:
    model: a name of the catalog.
    starts_from: see `config.starts_from`.
    version: "executed", or "written": other parameter groups, and a cosine at every step from the
      end of the warm-up on.

  Raises:
    ValueError: an unknown version.
  """
  check_choices(_VERSIONS, version=version)
  config = base_config(model)
  config.starts_from = starts_from
  config.model.dtype = "bfloat16"
  config.loader.num_workers = 8
  config.schedule.name = "cosine_epochs" if version == "executed" else "cosine"
  set_groups(config, _EXECUTED if version == "executed" else _WRITTEN)
  return config


def set_groups(config: config_dict.ConfigDict, groups: tuple) -> None:
  rates, decays = groups
  config.optimizer.learning_rate_multipliers = rates
  config.optimizer.weight_decay_multipliers = decays


def kinetics_swin_config(
  model: str, starts_from: str, version: str = "executed"
) -> config_dict.ConfigDict:
  """`video_swin_config` on Kinetics-400, from weights of ImageNet-1K."""
  config = video_swin_config(model, starts_from, version)
  config.data.name = "kinetics400"
  return config


def kinetics_swin_22k_config(
  model: str, starts_from: str, version: str = "executed"
) -> config_dict.ConfigDict:
  """`kinetics_swin_config` from weights of ImageNet-22K: a third of the rate."""
  config = kinetics_swin_config(model, starts_from, version)
  config.model.drop_path_rate = 0.2
  config.schedule.learning_rate = 3e-4
  return config


def kinetics_swin_384_config(version: str = "executed") -> config_dict.ConfigDict:
  """Video Swin-L at 384 pixels on Kinetics-400: 60 epochs, strong augmentation, 10 x 5 views."""
  config = kinetics_swin_22k_config("video_swin_l", "swin_l_w12_in22k_2d --window=8,12,12", version)
  config.model.window_size = (8, 12, 12)
  config.model.drop_path_rate = 0.5
  config.model.rematerialization = "block"
  config.clip.size = 384
  config.clip.train_short_side = 416
  config.validation.short_side = 416
  config.test.update({"num_clips": 10, "crops": "five", "short_side": 416})
  config.train.epochs = 60.0
  # 50 views of 384 x 384 are 0.7 GB of pixels a video.
  config.eval_batch_size = 8
  set_strong_augmentation(config)
  return config


def set_strong_augmentation(config: config_dict.ConfigDict) -> None:
  """RandAugment as imgaug does it, random erasing and soft targets."""
  config.augmentation.rand_augment = "imgaug"
  config.augmentation.num_operations = 4
  config.augmentation.magnitude = 7.0
  config.augmentation.erasing_probability = 0.25
  config.train.label_smoothing = 0.1


def mmaction2_swin_config(model: str, starts_from: str) -> config_dict.ConfigDict:
  """The recipe of mmaction2 1.x for Swin-L on Kinetics-700: twice the batch and the rate."""
  config = video_swin_config(model, starts_from)
  set_groups(config, _WRITTEN)
  config.clip.sampling = "dense_to_ends"
  config.model.drop_path_rate = 0.4
  config.train.batch_size = 128
  config.schedule.learning_rate = 2e-3
  return config


def kinetics_vtn_config(model: str, starts_from: str) -> config_dict.ConfigDict:
  """The recipe of the released Kinetics-400 VTN: every parameter at one rate, decay on all of them.

  Clips of 16 frames from 5.12 s in training, 250 frames from 10 s in evaluation.
  """
  config = base_config(model)
  config.starts_from = starts_from
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


def kinetics_vtn_resnet_config(model: str, starts_from: str) -> config_dict.ConfigDict:
  """`kinetics_vtn_config` with the paper's batch for ResNets; batch norm does not decay."""
  config = kinetics_vtn_config(model, starts_from)
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
