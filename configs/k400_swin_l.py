"""Video Swin-L on Kinetics-400 from ImageNet-22K weights: the recipe of Swin-B."""

from vswin_jax.experiment.recipes import kinetics_swin_22k_config


def get_config(version: str = "executed"):
  return kinetics_swin_22k_config("video_swin_l", "swin_l_in22k_2d", version)
