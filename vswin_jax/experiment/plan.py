"""What a config stands for, short of its data: devices, model, optimizer, steps.

Nothing here opens a file, so a plan can also be made for machines and data that are not at hand.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Sequence

import jax
import optax
from flax import nnx
from ml_collections import config_dict

from vswin_jax.augmentation.augmentation import Augmentation
from vswin_jax.common.checks import check_at_least, check_rates
from vswin_jax.data.clips import ClipSpec, Views, check_views
from vswin_jax.data.pipeline import LoaderOptions
from vswin_jax.experiment.config import set_options
from vswin_jax.models import check_clips, create_model
from vswin_jax.models.parameters import batch_statistics, split_model, with_shardings
from vswin_jax.training import sharding
from vswin_jax.training.evaluation import jit_eval_step
from vswin_jax.training.inputs import check_label_smoothing
from vswin_jax.training.optimizer import make_optimizer
from vswin_jax.training.schedules import make_schedule
from vswin_jax.training.step import (
  TrainState,
  create_state,
  make_eval_step,
  make_train_step,
)


class ConfigError(ValueError):
  """A config whose values do not fit together; the message says which and what to do."""


@dataclasses.dataclass(frozen=True)
class Settings:
  """The sections of a config as the objects that they describe."""

  config: config_dict.ConfigDict
  mesh: jax.sharding.Mesh
  clip: ClipSpec
  validation: Views
  test: Views
  augmentation: Augmentation
  loader: LoaderOptions


@dataclasses.dataclass(frozen=True)
class Plan:
  """`Settings` with what follows from the size of the data set."""

  settings: Settings
  multi_label: bool
  model_options: dict
  num_steps: int
  schedule: optax.Schedule
  graph: nnx.GraphDef
  param_shapes: dict
  optimizer: optax.GradientTransformation

  def create_state(self) -> TrainState:
    """The random state before the first step; to be jitted, with `state_shardings`."""
    config = self.settings.config
    model = create_model(config.model.name, seed=config.seed, **self.model_options)
    _, params = split_model(model)
    return create_state(params, self.optimizer, with_ema=config.train.ema_decay > 0)

  def state_shapes(self) -> TrainState:
    """`jax.ShapeDtypeStruct`s with shardings."""
    shapes = jax.eval_shape(self.create_state)
    return with_shardings(shapes, sharding.state_shardings(self.settings.mesh, shapes))

  def state_shardings(self) -> TrainState:
    """How the state lies on the devices, leaf by leaf."""
    return jax.tree.map(lambda leaf: leaf.sharding, self.state_shapes())

  def jitted_train_step(self) -> Callable[[TrainState, dict], tuple[TrainState, dict]]:
    """See `make_train_step`; the state is donated."""
    config, mesh = self.settings.config, self.settings.mesh
    step = make_train_step(
      self.graph,
      self.optimizer,
      self.schedule,
      seed=config.seed,
      mean=config.data.mean,
      std=config.data.std,
      mesh=mesh,
      augmentation=self.settings.augmentation,
      multi_label=self.multi_label,
      label_smoothing=config.train.label_smoothing,
      grad_accum_steps=config.train.grad_accum_steps,
      ema_decay=config.train.ema_decay,
      log_every=config.train.log_every,
    )
    out_shardings = (self.state_shardings(), sharding.replicated(mesh))
    return jax.jit(step, donate_argnums=0, out_shardings=out_shardings)

  def jitted_eval_step(self) -> Callable:
    """See `jit_eval_step`."""
    data = self.settings.config.data
    step = make_eval_step(self.graph, mean=data.mean, std=data.std, multi_label=self.multi_label)
    return jit_eval_step(step, self.settings.mesh)


def read_settings(
  config: config_dict.ConfigDict, mode: str, devices: Sequence[jax.Device] | None = None
) -> Settings:
  """Checks what can be checked of a config without its data.

  Args:
    mode: "train" or "eval".
    devices: to run on; None: all that there are.

  Raises:
    ConfigError: values that do not fit.
  """
  with config_errors():
    train = config.train
    clip = ClipSpec(**config.clip)
    validation, test = Views(**config.validation), Views(**config.test)
    check_views(clip, test, "config.test")
    if mode == "train":
      check_views(clip, validation, "config.validation")
    augmentation = Augmentation(**config.augmentation)
    loader = LoaderOptions(**config.loader)
    mesh = sharding.make_mesh(config.mesh.fsdp, devices, config.mesh.slices)
    _check_train_values(config, augmentation)
    sharding.check_batch_size(train.batch_size, mesh, "train.batch_size", train.grad_accum_steps)
    check_at_least(1, eval_batch_size=config.eval_batch_size)
    check_clips(set_options(config.model), clip.num_frames, clip.size)
  return Settings(config, mesh, clip, validation, test, augmentation, loader)


def make_plan(settings: Settings, *, num_classes: int, num_videos: int, multi_label: bool) -> Plan:
  """Args:
    num_videos: of the training split.
    multi_label: videos have any number of labels.

  Raises:
    ConfigError: values that do not fit the data or the model.
  """
  config = settings.config
  train = config.train
  with config_errors():
    check_label_smoothing(train.label_smoothing, multi_label)
    options = set_options(config.model) | {"num_classes": num_classes}
    name = options.pop("name")
    steps_per_epoch = num_videos * train.repeats / train.batch_size
    num_steps = round(train.epochs * steps_per_epoch)
    if num_steps < 1:
      raise ValueError(
        f"{train.epochs} epochs of {num_videos} videos are less than one step of "
        f"{train.batch_size} clips; raise train.epochs or lower train.batch_size"
      )
    schedule = make_schedule(
      num_steps=num_steps, steps_per_epoch=steps_per_epoch, **config.schedule
    )
    model = nnx.eval_shape(lambda: create_model(name, seed=config.seed, **options))
    graph, param_shapes = split_model(model)
    optimizer = make_optimizer(
      param_shapes, schedule, frozen=batch_statistics(model), **config.optimizer
    )
  return Plan(
    settings=settings,
    multi_label=multi_label,
    model_options=options,
    num_steps=num_steps,
    schedule=schedule,
    graph=graph,
    param_shapes=param_shapes,
    optimizer=optimizer,
  )


@contextlib.contextmanager
def config_errors():
  """Values that do not fit become a `ConfigError`."""
  try:
    yield
  except (TypeError, ValueError) as error:
    raise ConfigError(str(error)) from error


def _check_train_values(config: config_dict.ConfigDict, augmentation: Augmentation) -> None:
  train, data = config.train, config.data
  names = ("grad_accum_steps", "repeats", "log_every", "eval_every", "save_every", "keep")
  check_at_least(1, **{f"train.{name}": train[name] for name in names})
  check_at_least(0, seed=config.seed)
  check_at_least(0, **{f"train.{name}": train[name] for name in ("keep_best", "keep_every")})
  if not (math.isfinite(train.epochs) and train.epochs > 0):
    raise ValueError(f"train.epochs must be a positive number, got {train.epochs}")
  rates = ("label_smoothing", "ema_decay")
  check_rates(**{f"train.{name}": train[name] for name in rates})
  if augmentation.mixes and train.batch_size < 2 * train.grad_accum_steps:
    raise ValueError(
      "mixup and cutmix mix the clips of a part of a batch, of which there must be two at least; "
      f"train.batch_size is {train.batch_size}, train.grad_accum_steps {train.grad_accum_steps}"
    )
  for name in ("mean", "std"):
    if len(data[name]) != 3:
      raise ValueError(f"data.{name} must be three numbers (red, green, blue), got {data[name]}")
