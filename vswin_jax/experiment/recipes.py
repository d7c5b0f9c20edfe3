"""Training recipes that several config files share.

The official Video Swin code executes its config files differently from what they say. Those recipes
have two versions: `--config=configs/k400_swin_b.py` is what produced the published numbers,
`--config=configs/k400_swin_b.py:written` is what the config files say.
"""

from ml_collections import config_dict

from vswin_jax.common.checks import check_choices
from vswin_jax.data.preprocessing import VTN_MEAN, VTN_STD
from vswin_jax.experiment.config import base_config

_TABLES = r".*\.relative_position_bias_table"
_HEAD = r"head\..*"
_NORMS = r".*norm\d?\.(scale|bias)"
_REST = r".*"

# Multipliers of learning rate and weight decay. mmcv, which the official code uses, applies only
# the longest key that matches a name: bias tables learn at the full rate, and LayerNorm parameters
# and biases decay.
_EXECUTED = (
  ((_TABLES, 1.0), (_HEAD, 1.0), (_REST, 0.1)),
  ((_TABLES, 0.0), (_REST, 1.0)),
)
# All matching keys apply, as in mmaction2 1.x.
_WRITTEN = (
  ((_HEAD, 1.0), (_REST, 0.1)),
  ((_TABLES, 0.0), (_NORMS, 0.0), (_REST, 1.0)),
)
_VERSIONS = ("executed", "written")


def video_swin_config(
  model: str, starts_from: str, version: str = "executed"
) -> config_dict.ConfigDict:
  """Returns the official Video Swin recipe: AdamW, 30 epochs, 64 clips a step, cosine by epoch.

  Args:
    model: a name of the catalog.
    starts_from: see `config.starts_from`.
    version: "executed", or "written": other parameter groups, and a cosine by step that begins
      after the warm-up.

  Raises:
    ValueError: an unknown version.
  """
  check_choices(_VERSIONS, version=version)
  config = base_config(model)
  config.starts_from = starts_from
  config.model.dtype = "bfloat16"
  config.loader.num_workers = 8
  is_executed = version == "executed"
  config.schedule.name = "cosine_epochs" if is_executed else "cosine"
  set_groups(config, _EXECUTED if is_executed else _WRITTEN)
  return config


def set_groups(config: config_dict.ConfigDict, groups: tuple) -> None:
  """Sets the multipliers of learning rate and weight decay."""
  rates, decays = groups
  config.optimizer.learning_rate_multipliers = rates
  config.optimizer.weight_decay_multipliers = decays


def kinetics_swin_config(
  model: str, starts_from: str, version: str = "executed"
) -> config_dict.ConfigDict:
  """Returns `video_swin_config` for Kinetics-400 from ImageNet-1K weights."""
  config = video_swin_config(model, starts_from, version)
  config.data.name = "kinetics400"
  return config


def kinetics_swin_22k_config(
  model: str, starts_from: str, version: str = "executed"
) -> config_dict.ConfigDict:
  """Returns `kinetics_swin_config` from ImageNet-22K weights, with a lower learning rate."""
  config = kinetics_swin_config(model, starts_from, version)
  config.model.drop_path_rate = 0.2
  config.schedule.learning_rate = 3e-4
  return config


def kinetics_swin_384_config(version: str = "executed") -> config_dict.ConfigDict:
  """Returns the recipe of Video Swin-L at 384 pixels: 60 epochs, RandAugment, 10 x 5 views."""
  config = kinetics_swin_22k_config("video_swin_l", "swin_l_w12_in22k_2d --window=8,12,12", version)
  config.model.update(window_size=(8, 12, 12), drop_path_rate=0.5, rematerialization="block")
  config.clip.update(size=384, train_short_side=416)
  config.validation.short_side = 416
  config.test.update(num_clips=10, crops="five", short_side=416)
  config.train.epochs = 60.0
  # 50 views of 384 x 384 are 0.7 GB of pixels a video.
  config.eval_batch_size = 8
  set_strong_augmentation(config)
  return config


def set_strong_augmentation(config: config_dict.ConfigDict) -> None:
  """Turns on RandAugment as in imgaug, random erasing and label smoothing."""
  config.augmentation.update(rand_augment="imgaug", num_operations=4, magnitude=7.0)
  config.augmentation.erasing_probability = 0.25
  config.train.label_smoothing = 0.1


def mmaction2_swin_config(model: str, starts_from: str) -> config_dict.ConfigDict:
  """Returns the mmaction2 1.x recipe of Swin-L on Kinetics-700."""
  config = video_swin_config(model, starts_from)
  set_groups(config, _WRITTEN)
  config.clip.sampling = "dense_to_ends"
  config.model.drop_path_rate = 0.4
  config.train.batch_size = 128
  config.schedule.learning_rate = 2e-3
  return config


def kinetics_vtn_config(model: str, starts_from: str) -> config_dict.ConfigDict:
  """Returns the recipe of the released Kinetics-400 VTN, without parameter groups.

  Training sees 16 frames of 5.12 s, evaluation 250 frames of 10 s.
  """
  config = base_config(model)
  config.starts_from = starts_from
  config.model.update(dtype="bfloat16", frames_per_chunk=16)
  config.data.update(name="kinetics400", mean=VTN_MEAN, std=VTN_STD)
  config.loader.num_workers = 8
  config.clip.update(num_frames=16, frame_interval=8, frame_rate=25.0, sampling="time")
  config.clip.update(train_crop="jittered", rounding="pyslowfast")
  for views in (config.validation, config.test):
    views.update(num_clips=1, crops="center", short_side=256, whole_frames=250)
  config.train.update(batch_size=16, epochs=25.0)
  config.eval_batch_size = 4
  config.schedule.update(name="steps", learning_rate=1e-3, warmup_epochs=0.0)
  config.schedule.decay_epochs = (13.0, 24.0)
  config.optimizer.update(name="sgd", weight_decay=1e-4)
  return config


def kinetics_vtn_resnet_config(model: str, starts_from: str) -> config_dict.ConfigDict:
  """Returns `kinetics_vtn_config` with the paper's batch for ResNets and no decay of batch norm."""
  config = kinetics_vtn_config(model, starts_from)
  config.train.batch_size = 32
  config.optimizer.weight_decay_multipliers = (
    (r"backbone\..*\.norm\.(scale|bias)", 0.0),
    (r".*", 1.0),
  )
  return config


def quickstart_config(model: str) -> config_dict.ConfigDict:
  """Returns a recipe for a small model on the generated `motion_clips`, from random weights."""
  config = base_config(model)
  config.init_from = "random"
  config.data.update(name="motion_clips", mean=(110.0, 110.0, 110.0), std=(60.0, 60.0, 60.0))
  config.clip.update(num_frames=16, frame_interval=1, size=32, train_short_side=48)
  config.clip.area_range = (0.5, 1.0)
  # A mirrored clip belongs to another class.
  config.clip.flip_probability = 0.0
  config.validation.short_side = 36
  config.test.update(num_clips=1, crops="center", short_side=36)
  # Two cores are shared with the training itself.
  config.loader.num_workers = 1
  config.train.update(batch_size=32, epochs=6.0, log_every=25, eval_every=256, save_every=256)
  config.eval_batch_size = 64
  config.schedule.update(name="cosine", warmup_epochs=1.0, warmup_start=0.0)
  config.optimizer.clip_norm = 1.0
  return config
