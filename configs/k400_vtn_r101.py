"""VTN with ResNet-101 on Kinetics-400: the released recipe, with the paper's batch for ResNets."""

from vswin_jax.config import kinetics_vtn_config


def get_config():
  config = kinetics_vtn_config("vtn_r101")
  config.train.batch_size = 32
  # Batch normalisation does not decay.
  config.optimizer.weight_decay_multipliers = (
    (r"backbone\..*\.norm\.(scale|bias)", 0.0),
    (r".*", 1.0),
  )
  return config
