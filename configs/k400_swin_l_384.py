"""Video Swin-L on Kinetics-400 at 384 x 384 pixels from ImageNet-22K weights: 60 epochs."""

from vswin_jax.experiment.recipes import kinetics_swin_384_config


def get_config(version: str = "executed"):
  return kinetics_swin_384_config(version)
