"""Video Swin-L on Kinetics-600 at 384 x 384 pixels from ImageNet-22K weights: 60 epochs."""

from vswin_jax.experiment.recipes import kinetics_swin_384_config


def get_config(version: str = "executed"):
  config = kinetics_swin_384_config(version)
  config.data.name = "kinetics600"
  config.model.drop_path_rate = 0.4
  return config
