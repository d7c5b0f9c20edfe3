"""A run from its config: builds model, data, optimizer and loop, trains, evaluates, reports.

The only module besides `main` that knows configs; everything it calls takes plain values.
"""

import contextlib
import csv
import dataclasses
import json
import pathlib
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from ml_collections import config_dict

from vswin_jax.data import generated, pipeline
from vswin_jax.data.clips import ClipSpec, Views, check_views, count_views
from vswin_jax.data.decoding import VideoError
from vswin_jax.data.records import DatasetError, VideoRecords, open_records
from vswin_jax.models import create_model, model_config
from vswin_jax.models.parameters import split_model
from vswin_jax.training import checkpointing, loop, sharding
from vswin_jax.training.evaluation import Evaluation, evaluate, jit_eval_step
from vswin_jax.training.metrics import MetricsWriter, read_metrics
from vswin_jax.training.optimizer import make_optimizer
from vswin_jax.training.progress import logger, set_up_logging
from vswin_jax.training.report import write_report
from vswin_jax.training.schedules import make_schedule
from vswin_jax.training.step import TrainState, create_state, make_eval_step, make_train_step


class ConfigError(ValueError):
  """A config whose values do not fit together; the message says which and what to do."""


USER_ERRORS = (
  ConfigError,
  DatasetError,
  VideoError,
  checkpointing.CheckpointError,
  loop.TrainingError,
)

# Changing these between two runs in one workdir changes no result.
_FREE_TO_CHANGE = ("loader", "data.dir", "eval_batch_size", "train.keep", "init_from", "test")


@dataclasses.dataclass(frozen=True)
class Experiment:
  """The objects that a config stands for."""

  config: config_dict.ConfigDict
  workdir: pathlib.Path
  mesh: jax.sharding.Mesh
  clip: ClipSpec
  validation: Views
  test: Views
  loader: pipeline.LoaderOptions
  train_records: VideoRecords
  eval_records: VideoRecords
  model_options: dict
  num_steps: int

  @property
  def class_names(self) -> tuple[str, ...]:
    return self.train_records.class_names

  @property
  def facts(self) -> dict:
    """What a checkpoint says about its weights."""
    data = self.config.data
    return {
      "model": {"name": self.config.model.name, **self.model_options},
      "preprocessing": {
        "mean": list(data.mean),
        "std": list(data.std),
        **dataclasses.asdict(self.clip),
        "views": dataclasses.asdict(self.test),
      },
      "labels": list(self.class_names),
    }


def run(
  config: config_dict.ConfigDict, *, workdir: str, mode: str, checkpoint: str | None = None
) -> Evaluation | None:
  """Runs `mode` "train" (train or resume, then evaluate) or "eval" in `workdir`.

  Args:
    checkpoint: for "eval", the workdir whose newest checkpoint is evaluated; None: `workdir`.

  Returns:
    The evaluation of the final (or given) checkpoint; None if training was asked to stop.

  Raises:
    one of `USER_ERRORS`.
  """
  folder = pathlib.Path(workdir).expanduser().absolute()
  folder.mkdir(parents=True, exist_ok=True)
  set_up_logging(folder / f"{mode}.log")
  experiment = _build(config, folder)
  if mode == "train":
    checkpoint = None
    if _train(experiment) < experiment.num_steps:
      return None
  source = folder if checkpoint is None else pathlib.Path(checkpoint).expanduser().absolute()
  return _evaluate(experiment, source)


def _build(config: config_dict.ConfigDict, workdir: pathlib.Path) -> Experiment:
  """Turns a config into objects; whatever does not fit becomes a `ConfigError`."""
  try:
    clip = ClipSpec(**config.clip)
    validation, test = Views(**config.validation), Views(**config.test)
    for views in (validation, test):
      check_views(clip, views)
    loader = pipeline.LoaderOptions(**config.loader)
    mesh = sharding.make_mesh(config.mesh.fsdp)
    train = config.train
    sharding.check_batch_size(train.batch_size, mesh, "train.batch_size", train.accumulate)
    sharding.check_batch_size(config.eval_batch_size, mesh, "eval_batch_size")
    options = {name: value for name, value in config.model.items() if value is not None}
    name = options.pop("name")
    model_config(name, **options)
  except (TypeError, ValueError) as error:
    raise ConfigError(str(error)) from error

  data = config.data
  generated.ensure(data.name, data.dir)
  train_records = open_records(data.name, data.dir, data.train_split)
  eval_records = open_records(data.name, data.dir, data.eval_split)
  num_steps = round(train.epochs * len(train_records) / train.batch_size)
  if num_steps < 1:
    raise ConfigError(
      f"{train.epochs} epochs of {len(train_records)} videos are less than one step of "
      f"{train.batch_size} clips; raise train.epochs or lower train.batch_size"
    )
  return Experiment(
    config=config,
    workdir=workdir,
    mesh=mesh,
    clip=clip,
    validation=validation,
    test=test,
    loader=loader,
    train_records=train_records,
    eval_records=eval_records,
    model_options={"num_classes": len(train_records.class_names), **options},
    num_steps=num_steps,
  )


