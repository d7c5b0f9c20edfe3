"""A run from its config: builds model, data, optimizer and loop, trains, evaluates, reports.

With `run_files` the only module besides `main` that knows configs; all else takes plain values.
"""

import contextlib
import dataclasses
import math
import pathlib
from collections.abc import Callable, Collection
from functools import partial

import jax
import optax
from flax import nnx
from ml_collections import config_dict

from vswin_jax import run_files, starting_point
from vswin_jax.checks import check_at_least, check_rates
from vswin_jax.config import set_options
from vswin_jax.data import generated, pipeline
from vswin_jax.data.clips import (
  ClipSpec,
  Views,
  check_views,
  count_views,
  describe_views,
  view_frames,
)
from vswin_jax.data.decoding import VideoError
from vswin_jax.data.preprocessing import Preprocessing
from vswin_jax.data.records import DatasetError, VideoRecords, open_records
from vswin_jax.local_files import LocalPathError, local_path
from vswin_jax.models import check_clips, create_model
from vswin_jax.models.parameters import split_model
from vswin_jax.training import checkpointing, loop, sharding
from vswin_jax.training.augmentation import Augmentation
from vswin_jax.training.evaluation import Evaluation, EvaluationError, evaluate, jit_eval_step
from vswin_jax.training.inputs import check_label_smoothing
from vswin_jax.training.metrics import MetricsWriter
from vswin_jax.training.optimizer import make_optimizer
from vswin_jax.training.progress import logger, set_up_logging
from vswin_jax.training.schedules import make_schedule
from vswin_jax.training.step import TrainState, create_state, make_eval_step, make_train_step


class ConfigError(ValueError):
  """A config whose values do not fit together; the message says which and what to do."""


USER_ERRORS = (
  ConfigError,
  DatasetError,
  EvaluationError,
  LocalPathError,
  VideoError,
  checkpointing.CheckpointError,
  loop.TrainingError,
  starting_point.StartError,
)


@dataclasses.dataclass(frozen=True)
class Experiment:
  """The objects that a config stands for."""

  config: config_dict.ConfigDict
  workdir: pathlib.Path
  mesh: jax.sharding.Mesh
  clip: ClipSpec
  validation: Views
  test: Views
  augmentation: Augmentation
  loader: pipeline.LoaderOptions
  train_records: VideoRecords
  eval_records: VideoRecords
  model_options: dict
  num_steps: int
  schedule: optax.Schedule
  graph: nnx.GraphDef
  param_shapes: dict
  optimizer: optax.GradientTransformation

  @property
  def class_names(self) -> tuple[str, ...]:
    return self.train_records.class_names

  @property
  def facts(self) -> dict:
    """What a checkpoint says about its weights."""
    data = self.config.data
    preprocessing = Preprocessing(tuple(data.mean), tuple(data.std), self.clip, self.test)
    return {
      "model": {"name": self.config.model.name, **self.model_options},
      "preprocessing": preprocessing.as_facts(),
      "labels": list(self.class_names),
      "multi_label": self.train_records.multi_label,
      "training": {
        "data": data.name,
        "videos": len(self.train_records),
        "batch_size": self.config.train.batch_size,
      },
    }


def run(
  config: config_dict.ConfigDict,
  *,
  workdir: str,
  mode: str,
  checkpoint: str | None = None,
  explicit: Collection[str] = (),
) -> Evaluation | None:
  """Runs `mode` "train" (train or resume, then evaluate) or "eval" in `workdir`.

  Args:
    checkpoint: for "eval", the workdir whose newest checkpoint is evaluated; None: `workdir`. Its
      preprocessing takes the place of the config's.
    explicit: keys of `config` that hold against the checkpoint's preprocessing.

  Returns:
    The evaluation of the final (or given) checkpoint; None if training was asked to stop.

  Raises:
    one of `USER_ERRORS`, or OSError.
  """
  folder = local_path(workdir)
  set_up_logging()
  source = starting_point.source_of(config, folder, mode, checkpoint)
  folder.mkdir(parents=True, exist_ok=True)
  set_up_logging(folder / f"{mode}.log")
  config = starting_point.settle(config, source, mode=mode, workdir=folder, explicit=explicit)
  experiment = _build(config, folder, mode)
  if mode == "train":
    if _train(experiment, source) < experiment.num_steps:
      return None
    source = folder
  return _evaluate(experiment, source)


