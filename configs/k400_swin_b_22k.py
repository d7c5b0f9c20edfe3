"""Video Swin-B on Kinetics-400 from ImageNet-22K weights: 30 epochs of 32-frame clips."""

from vswin_jax.experiment.recipes import kinetics_swin_22k_config


def get_config(version: str = "executed"):
  return kinetics_swin_22k_config("video_swin_b", "swin_b_in22k_2d", version)
