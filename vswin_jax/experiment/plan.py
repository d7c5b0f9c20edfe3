"""Training plan: the mesh, model, optimizer and schedule that a config describes.

A plan opens no data, so it can also be made for devices and data sets that are elsewhere.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from vswin_jax.common.checks import fields
from vswin_jax.experiment.config import ConfigError, Settings, config_errors
from vswin_jax.inference.self_check import with_attention
from vswin_jax.models import create_model
from vswin_jax.models.catalog import model_config
from vswin_jax.models.cost import count_macs
from vswin_jax.models.parameters import (
  batch_statistics,
  merge_model,
  split_model,
  with_shardings,
)
from vswin_jax.training import sharding
from vswin_jax.training.evaluation import make_eval_step
from vswin_jax.training.optimizer import make_optimizer
from vswin_jax.training.schedules import make_schedule
from vswin_jax.training.step import TrainState, create_state, make_train_step


@dataclasses.dataclass(frozen=True)
class Plan:
  """Objects of a run that do not depend on the contents of its data set.

  Attributes:
    model_options: arguments of `create_model`.
    num_steps: optimizer steps of the whole training.
    graph: of the model, from `split_model`.
    param_shapes: parameters of the model as `jax.ShapeDtypeStruct`s.
  """

  settings: Settings
  mesh: jax.sharding.Mesh
  multi_label: bool
  model_options: dict
  num_steps: int
  schedule: optax.Schedule
  graph: nnx.GraphDef
  param_shapes: dict
  optimizer: optax.GradientTransformation

  def create_state(self) -> TrainState:
    """Returns the random state before the first step; jit it with `state_shardings`."""
    model = create_model(seed=self.settings.seed, **self.model_options)
    _, params = split_model(model)
    return create_state(params, self.optimizer, with_ema=self.settings.train.ema_decay > 0)

  def state_shapes(self) -> TrainState:
    """Returns the state as `jax.ShapeDtypeStruct`s with shardings."""
    shapes = jax.eval_shape(self.create_state)
    return with_shardings(shapes, sharding.state_shardings(self.mesh, shapes))

  def state_shardings(self) -> TrainState:
    """Returns the sharding of each array of the state."""
    return jax.tree.map(lambda leaf: leaf.sharding, self.state_shapes())

  def step_flops(self) -> float | None:
    """Returns the model FLOPs of a training step over all devices; None: they can't be counted.

    Those of the matrix products and convolutions of the forward pass, two for each
    multiply-accumulate, and twice as many for the backward pass. Rematerialization does not count
    (PaLM, arXiv 2204.02311, appendix B), nor does the implementation of attention.
    """
    clip, options = self.settings.clip, dict(self.model_options)
    if hasattr(model_config(**options), "attention"):
      options["attention"] = "xla"
    graph, params = split_model(nnx.eval_shape(lambda: create_model(**options)))
    frames = (1, clip.num_frames, clip.size, clip.size, 3)
    video = jax.ShapeDtypeStruct(frames, jnp.float32)
    try:
      macs = count_macs(lambda params, video: merge_model(graph, params)(video), params, video)
    except ValueError:
      return None
    return 6.0 * macs * self.settings.train.batch_size

  def jitted_train_step(self) -> Callable[[TrainState, dict], tuple[TrainState, dict]]:
    """Returns the jitted training step (see `make_train_step`), which donates the state."""
    settings = self.settings
    step = make_train_step(
      self.graph,
      self.optimizer,
      self.schedule,
      seed=settings.seed,
      mesh=self.mesh,
      augmentation=settings.augmentation,
      multi_label=self.multi_label,
      **fields(settings.data, "mean", "std"),
      **fields(settings.train, "label_smoothing", "grad_accum_steps", "ema_decay", "log_every"),
    )
    out_shardings = (self.state_shardings(), sharding.replicated(self.mesh))
    step = sharding.in_context(self.mesh, step)
    return jax.jit(step, donate_argnums=0, out_shardings=out_shardings)

  def jitted_eval_step(self) -> Callable[[dict, dict], dict]:
    """Returns the jitted evaluation step (see `make_eval_step`) with replicated outputs."""
    pixels = fields(self.settings.data, "mean", "std")
    step = make_eval_step(self.graph, multi_label=self.multi_label, **pixels)
    step = sharding.in_context(self.mesh, step)
    return jax.jit(step, out_shardings=sharding.replicated(self.mesh))


def make_mesh(
  settings: Settings, mode: str = "train", devices: Sequence[jax.Device] | None = None
) -> jax.sharding.Mesh:
  """Returns the mesh of a run.

  Args:
    mode: "train" or "eval"; an evaluation does not use the batch size of the training.
    devices: devices to run on; None: all of the process group.

  Raises:
    ConfigError: the devices can't share a batch, or can't form groups of `mesh.fsdp`.
  """
  train = settings.train
  with config_errors():
    mesh = sharding.make_mesh(settings.mesh.fsdp, devices, settings.mesh.slices)
    if mode == "train":
      sharding.check_batch_size(train.batch_size, mesh, "train.batch_size", train.grad_accum_steps)
  return mesh


def make_plan(
  settings: Settings,
  mesh: jax.sharding.Mesh,
  *,
  num_classes: int,
  num_videos: int,
  multi_label: bool,
  attention: str | None = None,
) -> Plan:
  """Builds the plan of a training on a data set.

  Args:
    num_videos: videos of the training split.
    multi_label: whether videos have any number of labels.
    attention: implementation to use in place of the configured one; None: that one.

  Raises:
    ConfigError: values do not fit the data or the model.
  """
  train = settings.train
  steps_per_epoch = num_videos * train.repeats / train.batch_size
  num_steps = round(train.epochs * steps_per_epoch)
  if num_steps < 1:
    raise ConfigError(
      f"{train.epochs} epochs of {num_videos} videos are less than one step of "
      f"{train.batch_size} clips; raise train.epochs or lower train.batch_size"
    )
  if multi_label and train.label_smoothing:
    raise ConfigError(
      "train.label_smoothing is for videos with one label; with any number of labels it must be 0, "
      f"got {train.label_smoothing}"
    )
  options = settings.model | {"num_classes": num_classes}
  with config_errors():
    schedule = make_schedule(
      settings.schedule, num_steps=num_steps, steps_per_epoch=steps_per_epoch
    )
    computed = with_attention(options, attention) if attention else options
    model = nnx.eval_shape(lambda: create_model(seed=settings.seed, **computed))
    graph, param_shapes = split_model(model)
    optimizer = make_optimizer(param_shapes, schedule, settings.optimizer, batch_statistics(model))
  return Plan(
    settings=settings,
    mesh=mesh,
    multi_label=multi_label,
    model_options=options,
    num_steps=num_steps,
    schedule=schedule,
    graph=graph,
    param_shapes=param_shapes,
    optimizer=optimizer,
  )
