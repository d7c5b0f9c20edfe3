"""Fine-tuning on your own videos: model and preprocessing of any checkpoint, a new head.

`python -m vswin_jax.prepare --dataset=video_folder` makes the data set. The checkpoint comes from
`python -m vswin_jax.convert` or is the workdir of a run; it overrides `model`, mean, std and clips,
but not flags such as --config.clip.num_frames=16. On an accelerator, add
--config.model.dtype=bfloat16. If the weights are those of an image backbone, the rest of the model
is random and should learn as fast as the head:
--config.optimizer.learning_rate_multipliers="(('backbone.*',0.1),('.*',1.0))"
"""

from vswin_jax.experiment.config import base_config


def get_config():
  config = base_config(None)
  config.starts_from = "swin_t_k400_official"
  config.data.name = "video_folder"
  config.train.batch_size = 16
  config.train.epochs = 10.0
  config.train.eval_every = 250
  config.train.save_every = 250
  config.eval_batch_size = 8
  config.schedule.name = "cosine"
  config.schedule.learning_rate = 3e-4
  config.schedule.warmup_epochs = 1.0
  config.optimizer.clip_norm = 1.0
  # What the checkpoint has learnt changes slowly, the new head fast.
  config.optimizer.learning_rate_multipliers = ((r"head\..*", 1.0), (r".*", 0.1))
  return config
