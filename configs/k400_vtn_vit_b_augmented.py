"""VTN with ViT-B/16 on Kinetics-400 with the augmentations of DeiT: ten epochs more.

The paper says no more than that. The values are those of DeiT (arXiv 2012.12877, table 9), without
its repeated augmentation, stochastic depth and lack of dropout.
"""

from vswin_jax.experiment.recipes import kinetics_vtn_config


def get_config():
  config = kinetics_vtn_config("vtn_vit_b", "vit_base_patch16_224.orig_in21k_ft_in1k.safetensors")
  config.augmentation.rand_augment = "timm"
  config.augmentation.num_operations = 2
  config.augmentation.magnitude = 9.0
  config.augmentation.magnitude_std = 0.5
  config.augmentation.erasing_probability = 0.25
  config.augmentation.mixup_alpha = 0.8
  config.augmentation.cutmix_alpha = 1.0
  config.train.label_smoothing = 0.1
  config.train.epochs = 35.0
  config.schedule.decay_epochs = (18.0, 34.0)
  return config
