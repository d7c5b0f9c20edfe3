"""A small VTN learns the quickstart's motions: a ViT sees frames, the Longformer what changes."""

from vswin_jax.config import base_config


def get_config():
  config = base_config("vtn_vit_b")
  config.init_from = "random"
  config.data.name = "motion_clips"
  config.data.mean = (110.0, 110.0, 110.0)
  config.data.std = (60.0, 60.0, 60.0)

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

  config.clip.num_frames = 16
  config.clip.frame_interval = 1
  config.clip.size = 32
  config.clip.train_short_side = 48
  config.clip.area_range = (0.5, 1.0)
  # A mirrored clip would move the other way.
  config.clip.flip_probability = 0.0
  config.validation.short_side = 36
  config.test.update({"num_clips": 1, "crops": "center", "short_side": 36})

  # Two cores are shared with the training itself.
  config.loader.num_workers = 1

  config.train.batch_size = 32
  config.train.epochs = 6.0
  config.train.log_every = 25
  config.train.eval_every = 256
  config.train.save_every = 256
  config.eval_batch_size = 64
  config.schedule.name = "cosine"
  config.schedule.learning_rate = 5e-4
  config.schedule.warmup_epochs = 1.0
  config.schedule.warmup_start = 0.0
  config.optimizer.clip_norm = 1.0
  return config