def _train(experiment: Experiment) -> int:
  """Trains or resumes until the end or until asked to stop; returns the step reached."""
  config, mesh, train = experiment.config, experiment.mesh, experiment.config.train
  num_records = len(experiment.train_records)
  try:
    schedule = make_schedule(
      num_steps=experiment.num_steps,
      steps_per_epoch=num_records / train.batch_size,
      **config.schedule,
    )
    graph, shapes = _model_shapes(experiment)
    optimizer = make_optimizer(shapes, schedule, **config.optimizer)
  except (TypeError, ValueError) as error:
    raise ConfigError(str(error)) from error

  def initial_state() -> TrainState:
    _, params = split_model(_create_model(experiment))
    return create_state(params, optimizer, with_average=train.average_decay > 0)

  state_shapes = jax.eval_shape(initial_state)
  shardings = sharding.state_shardings(mesh, state_shapes)
  state_shapes = _with_shardings(state_shapes, shardings)

  with checkpointing.open_checkpoints(experiment.workdir / "checkpoints", keep=train.keep) as saved:
    start_step = checkpointing.latest_step(saved)
    if start_step is None:
      start_step = 0
      _require_start(config)
      state = jax.jit(initial_state, out_shardings=shardings)()
      if config.init_from != "random":
        state = _start_from(config.init_from, state)
      _write_config(experiment)
      logger.info(
        "training %s from %s: %d steps of %d clips on %d device(s)",
        config.model.name,
        "random weights" if config.init_from == "random" else config.init_from,
        experiment.num_steps,
        train.batch_size,
        mesh.size,
      )
    else:
      _warn_of_changes(experiment)
      if start_step >= experiment.num_steps:
        logger.info("training is complete at step %d of %s", start_step, saved.directory)
        return start_step
      state = checkpointing.restore(saved, state_shapes)
      logger.info(
        "resuming from step %d of %d, %s", start_step, experiment.num_steps, saved.directory
      )

    step = make_train_step(
      graph,
      optimizer,
      schedule,
      seed=config.seed,
      mean=config.data.mean,
      std=config.data.std,
      label_smoothing=train.label_smoothing,
      accumulate=train.accumulate,
      average_decay=train.average_decay,
      log_every=train.log_every,
    )
    step = jax.jit(step, donate_argnums=0, out_shardings=(shardings, sharding.replicated(mesh)))
    eval_step = jit_eval_step(
      make_eval_step(graph, mean=config.data.mean, std=config.data.std), mesh
    )

    def validate(state: TrainState) -> dict[str, float]:
      versions = {"validation": state.params}
      if train.average_decay:
        versions["validation_average"] = state.average
      results = _evaluate_params(experiment, eval_step, versions, experiment.validation)
      for name, result in results.items():
        what = name.replace("_", ", ")
        logger.info("step %d  %s top-1 %.1f %%", int(state.step), what, 100 * result.top1)
      return {
        f"{name}/{measure}": value
        for name, result in results.items()
        for measure, value in result.scalars().items()
      }

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
    )
    with contextlib.closing(MetricsWriter(experiment.workdir, start_step)) as writer:
      with contextlib.closing(batches):
        state = loop.train(
          state,
          step,
          batches,
          start_step=start_step,
          num_steps=experiment.num_steps,
          batch_size=train.batch_size,
          sharding=sharding.batch_sharding(mesh),
          writer=writer,
          evaluate=validate,
          save=partial(checkpointing.save, saved, facts=experiment.facts),
          describe_failed=experiment.train_records.video_id,
          max_failed_clips=lambda seen: config.data.max_failed_share * max(seen, num_records),
          log_every=train.log_every,
          eval_every=train.eval_every,
          save_every=train.save_every,
        )
    return int(state.step)


def _evaluate(experiment: Experiment, source: pathlib.Path) -> Evaluation:
  """Multi-view evaluation of the newest checkpoint of `source`; writes the report."""
  config, mesh = experiment.config, experiment.mesh
  graph, shapes = _model_shapes(experiment)
  shapes = _with_shardings(shapes, sharding.state_shardings(mesh, shapes))
  directory = source / "checkpoints"
  step, params = checkpointing.restore_params(directory, shapes)
  logger.info(
    "evaluating step %d of %s: %d videos, %d views each",
    step,
    directory,
    len(experiment.eval_records),
    count_views(experiment.clip, experiment.test),
  )
  eval_step = jit_eval_step(make_eval_step(graph, mean=config.data.mean, std=config.data.std), mesh)
  result = _evaluate_params(experiment, eval_step, {"test": params}, experiment.test)["test"]
  for record in result.failed:
    logger.warning("%s can't be decoded; not counted", experiment.eval_records.video_id(record))
  logger.info(
    "top-1 %.2f %%  top-5 %.2f %%  mean class %.2f %%",
    100 * result.top1,
    100 * result.top5,
    100 * result.mean_class,
  )
  if jax.process_index() == 0:
    _write_results(experiment, result, step, source)
  return result


