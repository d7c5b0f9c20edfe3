"""Video Swin-T on Kinetics-400 from ImageNet-1K weights: 30 epochs of 32-frame clips."""

from vswin_jax.experiment.recipes import kinetics_swin_config


def get_config(version: str = "executed"):
  config = kinetics_swin_config("video_swin_t", "swin_t_in1k_2d", version)
  config.optimizer.weight_decay = 0.02
  return config
