"""Training of a run: starts or resumes it, and connects the loop to files and evaluations."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

import jax

from vswin_jax.checkpoints import manager
from vswin_jax.checkpoints.selection import newest_step
from vswin_jax.common.checks import fields
from vswin_jax.common.logging import logger
from vswin_jax.common.paths import AnyPath
from vswin_jax.data import pipeline
from vswin_jax.distributed.consistency import broadcast_from_first, is_first
from vswin_jax.experiment import initialization, results
from vswin_jax.experiment.evaluation import main_score, validate
from vswin_jax.experiment.experiment import Experiment
from vswin_jax.training import loop, sharding
from vswin_jax.training.metrics import MetricsWriter, read_metrics
from vswin_jax.training.profile import Profile
from vswin_jax.training.step import TrainState
from vswin_jax.training.stopping import StopRequest


def train(
  experiment: Experiment,
  source: AnyPath | None,
  stop: StopRequest,
  profile_steps: tuple[int, int] | None = None,
) -> int:
  """Trains until the end, or until asked to stop.

  Args:
    source: folder of the initial weights; None: random weights. A run with a checkpoint resumes.
    profile_steps: first and last step of a trace, which is written to the folder of the run; None:
      no trace.

  Returns:
    The step reached, which is saved.

  Raises:
    CheckpointError: a checkpoint can't be read or written.
    TrainingError: training can't go on.
  """
  plan, settings = experiment.plan, experiment.settings.train
  intervals = loop.Intervals(
    num_steps=plan.num_steps,
    save_evaluated=settings.keep_best > 0,
    **fields(settings, "log_every", "eval_every", "save_every"),
  )
  lines = read_metrics(experiment.folder.local / "metrics.jsonl")
  scores = {line["step"]: score for line in lines if (score := main_score(line)) is not None}
  with manager.open_checkpoints(
    experiment.folder.checkpoints,
    scores=scores,
    **fields(settings, "keep", "keep_best", "keep_every"),
  ) as checkpoints:
    state = _start_or_resume(experiment, checkpoints, source)
    step = int(state.step)
    if profile_steps and step >= profile_steps[1]:
      logger.info(
        "no profile: it was to end with step %d, and this run is at step %d", profile_steps[1], step
      )
    # A run that was asked to stop skips the evaluation of its last step.
    evaluate_first = intervals.evaluates(step) and not broadcast_from_first(step in scores)
    if step >= plan.num_steps and not evaluate_first:
      logger.info("training is complete at step %d of %s", step, checkpoints.directory)
      return step
    with contextlib.ExitStack() as stack:
      writer = None
      if is_first():
        writer = MetricsWriter(experiment.folder.local, step)
        stack.enter_context(contextlib.closing(writer))
      batches = stack.enter_context(contextlib.closing(_batches(experiment, step)))
      state = loop.train(
        state,
        plan.jitted_train_step(),
        batches,
        intervals=intervals,
        batch_size=settings.batch_size,
        sharding=sharding.batch_sharding(plan.mesh),
        hooks=_Hooks(experiment, checkpoints, plan.jitted_eval_step(), stop, writer, scores),
        stop=stop,
        evaluate_first=evaluate_first,
        step_flops=plan.step_flops(),
        profile=Profile(profile_steps, experiment.folder.store_profile),
      )
  return int(state.step)


@dataclasses.dataclass(frozen=True)
class _Hooks:
  """Callbacks of the training loop: metrics, evaluations and checkpoints.

  Attributes:
    writer: None in all processes but the first.
    scores: main validation score by step, of all evaluations of the run so far.
  """

  experiment: Experiment
  checkpoints: manager.Checkpoints
  eval_step: Callable
  stop: StopRequest
  writer: MetricsWriter | None
  scores: dict[int, float]

  def write_metrics(self, step: int, metrics: dict[str, float]) -> None:
    if self.writer:
      self.writer.write(step, metrics)
      self.experiment.folder.publish()

  def evaluate(self, state: TrainState) -> dict[str, float]:
    scores = validate(self.experiment, self.eval_step, state, self.stop)
    self.scores[int(state.step)] = main_score(scores)
    return scores

  def save(self, state: TrainState) -> None:
    manager.save(self.checkpoints, state, self.experiment.metadata)
    self.experiment.folder.publish()

  def describe_saved(self) -> str:
    step = newest_step(self.checkpoints.directory)
    if step is None:
      return "nothing was saved yet"
    return f"step {step} in {self.checkpoints.directory} is kept"

  def record_id(self, record: int) -> str:
    return self.experiment.train_records.video_id(record)

  def max_failed_clips(self, step: int) -> float:
    settings, records = self.experiment.settings, self.experiment.train_records
    # A share of few clips would be less than one.
    num_clips = max(step * settings.train.batch_size, len(records) * settings.train.repeats)
    return settings.data.max_failed_share * num_clips


def _start_or_resume(
  experiment: Experiment, checkpoints: manager.Checkpoints, source: AnyPath | None
) -> TrainState:
  """Returns the state of the newest checkpoint or, if there is none, the initial state."""
  plan, directory = experiment.plan, checkpoints.directory
  if newest_step(directory) is None:
    state = jax.jit(plan.create_state, out_shardings=plan.state_shardings())()
    if source is not None:
      state = initialization.load_initial_weights(source, state, experiment.class_names)
    if is_first():
      results.write_config(experiment.folder.local, experiment.settings)
    logger.info(
      "training %s from %s: %d steps of %d clips on %d device(s)",
      experiment.settings.model["name"],
      source or "random weights",
      plan.num_steps,
      experiment.settings.train.batch_size,
      plan.mesh.size,
    )
    return state
  state, metadata = manager.restore(checkpoints, plan.state_shapes())
  initialization.check_metadata(directory, metadata, experiment.metadata, resuming=True)
  step = int(state.step)
  if 0 < step < plan.num_steps:
    if is_first():
      results.warn_of_changes(experiment.folder.local, experiment.settings)
    logger.info("resuming from step %d of %d, %s", step, plan.num_steps, directory)
  return state


def _batches(experiment: Experiment, start_step: int) -> Iterator[dict]:
  """Returns the batches of this host from a step on."""
  plan, settings = experiment.plan, experiment.settings
  return pipeline.train_batches(
    experiment.train_records,
    settings.clip,
    batch_size=settings.train.batch_size,
    seed=settings.seed,
    start_step=start_step,
    num_steps=plan.num_steps,
    options=settings.loader,
    rows=sharding.local_rows(sharding.batch_sharding(plan.mesh), settings.train.batch_size),
    repeats=settings.train.repeats,
  )
