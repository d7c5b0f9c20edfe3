"""VTN with DeiT-B/16 on Kinetics-400: the recipe of the released ViT model."""

from vswin_jax.config import kinetics_vtn_config


def get_config():
  return kinetics_vtn_config("vtn_deit_b")
