"""VTN with ViT-B/16 and three temporal layers on Kinetics-400: 25 epochs, the released recipe."""

from vswin_jax.experiment.recipes import kinetics_vtn_config


def get_config():
  return kinetics_vtn_config("vtn_vit_b", "vit_base_patch16_224.orig_in21k_ft_in1k.safetensors")
