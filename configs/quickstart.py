"""A small Video Swin learns motions from clips made on the spot: minutes on two CPU cores."""

from vswin_jax.experiment.recipes import quickstart_config


def get_config():
  config = quickstart_config("video_swin_t")
  config.model.embed_dim = 32
  config.model.depths = (2, 2, 2, 2)
  config.model.num_heads = (1, 2, 4, 8)
  config.model.window_size = (4, 4, 4)
  config.model.drop_path_rate = 0.0
  config.model.head_dropout_rate = 0.0
  config.model.init_std = 0.04
  config.schedule.learning_rate = 2e-3
  config.train.update(epochs=4.5, eval_every=288, save_every=288)
  return config
