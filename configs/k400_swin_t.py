"""Video Swin-T on Kinetics-400 from ImageNet-1K weights: 30 epochs, 64 clips of 32 frames a step."""

from vswin_jax.config import kinetics_swin_config


def get_config():
  config = kinetics_swin_config("video_swin_t")
  config.model.drop_path_rate = 0.1
  config.optimizer.weight_decay = 0.02
  return config
