"""Video Swin-T on Kinetics-400 from ImageNet-1K weights: 30 epochs of 32-frame clips."""

from vswin_jax.config import kinetics_swin_config


def get_config():
  config = kinetics_swin_config("video_swin_t")
  config.optimizer.weight_decay = 0.02
  return config
