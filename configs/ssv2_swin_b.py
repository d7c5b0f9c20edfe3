"""Video Swin-B on Something-Something V2 from Kinetics-400 weights: 60 epochs."""

from vswin_jax.experiment.recipes import set_strong_augmentation, video_swin_config


def get_config(version: str = "executed"):
  config = video_swin_config("video_swin_b", "swin_b_w16_in22k_k400_official", version)
  config.data.name = "something_something_v2"
  config.model.window_size = (16, 7, 7)
  config.model.drop_path_rate = 0.4
  config.clip.sampling = "uniform"
  # A mirrored "left to right" would be another class; RandAugment's own flip is the reference's.
  config.clip.flip_probability = 0.0
  config.test.num_clips = 1
  config.train.epochs = 60.0
  config.schedule.learning_rate = 3e-4
  config.optimizer.weight_decay = 0.05
  set_strong_augmentation(config)
  return config
