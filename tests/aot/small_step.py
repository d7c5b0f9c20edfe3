"""A config whose training step compiles in seconds, and a result of compiling."""

from ml_collections import config_dict

from vswin_jax.aot.results import Result
from vswin_jax.experiment.recipes import quickstart_config


def small_config(**values) -> config_dict.ConfigDict:
  """Returns the config of a tiny model on the generated clips; `values` by dotted keys."""
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


def fake_result(**values) -> Result:
  """Returns a result with 10 ms of computing, 10 ms of memory and a thousand steps.

  Args:
    values: fields to replace.
  """
  fields = {
    "model": "video_swin_t",
    "topology": "v5e:2x2",
    "batch_size": 16,
    "wanted_batch_size": 16,
    "grad_accum_steps": 1,
    "fsdp": 1,
    "rematerialization": "none",
    "epochs": 30.0,
    "num_steps": 1000,
    "effort": "quick",
    "seconds": 60.0,
    "memory": 2**30,
    "arguments": 2**28,
    "flops": 197e10,
    "bytes_accessed": 819e7,
  }
  return Result(**fields | values)