def _build(config: config_dict.ConfigDict, workdir: pathlib.Path, mode: str) -> Experiment:
  """Turns a config into objects; values that do not fit become a `ConfigError`."""
  train = config.train
  with _config_errors():
    clip = ClipSpec(**config.clip)
    validation, test = Views(**config.validation), Views(**config.test)
    check_views(clip, test, "config.test")
    if mode == "train":
      check_views(clip, validation, "config.validation")
    augmentation = Augmentation(**config.augmentation)
    loader = pipeline.LoaderOptions(**config.loader)
    mesh = sharding.make_mesh(config.mesh.fsdp)
    _check_train_values(config, augmentation)
    sharding.check_batch_size(train.batch_size, mesh, "train.batch_size", train.accumulate)
    check_at_least(1, eval_batch_size=config.eval_batch_size)
    options = set_options(config.model)
    name = options.pop("name")
    check_clips({"name": name, **options}, clip.num_frames, clip.size)

  generated.ensure(config.data.name, config.data.dir)
  train_records = open_records(config.data.name, config.data.dir, config.data.train_split)
  eval_records = open_records(config.data.name, config.data.dir, config.data.eval_split)
  with _config_errors():
    check_label_smoothing(train.label_smoothing, train_records.multi_label)
  options["num_classes"] = len(train_records.class_names)
  steps_per_epoch = len(train_records) * train.repeats / train.batch_size
  with _config_errors():
    num_steps = round(train.epochs * steps_per_epoch)
    if num_steps < 1:
      raise ValueError(
        f"{train.epochs} epochs of {len(train_records)} videos are less than one step of "
        f"{train.batch_size} clips; raise train.epochs or lower train.batch_size"
      )
    schedule = make_schedule(
      num_steps=num_steps, steps_per_epoch=steps_per_epoch, **config.schedule
    )
    graph, param_shapes = split_model(
      nnx.eval_shape(lambda: create_model(name, seed=config.seed, **options))
    )
    optimizer = make_optimizer(param_shapes, schedule, **config.optimizer)
  return Experiment(
    config=config,
    workdir=workdir,
    mesh=mesh,
    clip=clip,
    validation=validation,
    test=test,
    augmentation=augmentation,
    loader=loader,
    train_records=train_records,
    eval_records=eval_records,
    model_options=options,
    num_steps=num_steps,
    schedule=schedule,
    graph=graph,
    param_shapes=param_shapes,
    optimizer=optimizer,
  )


@contextlib.contextmanager
def _config_errors():
  try:
    yield
  except (TypeError, ValueError) as error:
    raise ConfigError(str(error)) from error


def _check_train_values(config: config_dict.ConfigDict, augmentation: Augmentation) -> None:
  train, data = config.train, config.data
  names = ("accumulate", "repeats", "log_every", "eval_every", "save_every", "keep")
  check_at_least(1, **{f"train.{name}": train[name] for name in names})
  check_at_least(0, seed=config.seed)
  if not (math.isfinite(train.epochs) and train.epochs > 0):
    raise ValueError(f"train.epochs must be a positive number, got {train.epochs}")
  rates = ("label_smoothing", "average_decay")
  check_rates(**{f"train.{name}": train[name] for name in rates})
  if augmentation.mixes and train.batch_size < 2 * train.accumulate:
    raise ValueError(
      "mixup and cutmix mix the clips of a part of a batch, of which there must be two at least; "
      f"train.batch_size is {train.batch_size}, train.accumulate {train.accumulate}"
    )
  for name in ("mean", "std"):
    if len(data[name]) != 3:
      raise ValueError(f"data.{name} must be three numbers (red, green, blue), got {data[name]}")


