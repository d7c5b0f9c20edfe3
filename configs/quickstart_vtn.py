"""A small VTN learns the quickstart's motions: a ViT sees frames, the Longformer what changes."""

from vswin_jax.experiment.recipes import quickstart_config


def get_config():
  config = quickstart_config("vtn_vit_b")
  config.model.backbone_options.image_size = 32
  config.model.backbone_options.patch_size = 8
  config.model.backbone_options.width = 96
  config.model.backbone_options.depth = 2
  config.model.backbone_options.num_heads = 3
  config.model.backbone_options.init_std = 0.08
  config.model.backbone_options.embedding_std = 0.5
  config.model.width = 96
  config.model.num_layers = 2
  config.model.num_heads = 3
  config.model.intermediate_size = 192
  config.model.dropout_rate = 0.0
  config.model.attention_dropout_rate = 0.0
  config.model.head_dropout_rate = 0.0
  config.model.init_std = 0.1
  config.model.embedding_std = 0.5
  config.schedule.learning_rate = 5e-4
  return config
