"""VTN with DeiT-Ti/16 on Kinetics-400: the recipe of the released ViT model."""

from vswin_jax.experiment.recipes import kinetics_vtn_config


def get_config():
  return kinetics_vtn_config("vtn_deit_ti", "deit_tiny_patch16_224.fb_in1k.safetensors")