def _train(experiment: Experiment, source: pathlib.Path | None) -> int:
  """Trains from the weights of `source`, or resumes, until the end or until asked to stop; returns
  the step reached."""
  config, mesh, train = experiment.config, experiment.mesh, experiment.config.train
  directory = checkpointing.checkpoints_of(experiment.workdir)
  with checkpointing.open_checkpoints(directory, keep=train.keep) as saved:
    start_step = checkpointing.latest_step(saved)
    if start_step is not None and start_step >= experiment.num_steps:
      logger.info("training is complete at step %d of %s", start_step, directory)
      return start_step
    create, shardings = _state_creator(experiment)
    if start_step is None:
      start_step, state = 0, _new_state(experiment, source, create, shardings)
    else:
      shapes = sharding.with_shardings(jax.eval_shape(create), shardings)
      state, facts = checkpointing.restore(saved, shapes)
      starting_point.check_facts(directory, facts, experiment.facts, resuming=True)
      run_files.warn_of_changes(experiment.workdir, config)
      logger.info("resuming from step %d of %d, %s", start_step, experiment.num_steps, directory)

    def last_saved() -> str:
      step = checkpointing.latest_step(saved)
      return "nothing was saved yet" if step is None else f"step {step} in {directory} is kept"

    batches = pipeline.train_batches(
      experiment.train_records,
      experiment.clip,
      batch_size=train.batch_size,
      seed=config.seed,
      start_step=start_step,
      num_steps=experiment.num_steps,
      options=experiment.loader,
      host=jax.process_index(),
      num_hosts=jax.process_count(),
      repeats=train.repeats,
    )
    writer = MetricsWriter(experiment.workdir, start_step)
    epoch_clips = len(experiment.train_records) * train.repeats
    with contextlib.closing(writer), contextlib.closing(batches):
      state = loop.train(
        state,
        _jitted_train_step(experiment, shardings),
        batches,
        start_step=start_step,
        num_steps=experiment.num_steps,
        batch_size=train.batch_size,
        sharding=sharding.batch_sharding(mesh),
        writer=writer,
        evaluate=partial(_validate, experiment, _jitted_eval_step(experiment)),
        save=partial(checkpointing.save, saved, facts=experiment.facts),
        last_saved=last_saved,
        describe_failed=experiment.train_records.video_id,
        max_failed_clips=lambda seen: config.data.max_failed_share * max(seen, epoch_clips),
        log_every=train.log_every,
        eval_every=train.eval_every,
        save_every=train.save_every,
      )
    return int(state.step)


def _state_creator(experiment: Experiment) -> tuple[Callable[[], TrainState], TrainState]:
  """A function that makes the random first state, and where its arrays go."""
  config = experiment.config

  def create() -> TrainState:
    model = create_model(config.model.name, seed=config.seed, **experiment.model_options)
    _, params = split_model(model)
    return create_state(params, experiment.optimizer, with_average=config.train.average_decay > 0)

  return create, sharding.state_shardings(experiment.mesh, jax.eval_shape(create))


def _new_state(
  experiment: Experiment, source: pathlib.Path | None, create: Callable, shardings: TrainState
) -> TrainState:
  """The state before the first step: random, or with the weights of a folder."""
  config = experiment.config
  state = jax.jit(create, out_shardings=shardings)()
  if source is not None:
    state = starting_point.with_weights_of(source, state, experiment.class_names)
  run_files.write_config(experiment.workdir, config)
  logger.info(
    "training %s from %s: %d steps of %d clips on %d device(s)",
    config.model.name,
    source or "random weights",
    experiment.num_steps,
    config.train.batch_size,
    experiment.mesh.size,
  )
  return state


