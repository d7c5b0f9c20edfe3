"""A run from its config: builds model, data, optimizer and loop, trains, evaluates, reports.

With `run_files` the only module besides `main` that knows configs; all else takes plain values.
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Collection
from functools import partial

import jax
from ml_collections import config_dict

from vswin_jax import run_files, starting_point
from vswin_jax.data import generated, pipeline
from vswin_jax.data.clips import Views, count_views, describe_views, view_frames
from vswin_jax.data.decoding import VideoError
from vswin_jax.data.preprocessing import Preprocessing
from vswin_jax.data.records import DatasetError, VideoRecords, open_records
from vswin_jax.local_files import LocalPathError, local_path
from vswin_jax.plan import ConfigError, Plan, Settings, make_plan, read_settings
from vswin_jax.training import checkpointing, loop, sharding
from vswin_jax.training.evaluation import Evaluation, EvaluationError, evaluate
from vswin_jax.training.metrics import MetricsWriter
from vswin_jax.training.progress import logger, set_up_logging
from vswin_jax.training.step import TrainState

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
  """A plan with its data and the folder of its run."""

  plan: Plan
  workdir: pathlib.Path
  train_records: VideoRecords
  eval_records: VideoRecords

  @property
  def settings(self) -> Settings:
    return self.plan.settings

  @property
  def config(self) -> config_dict.ConfigDict:
    return self.settings.config

  @property
  def mesh(self) -> jax.sharding.Mesh:
    return self.settings.mesh

  @property
  def class_names(self) -> tuple[str, ...]:
    return self.train_records.class_names

  @property
  def facts(self) -> dict:
    """What a checkpoint says about its weights."""
    data = self.config.data
    preprocessing = Preprocessing(
      tuple(data.mean), tuple(data.std), self.settings.clip, self.settings.test
    )
    return {
      "model": {"name": self.config.model.name, **self.plan.model_options},
      "preprocessing": preprocessing.as_facts(),
      "labels": list(self.class_names),
      "multi_label": self.plan.multi_label,
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
    if _train(experiment, source) < experiment.plan.num_steps:
      return None
    source = folder
  return _evaluate(experiment, source)


def _build(config: config_dict.ConfigDict, workdir: pathlib.Path, mode: str) -> Experiment:
  """Turns a config into objects; values that do not fit become a `ConfigError`."""
  settings = read_settings(config, mode)
  generated.ensure(config.data.name, config.data.dir)
  train_records = open_records(config.data.name, config.data.dir, config.data.train_split)
  eval_records = open_records(config.data.name, config.data.dir, config.data.eval_split)
  plan = make_plan(
    settings,
    num_classes=len(train_records.class_names),
    num_videos=len(train_records),
    multi_label=train_records.multi_label,
  )
  return Experiment(plan, workdir, train_records, eval_records)


def _train(experiment: Experiment, source: pathlib.Path | None) -> int:
  """Trains from the weights of `source`, or resumes, until the end or until asked to stop; returns
  the step reached."""
  config, mesh, train = experiment.config, experiment.mesh, experiment.config.train
  directory = checkpointing.checkpoints_of(experiment.workdir)
  with checkpointing.open_checkpoints(directory, keep=train.keep) as saved:
    start_step = checkpointing.latest_step(saved)
    if start_step is not None and start_step >= experiment.plan.num_steps:
      logger.info("training is complete at step %d of %s", start_step, directory)
      return start_step
    if start_step is None:
      start_step, state = 0, _new_state(experiment, source)
    else:
      state, facts = checkpointing.restore(saved, experiment.plan.state_shapes())
      starting_point.check_facts(directory, facts, experiment.facts, resuming=True)
      run_files.warn_of_changes(experiment.workdir, config)
      logger.info(
        "resuming from step %d of %d, %s", start_step, experiment.plan.num_steps, directory
      )

    def last_saved() -> str:
      step = checkpointing.latest_step(saved)
      return "nothing was saved yet" if step is None else f"step {step} in {directory} is kept"

    batches = pipeline.train_batches(
      experiment.train_records,
      experiment.settings.clip,
      batch_size=train.batch_size,
      seed=config.seed,
      start_step=start_step,
      num_steps=experiment.plan.num_steps,
      options=experiment.settings.loader,
      host=jax.process_index(),
      num_hosts=jax.process_count(),
      repeats=train.repeats,
    )
    writer = MetricsWriter(experiment.workdir, start_step)
    epoch_clips = len(experiment.train_records) * train.repeats
    with contextlib.closing(writer), contextlib.closing(batches):
      state = loop.train(
        state,
        experiment.plan.jitted_train_step(),
        batches,
        start_step=start_step,
        num_steps=experiment.plan.num_steps,
        batch_size=train.batch_size,
        sharding=sharding.batch_sharding(mesh),
        writer=writer,
        evaluate=partial(_validate, experiment, experiment.plan.jitted_eval_step()),
        save=partial(checkpointing.save, saved, facts=experiment.facts),
        last_saved=last_saved,
        describe_failed=experiment.train_records.video_id,
        max_failed_clips=lambda seen: config.data.max_failed_share * max(seen, epoch_clips),
        log_every=train.log_every,
        eval_every=train.eval_every,
        save_every=train.save_every,
      )
    return int(state.step)


def _new_state(experiment: Experiment, source: pathlib.Path | None) -> TrainState:
  """The state before the first step: random, or with the weights of a folder."""
  config = experiment.config
  shardings = jax.tree.map(lambda leaf: leaf.sharding, experiment.plan.state_shapes())
  state = jax.jit(experiment.plan.create_state, out_shardings=shardings)()
  if source is not None:
    state = starting_point.with_weights_of(source, state, experiment.class_names)
  run_files.write_config(experiment.workdir, config)
  logger.info(
    "training %s from %s: %d steps of %d clips on %d device(s)",
    config.model.name,
    source or "random weights",
    experiment.plan.num_steps,
    config.train.batch_size,
    experiment.mesh.size,
  )
  return state


def _validate(experiment: Experiment, eval_step: Callable, state: TrainState) -> dict[str, float]:
  """Scores of the parameters and, if there is one, of their average."""
  versions = {"validation": state.params}
  if state.average:
    versions["validation_average"] = state.average
  scores = {}
  for name, result in _evaluate_versions(
    experiment, eval_step, versions, experiment.settings.validation
  ).items():
    logger.info("step %d  %s %s", int(state.step), name.replace("_", ", "), result.describe())
    scores |= {f"{name}/{measure}": value for measure, value in result.scalars().items()}
  return scores


def _evaluate(experiment: Experiment, source: pathlib.Path) -> Evaluation:
  """Multi-view evaluation of the newest checkpoint of `source`; writes the results."""
  clip, test = experiment.settings.clip, experiment.settings.test
  shardings = sharding.state_shardings(experiment.mesh, experiment.plan.param_shapes)
  directory = checkpointing.checkpoints_of(source)
  step, params, facts = checkpointing.restore_params(
    directory, sharding.with_shardings(experiment.plan.param_shapes, shardings)
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
  eval_step = experiment.plan.jitted_eval_step()
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
    experiment.settings.clip,
    views,
    # Results do not depend on it; every device gets the same number of videos.
    batch_size=sharding.round_up(experiment.config.eval_batch_size, experiment.mesh),
    seed=experiment.config.seed,
    options=experiment.settings.loader,
    host=jax.process_index(),
    num_hosts=jax.process_count(),
  )
  with contextlib.closing(batches):
    results = evaluate(eval_step, versions, batches, len(experiment.class_names), experiment.mesh)
  for record in next(iter(results.values())).failed:
    logger.warning("%s can't be decoded; not counted", records.video_id(record))
  return results
