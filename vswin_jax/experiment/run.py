"""A run from its config: builds model, data, optimizer and loop, trains, evaluates, reports."""

import contextlib
import dataclasses
import zlib
from collections.abc import Callable, Collection, Iterator

import jax
from ml_collections import config_dict

from vswin_jax.checkpoints import manager
from vswin_jax.common.paths import AnyPath, LocalPathError, file_path
from vswin_jax.common.progress import logger, set_up_logging
from vswin_jax.data import generated, pipeline
from vswin_jax.data.clips import Views, count_views, describe_views, view_frames
from vswin_jax.data.preprocessing import Preprocessing
from vswin_jax.data.records import DatasetError, VideoRecords, open_records
from vswin_jax.data.video.decoding import VideoError
from vswin_jax.distributed.consistency import (
  broadcast_from_first,
  check_same,
  check_shared,
  is_first,
)
from vswin_jax.distributed.errors import ConsistencyError, StartupError
from vswin_jax.experiment import initialization, results
from vswin_jax.experiment.config import flat_values
from vswin_jax.experiment.plan import ConfigError, Plan, Settings, make_plan, read_settings
from vswin_jax.experiment.workdir import RunFolder, RunFolderError, open_run_folder
from vswin_jax.models.parameters import with_shardings
from vswin_jax.training import loop, sharding
from vswin_jax.training.evaluation import Evaluation, EvaluationError, evaluate
from vswin_jax.training.metrics import MetricsWriter, read_scores
from vswin_jax.training.step import TrainState
from vswin_jax.training.stopping import Stopped, StopRequest

USER_ERRORS = (
  ConfigError,
  DatasetError,
  ConsistencyError,
  EvaluationError,
  LocalPathError,
  RunFolderError,
  StartupError,
  VideoError,
  manager.CheckpointError,
  loop.TrainingError,
  initialization.StartError,
)