def _evaluate_params(
  experiment: Experiment, eval_step: Callable, versions: dict[str, dict], views: Views
) -> dict[str, Evaluation]:
  batches = pipeline.eval_batches(
    experiment.eval_records,
    experiment.clip,
    views,
    batch_size=experiment.config.eval_batch_size,
    seed=experiment.config.seed,
    options=experiment.loader,
    host=jax.process_index(),
    num_hosts=jax.process_count(),
  )
  num_classes = len(experiment.class_names)
  with contextlib.closing(batches):
    try:
      return evaluate(eval_step, versions, batches, num_classes, experiment.mesh)
    except ValueError as error:
      raise DatasetError(str(error)) from error


def _write_results(experiment: Experiment, result: Evaluation, step: int, source) -> None:
  config, workdir = experiment.config, experiment.workdir
  views = {"step": step, "views": count_views(experiment.clip, experiment.test)}
  (workdir / "evaluation.json").write_text(
    json.dumps(views | result.scalars() | {"unreadable": len(result.failed)}, indent=2) + "\n"
  )
  names = experiment.class_names
  with (workdir / "predictions.csv").open("w", newline="") as file:
    table = csv.writer(file)
    table.writerow(["id", "label", "prediction", "probability"])
    for record, label, prediction, probability in result.predictions:
      video = experiment.eval_records.video_id(record)
      table.writerow([video, names[label], names[prediction], f"{probability:.6f}"])
  test = experiment.test
  write_report(
    workdir / "report.png",
    title=f"{config.model.name} on {config.data.name}",
    subtitle=(
      f"{step} steps of {config.train.batch_size} clips, each {experiment.clip.num_frames} frames "
      f"of {experiment.clip.size} x {experiment.clip.size}, {experiment.clip.frame_order}",
      f"{count_views(experiment.clip, test)} view(s) of each video: {test.num_clips} clip(s), "
      f"{test.crops} crop(s)",
    ),
    evaluation=result,
    class_names=names,
    metrics=read_metrics(source / "metrics.jsonl"),
  )
  logger.info("report: %s", workdir / "report.png")


def _create_model(experiment: Experiment):
  return create_model(
    experiment.config.model.name, seed=experiment.config.seed, **experiment.model_options
  )


def _model_shapes(experiment: Experiment):
  """Graph of the model and the shapes of its parameters, without computing any."""
  graph = None

  def params():
    nonlocal graph
    graph, values = split_model(_create_model(experiment))
    return values

  shapes = jax.eval_shape(params)
  return graph, shapes


def _with_shardings(shapes, shardings):
  return jax.tree.map(
    lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
    shapes,
    shardings,
  )


def _require_start(config: config_dict.ConfigDict) -> None:
  if config.init_from is None:
    raise ConfigError(
      "this recipe starts from pretrained weights: give --config.init_from=WORKDIR of a run, or "
      "--config.init_from=random to train from random weights (far lower accuracy)"
    )


def _start_from(source: str, state: TrainState) -> TrainState:
  """Replaces the parameters by those of another run; a head of another size stays random."""
  directory = pathlib.Path(source).expanduser().absolute() / "checkpoints"
  shapes = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state.params
  )
  step, params = checkpointing.restore_params(directory, shapes, replaceable="head.")
  missing = jax.tree.map(lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct), params)
  params = jax.tree.map(lambda new, old, gone: old if gone else new, params, state.params, missing)
  if any(jax.tree.leaves(missing)):
    logger.info("the head of %s has another number of classes; it starts anew", directory)
  logger.info("weights from step %d of %s", step, directory)
  average = jax.tree.map(jnp.copy, params) if state.average else {}
  return state.replace(params=params, average=average)


def _write_config(experiment: Experiment) -> None:
  path = experiment.workdir / "config.json"
  path.write_text(experiment.config.to_json_best_effort(indent=2) + "\n")


def _warn_of_changes(experiment: Experiment) -> None:
  """Says which values differ from those the run was started with."""
  path = experiment.workdir / "config.json"
  if not path.exists():
    return
  before = _leaves(json.loads(path.read_text()))
  now = _leaves(json.loads(experiment.config.to_json_best_effort()))
  for key in sorted(before.keys() | now.keys()):
    free = any(key == name or key.startswith(f"{name}.") for name in _FREE_TO_CHANGE)
    if before.get(key) != now.get(key) and not free:
      logger.warning(
        "config.%s was %s when this run was started and is %s now: the result will differ from "
        "an uninterrupted run",
        key,
        before.get(key),
        now.get(key),
      )


def _leaves(tree: dict, prefix: str = "") -> dict:
  leaves = {}
  for key, value in tree.items():
    if isinstance(value, dict):
      leaves |= _leaves(value, f"{prefix}{key}.")
    else:
      leaves[prefix + key] = value
  return leaves