def _jitted_train_step(experiment: Experiment, shardings: TrainState) -> Callable:
  config, train = experiment.config, experiment.config.train
  step = make_train_step(
    experiment.graph,
    experiment.optimizer,
    experiment.schedule,
    seed=config.seed,
    mean=config.data.mean,
    std=config.data.std,
    mesh=experiment.mesh,
    augmentation=experiment.augmentation,
    multi_label=experiment.train_records.multi_label,
    label_smoothing=train.label_smoothing,
    accumulate=train.accumulate,
    average_decay=train.average_decay,
    log_every=train.log_every,
  )
  everywhere = sharding.replicated(experiment.mesh)
  return jax.jit(step, donate_argnums=0, out_shardings=(shardings, everywhere))


def _jitted_eval_step(experiment: Experiment) -> Callable:
  data, multi_label = experiment.config.data, experiment.train_records.multi_label
  step = make_eval_step(experiment.graph, mean=data.mean, std=data.std, multi_label=multi_label)
  return jit_eval_step(step, experiment.mesh)


def _validate(experiment: Experiment, eval_step: Callable, state: TrainState) -> dict[str, float]:
  """Scores of the parameters and, if there is one, of their average."""
  versions = {"validation": state.params}
  if state.average:
    versions["validation_average"] = state.average
  scores = {}
  for name, result in _evaluate_versions(
    experiment, eval_step, versions, experiment.validation
  ).items():
    logger.info("step %d  %s %s", int(state.step), name.replace("_", ", "), result.describe())
    scores |= {f"{name}/{measure}": value for measure, value in result.scalars().items()}
  return scores


def _evaluate(experiment: Experiment, source: pathlib.Path) -> Evaluation:
  """Multi-view evaluation of the newest checkpoint of `source`; writes the results."""
  clip, test = experiment.clip, experiment.test
  shardings = sharding.state_shardings(experiment.mesh, experiment.param_shapes)
  directory = checkpointing.checkpoints_of(source)
  step, params, facts = checkpointing.restore_params(
    directory, sharding.with_shardings(experiment.param_shapes, shardings)
  )
  starting_point.check_facts(directory, facts, experiment.facts, resuming=False)
  views = count_views(clip, test)
  logger.info(
    "evaluating step %d of %s: %d videos, %d views each",
    step,
    directory,
    len(experiment.eval_records),
    views,
  )
  eval_step = _jitted_eval_step(experiment)
  result = _evaluate_versions(experiment, eval_step, {"test": params}, test)["test"]
  logger.info(result.describe())
  if jax.process_index() == 0:
    training = facts.get("training")
    origin = f"{step} steps of {training['batch_size']} clips" if training else "converted weights"
    run_files.write_results(
      experiment.workdir,
      result,
      title=f"{experiment.config.model.name} on {experiment.config.data.name}",
      subtitle=(
        f"{origin}; clips of {view_frames(clip, test)} frames of {clip.size} x {clip.size}, "
        f"{clip.frame_order}",
        f"{describe_views(clip, test)} views (clips x crops) of each video",
      ),
      facts={"step": step, "views": views},
      class_names=experiment.class_names,
      video_ids=[experiment.eval_records.video_id(row[0]) for row in result.predictions],
      metrics=source / "metrics.jsonl",
    )
  return result


def _evaluate_versions(
  experiment: Experiment, eval_step: Callable, versions: dict[str, dict], views: Views
) -> dict[str, Evaluation]:
  """Evaluates versions of the parameters over the evaluation split; names unreadable videos."""
  records = experiment.eval_records
  batches = pipeline.eval_batches(
    records,
    experiment.clip,
    views,
    # Results do not depend on it; every device gets the same number of videos.
    batch_size=sharding.round_up(experiment.config.eval_batch_size, experiment.mesh),
    seed=experiment.config.seed,
    options=experiment.loader,
    host=jax.process_index(),
    num_hosts=jax.process_count(),
  )
  with contextlib.closing(batches):
    results = evaluate(eval_step, versions, batches, len(experiment.class_names), experiment.mesh)
  for record in next(iter(results.values())).failed:
    logger.warning("%s can't be decoded; not counted", records.video_id(record))
  return results
