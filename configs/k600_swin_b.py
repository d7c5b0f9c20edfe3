"""Video Swin-B on Kinetics-600 from ImageNet-22K weights: the recipe of Kinetics-400."""

from vswin_jax.experiment.recipes import kinetics_swin_22k_config


def get_config(version: str = "executed"):
  config = kinetics_swin_22k_config("video_swin_b", "swin_b_in22k_2d", version)
  config.data.name = "kinetics600"
  return config
