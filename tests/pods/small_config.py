"""A config whose training step compiles in seconds."""

from ml_collections import config_dict

from vswin_jax.recipes import quickstart_config


def small_config(**values) -> config_dict.ConfigDict:
  """A model of few operations on the generated clips.

  Args:
    values: of the config, by its keys with dots.
  """
  config = quickstart_config("video_swin_t")
  changes = {
    "model.embed_dim": 8,
    "model.depths": (1,),
    "model.num_heads": (1,),
    "model.window_size": (2, 4, 4),
    "clip.num_frames": 4,
    "train.batch_size": 16,
    "data.dir": "/no/such/folder",
  }
  config.update_from_flattened_dict(changes | values)
  return config
