"""VTN with ResNet-101 on Kinetics-400: the released recipe, as the paper adapts it to ResNets."""

from vswin_jax.experiment.recipes import kinetics_vtn_resnet_config


def get_config():
  return kinetics_vtn_resnet_config("vtn_r101", "resnet101.tv_in1k.safetensors")
