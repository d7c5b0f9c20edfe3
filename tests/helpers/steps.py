"""A few training steps of a tiny model."""

import jax
import numpy as np

from vswin_jax.models import create_model
from vswin_jax.models.parameters import split_model
from vswin_jax.training import sharding
from vswin_jax.training.optimizer import OptimizerOptions, make_optimizer
from vswin_jax.training.step import create_state, make_train_step

BATCH, CLASSES = 8, 5


PIXELS = {"mean": (110.0, 100.0, 90.0), "std": (60.0, 50.0, 40.0)}


def tiny_model(**options):
  return create_model(
    "video_swin_t",
    num_classes=CLASSES,
    embed_dim=64,
    depths=(2,),
    num_heads=(4,),
    window_size=(4, 4, 4),
    **{"drop_path_rate": 0.2, "head_dropout_rate": 0.3} | options,
  )


def batches(count, multi_label=False):
  random = np.random.default_rng(0)
  for _ in range(count):
    batch = {
      "video": random.integers(0, 256, (BATCH, 8, 32, 32, 3), dtype=np.uint8),
      "position_ids": np.tile(np.arange(8, dtype=np.int32), (BATCH, 1)),
      "label": random.integers(0, CLASSES, BATCH, dtype=np.int32),
      "failed": np.full(BATCH, -1, np.int32),
    }
    if multi_label:
      batch["label"] = (random.random((BATCH, CLASSES)) < 0.4).astype(np.uint8)
    yield batch


def run(devices=1, fsdp=1, steps=4, model_options=None, **options):
  """Returns the metrics of a few steps, the final state and the jitted step."""
  mesh = sharding.make_mesh(fsdp, jax.devices()[:devices])
  graph, params = split_model(tiny_model(**model_options or {}))
  optimizer = make_optimizer(params, lambda step: 1e-3, OptimizerOptions(clip_norm=1.0))

  def initial():
    return create_state(params, optimizer, with_ema="ema_decay" in options)

  shardings = sharding.state_shardings(mesh, jax.eval_shape(initial))
  state = jax.jit(initial, out_shardings=shardings)()
  step = make_train_step(
    graph, optimizer, lambda step: 1e-3, seed=0, log_every=3, **PIXELS, **options
  )
  step = jax.jit(step, donate_argnums=0, out_shardings=(shardings, sharding.replicated(mesh)))
  history = []
  for batch in batches(steps, options.get("multi_label", False)):
    state, metrics = step(state, sharding.put_batch(batch, sharding.batch_sharding(mesh)))
    history.append({name: float(value) for name, value in metrics.items()})
  return history, state, step