@dataclasses.dataclass(frozen=True)
class Experiment:
  """A plan with its data and the folder of its run."""

  plan: Plan
  folder: RunFolder
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
  def shared_metadata(self) -> dict[str, str]:
    """What must be the same in all processes, besides the config, by name."""
    names = zlib.crc32("\0".join(self.class_names).encode())
    sizes = f"{len(self.train_records)} and {len(self.eval_records)} videos"
    ids = ", ".join(
      records.video_id(place)
      for records in (self.train_records, self.eval_records)
      for place in (0, len(records) // 2, len(records) - 1)
    )
    return {
      "the data set": f"{sizes}, {len(self.class_names)} classes ({names:08x}), such as {ids}",
      "the newest checkpoint": str(manager.newest_step(self.folder.checkpoints)),
    }

  @property
  def metadata(self) -> dict:
    """What a checkpoint says about its weights."""
    data = self.config.data
    preprocessing = Preprocessing(
      tuple(data.mean), tuple(data.std), self.settings.clip, self.settings.test
    )
    return {
      "model": {"name": self.config.model.name, **self.plan.model_options},
      "preprocessing": preprocessing.to_metadata(),
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
  overridden_keys: Collection[str] = (),
) -> Evaluation | None:
  """Runs `mode` "train" (train or resume, then evaluate) or "eval" in `workdir`.

  Args:
    checkpoint: for "eval", the workdir whose newest checkpoint is evaluated; None: `workdir`. Its
      preprocessing takes the place of the config's.
    overridden_keys: keys of `config` that hold against the checkpoint's preprocessing.

  Returns:
    The evaluation of the final (or given) checkpoint; None if training was asked to stop.

  Raises:
    one of `USER_ERRORS`, or OSError.
  """
  # Before JAX looks for devices, and says which kinds it does not find.
  set_up_logging()
  set_up_logging(process=jax.process_index())
  source = initialization.source_of(config, file_path(workdir), mode, checkpoint)
  with StopRequest() as stop, open_run_folder(workdir, is_first=is_first()) as folder:
    check_shared(folder.path)
    log = folder.local / f"{mode}.log" if is_first() else None
    set_up_logging(log, process=jax.process_index())
    config = initialization.settle(
      config, source, mode=mode, workdir=folder.path, overridden_keys=overridden_keys
    )
    experiment = _build(config, folder, mode)
    check_same(shared_values(config) | experiment.shared_metadata | {"the weights": str(source)})
    if mode == "train":
      step = _train(experiment, source, stop)
      if stop.reached:
        logger.info("asked to stop: saved step %d, the same command resumes", step)
        return None
      source = folder.path
    try:
      return _evaluate(experiment, source, stop)
    except Stopped:
      logger.info("asked to stop before the evaluation was done, the same command starts it anew")
      return None


def shared_values(config: config_dict.ConfigDict) -> dict[str, str]:
  """The values of a config that must be the same in all processes of a run, by flag."""
  return {
    f"--config.{key}": str(value)
    for key, value in flat_values(config).items()
    if key != "data.dir" and not key.startswith("loader.")
  }


def _build(config: config_dict.ConfigDict, folder: RunFolder, mode: str) -> Experiment:
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
  return Experiment(plan, folder, train_records, eval_records)


def _train(experiment: Experiment, source: AnyPath | None, stop: StopRequest) -> int:
  """Trains from the weights of `source`, or resumes, until the end or until asked to stop; returns
  the step reached, which is saved then."""
  config, plan, train = experiment.config, experiment.plan, experiment.config.train
  folder, directory = experiment.folder, experiment.folder.checkpoints
  with manager.open_checkpoints(
    directory, keep=train.keep, keep_best=train.keep_best, keep_every=train.keep_every
  ) as saved:
    if manager.latest_step(saved) is None:
      state, metadata = _new_state(experiment, source), {}
    else:
      state, metadata = manager.restore(saved, plan.state_shapes())
      initialization.check_metadata(directory, metadata, experiment.metadata, resuming=True)
    start_step = int(state.step)
    evaluated = read_scores(folder.local)
    left_evaluation = metadata.get("left_evaluation", False) and not broadcast_from_first(
      start_step in evaluated
    )
    # What was saved before it was evaluated does not know its score.
    for step in evaluated.keys() - saved.scores.keys():
      if step <= start_step:
        manager.note_score(saved, step, main_score(evaluated[step]))
    if start_step >= plan.num_steps and not left_evaluation:
      logger.info("training is complete at step %d of %s", start_step, directory)
      return start_step
    if start_step:
      if is_first():
        results.warn_of_changes(folder.local, config)
      logger.info("resuming from step %d of %d, %s", start_step, plan.num_steps, directory)

    def last_saved() -> str:
      step = manager.latest_step(saved)
      return "nothing was saved yet" if step is None else f"step {step} in {directory} is kept"

    def save(state: TrainState, scores: dict[str, float] | None) -> None:
      step = int(state.step)
      is_due = step % train.eval_every == 0 or step == plan.num_steps
      metadata = experiment.metadata | {"left_evaluation": is_due and scores is None}
      manager.save(saved, state, metadata, None if scores is None else main_score(scores))
      folder.publish()

    eval_step = plan.jitted_eval_step()

    def evaluate_state(state: TrainState) -> dict[str, float]:
      scores = _validate(experiment, eval_step, stop, state)
      if int(state.step) == start_step:  # saved before it was evaluated
        manager.note_score(saved, start_step, main_score(scores))
      return scores

    batch_sharding = sharding.batch_sharding(experiment.mesh)
    batches = pipeline.train_batches(
      experiment.train_records,
      experiment.settings.clip,
      batch_size=train.batch_size,
      seed=config.seed,
      start_step=start_step,
      num_steps=plan.num_steps,
      options=experiment.settings.loader,
      rows=sharding.local_rows(batch_sharding, train.batch_size),
      repeats=train.repeats,
    )
    epoch_clips = len(experiment.train_records) * train.repeats
    with (
      _metrics_writer(experiment, start_step, left_evaluation) as write_metrics,
      contextlib.closing(batches),
    ):
      state = loop.train(
        state,
        plan.jitted_train_step(),
        batches,
        start_step=start_step,
        num_steps=plan.num_steps,
        batch_size=train.batch_size,
        sharding=batch_sharding,
        write_metrics=write_metrics,
        evaluate=evaluate_state,
        save=save,
        stop=stop,
        last_saved=last_saved,
        describe_failed=experiment.train_records.video_id,
        max_failed_clips=lambda seen: config.data.max_failed_share * max(seen, epoch_clips),
        log_every=train.log_every,
        eval_every=train.eval_every,
        save_every=train.save_every,
        saves_evaluated=train.keep_best > 0,
        evaluates_first=left_evaluation,
        is_shown=is_first(),
      )
  return int(state.step)


@contextlib.contextmanager
def _metrics_writer(
  experiment: Experiment, start_step: int, evaluates_again: bool
) -> Iterator[Callable]:
  """What keeps the metrics of a step: in the first process a file, in others nothing."""
  if not is_first():
    yield lambda step, values: None
    return
  writer = MetricsWriter(experiment.folder.local, start_step, evaluates_again=evaluates_again)
  with contextlib.closing(writer):

    def write(step: int, values: dict[str, float]) -> None:
      writer.write(step, values)
      experiment.folder.publish()

    yield write


def main_score(scores: dict[str, float]) -> float:
  """By which checkpoints are compared: of the averaged parameters, if there are any."""
  for version in ("validation_average", "validation"):
    for measure in ("top1", "mean_average_precision"):
      if f"{version}/{measure}" in scores:
        return scores[f"{version}/{measure}"]
  raise ValueError(f"no score of a validation among {', '.join(scores)}")


def _new_state(experiment: Experiment, source: AnyPath | None) -> TrainState:
  """The state before the first step: random, or with the weights of a folder."""
  config = experiment.config
  plan = experiment.plan
  state = jax.jit(plan.create_state, out_shardings=plan.state_shardings())()
  if source is not None:
    state = initialization.with_weights_of(source, state, experiment.class_names)
  if is_first():
    results.write_config(experiment.folder.local, config)
  logger.info(
    "training %s from %s: %d steps of %d clips on %d device(s)",
    config.model.name,
    source or "random weights",
    plan.num_steps,
    config.train.batch_size,
    experiment.mesh.size,
  )
  return state


def _validate(
  experiment: Experiment, eval_step: Callable, stop: StopRequest, state: TrainState
) -> dict[str, float]:
  """Scores of the parameters and, if there is one, of their average."""
  versions = {"validation": state.params}
  if state.average:
    versions["validation_average"] = state.average
  scores = {}
  for name, result in _evaluate_versions(
    experiment, eval_step, versions, experiment.settings.validation, stop
  ).items():
    logger.info("step %d  %s %s", int(state.step), name.replace("_", ", "), result.describe())
    scores |= {f"{name}/{measure}": value for measure, value in result.scalars().items()}
  return scores


def _evaluate(experiment: Experiment, source: AnyPath, stop: StopRequest) -> Evaluation:
  """Multi-view evaluation of the newest checkpoint of `source`; writes the results."""
  clip, test = experiment.settings.clip, experiment.settings.test
  shardings = sharding.state_shardings(experiment.mesh, experiment.plan.param_shapes)
  directory = manager.checkpoints_of(source)
  step, params, metadata = manager.restore_params(
    directory, with_shardings(experiment.plan.param_shapes, shardings)
  )
  initialization.check_metadata(directory, metadata, experiment.metadata, resuming=False)
  views = count_views(clip, test)
  logger.info(
    "evaluating step %d of %s: %d videos, %d views each",
    step,
    directory,
    len(experiment.eval_records),
    views,
  )
  eval_step = experiment.plan.jitted_eval_step()
  result = _evaluate_versions(experiment, eval_step, {"test": params}, test, stop)["test"]
  logger.info(result.describe())
  if is_first():
    training = metadata.get("training")
    origin = f"{step} steps of {training['batch_size']} clips" if training else "converted weights"
    is_own = source == experiment.folder.path
    results.write_results(
      experiment.folder.local,
      result,
      title=f"{experiment.config.model.name} on {experiment.config.data.name}",
      subtitle=(
        f"{origin}; clips of {view_frames(clip, test)} frames of {clip.size} x {clip.size}, "
        f"{clip.frame_order}",
        f"{describe_views(clip, test)} views (clips x crops) of each video",
      ),
      metadata={"step": step, "views": views},
      class_names=experiment.class_names,
      video_ids=[experiment.eval_records.video_id(row[0]) for row in result.predictions],
      metrics=(experiment.folder.local if is_own else source) / "metrics.jsonl",
    )
  return result


def _evaluate_versions(
  experiment: Experiment,
  eval_step: Callable,
  versions: dict[str, dict],
  views: Views,
  stop: StopRequest,
) -> dict[str, Evaluation]:
  """Evaluates versions of the parameters over the evaluation split; names unreadable videos."""
  records, mesh = experiment.eval_records, experiment.mesh
  # Results do not depend on it; every device gets the same number of videos.
  batch_size = sharding.round_up(experiment.config.eval_batch_size, mesh)
  batches = pipeline.eval_batches(
    records,
    experiment.settings.clip,
    views,
    batch_size=batch_size,
    seed=experiment.config.seed,
    options=experiment.settings.loader,
    rows=sharding.local_rows(sharding.batch_sharding(mesh), batch_size),
  )
  with contextlib.closing(batches):
    results = evaluate(
      eval_step, versions, batches, len(experiment.class_names), mesh, check_stop=stop.check
    )
  for record in next(iter(results.values())).failed:
    logger.warning("%s can't be decoded; not counted", records.video_id(record))
  return results
