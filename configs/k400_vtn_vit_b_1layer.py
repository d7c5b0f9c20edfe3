"""VTN with ViT-B/16 and one temporal layer on Kinetics-400: the recipe of the three-layer model."""

from vswin_jax.experiment.recipes import kinetics_vtn_config


def get_config():
  return kinetics_vtn_config(
    "vtn_vit_b_1layer", "vit_base_patch16_224.orig_in21k_ft_in1k.safetensors"
  )
