"""Video Swin-L on Kinetics-700 from ImageNet-22K weights: the recipe of mmaction2 1.x."""

from vswin_jax.experiment.recipes import mmaction2_swin_config


def get_config():
  config = mmaction2_swin_config("video_swin_l", "swin_l_in22k_2d")
  config.data.name = "kinetics700"
  return config
