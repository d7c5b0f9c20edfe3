"""Training loop: fetches batches, runs steps, and evaluates and saves at their intervals."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from typing import Protocol

import jax

from vswin_jax.common.logging import logger, own_logger
from vswin_jax.training.compilation import measure_compilation
from vswin_jax.training.profile import Profile
from vswin_jax.training.progress import Progress
from vswin_jax.training.sharding import put_batch
from vswin_jax.training.step import TrainState
from vswin_jax.training.stopping import Stopped, StopRequest


class TrainingError(RuntimeError):
  """Raised when training can't go on; the message names the step and what to do."""


@dataclasses.dataclass(frozen=True)
class Intervals:
  """Length of a training and the intervals of its events, in steps.

  The last step is always evaluated and saved.

  Attributes:
    log_every: as in `training.step.make_train_step`.
    save_evaluated: whether every evaluated state is saved too.
  """

  num_steps: int
  log_every: int
  eval_every: int
  save_every: int
  save_evaluated: bool = False

  def evaluates(self, step: int) -> bool:
    """Returns whether the state after a step is evaluated."""
    return step > 0 and (step % self.eval_every == 0 or step == self.num_steps)

  def saves(self, step: int) -> bool:
    """Returns whether the state after a step is saved."""
    is_due = step % self.save_every == 0 or step == self.num_steps
    return is_due or (self.save_evaluated and self.evaluates(step))


class Hooks(Protocol):
  """Callbacks of the training loop."""

  def write_metrics(self, step: int, metrics: dict[str, float]) -> None:
    """Writes scalars of a step, by name."""

  def evaluate(self, state: TrainState) -> dict[str, float]:
    """Returns the scores of a state, by name; may raise `Stopped`."""

  def save(self, state: TrainState) -> None:
    """Saves a state, whose loss was finite, after its evaluation if there is one."""

  def describe_saved(self) -> str:
    """Returns which checkpoint is newest, for error messages."""

  def record_id(self, record: int) -> str:
    """Returns the id of a record, for log messages."""

  def max_failed_clips(self, step: int) -> float:
    """Returns how many of the clips up to a step may fail to decode."""


def train(
  state: TrainState,
  train_step: Callable[[TrainState, dict], tuple[TrainState, dict]],
  batches: Iterator[dict],
  *,
  intervals: Intervals,
  batch_size: int,
  sharding: jax.sharding.NamedSharding,
  hooks: Hooks,
  stop: StopRequest,
  evaluate_first: bool = False,
  step_flops: float | None = None,
  profile: Profile | None = None,
) -> TrainState:
  """Trains from `state.step` until `intervals.num_steps`.

  The order within a step is fixed: fetch a batch, start the step, write the metrics of the step
  before, evaluate, save. Only the metrics wait for the device, and they are read while the next
  step runs.

  Args:
    state: its buffers are donated to `train_step`.
    train_step: jitted, from `training.step.make_train_step`.
    batches: host batches from `state.step` on.
    batch_size: clips of a step over all devices, for the speed.
    sharding: sharding of the batches.
    stop: polled after every step.
    evaluate_first: whether to evaluate `state` before the first step.
    step_flops: model FLOPs of a step over all devices, for the log; None: unknown.
    profile: trace of some of the steps.

  Returns:
    The last state. If the run was asked to stop, it may have fewer than `num_steps` updates; it is
    saved unless it is the state that `evaluate_first` was to evaluate.

  Raises:
    TrainingError: the loss or the gradient is not finite, or too many clips can't be decoded.
  """
  start_step = int(state.step)
  devices = list(sharding.mesh.devices.flat)
  progress = Progress(start_step, intervals.num_steps, batch_size, step_flops, devices)
  with progress, profile or Profile() as profile:
    if evaluate_first and not _evaluate(state, start_step, hooks):
      return state
    pending = None
    for step in range(start_step + 1, intervals.num_steps + 1):
      if profile.starts(step):
        _report(pending, intervals, hooks, progress)
        pending = None
        jax.block_until_ready(state)
        profile.start()
        progress.pause(step - 1)
      is_first = step == start_step + 1
      with jax.profiler.StepTraceAnnotation("train", step_num=step):
        batch = put_batch(_fetch(batches, hooks, progress), sharding)
        with measure_compilation() if is_first else contextlib.nullcontext() as compilation:
          state, metrics = train_step(state, batch)
      _report(pending, intervals, hooks, progress)
      pending = (step, metrics)
      if compilation:
        jax.block_until_ready(metrics)
        progress.compiled(compilation)
        progress.pause(step)
      if profile.ends(step):
        jax.block_until_ready(metrics)
        profile.stop()
        progress.pause(step)

      evaluates, saves = intervals.evaluates(step), intervals.saves(step)
      if stop.poll() or evaluates or saves:
        _report(pending, intervals, hooks, progress)
        pending = None
        if evaluates and not stop.reached:
          _evaluate(state, step, hooks)
        if saves or stop.reached:
          hooks.save(state)
        progress.pause(step)
      if stop.reached:
        break
  return state


def _evaluate(state: TrainState, step: int, hooks: Hooks) -> bool:
  """Evaluates a state and writes its scores; returns False if asked to stop meanwhile."""
  try:
    scores = hooks.evaluate(state)
  except Stopped:
    return False
  hooks.write_metrics(step, scores)
  return True


def _fetch(batches: Iterator[dict], hooks: Hooks, progress: Progress) -> dict:
  """Returns the next batch of this host; counts the time of waiting for it, names failed clips."""
  waiting_since = time.perf_counter()
  with jax.profiler.TraceAnnotation("wait for data"):
    batch = next(batches)
  progress.waited(time.perf_counter() - waiting_since)
  for record in batch["failed"][batch["failed"] >= 0]:
    own_logger.warning("replaced a clip of %s: can't decode it", hooks.record_id(int(record)))
  return batch


def _report(
  pending: tuple[int, dict] | None, intervals: Intervals, hooks: Hooks, progress: Progress
) -> None:
  """Checks the metrics of a step, shows them, and writes them if the step is a logged one.

  Args:
    pending: a step and its metrics; None: nothing is done.

  Raises:
    TrainingError: the loss or the gradient is not finite, or too many clips can't be decoded.
  """
  if pending is None:
    return
  step, metrics = pending
  metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
  loss = metrics.pop("loss")
  if not (math.isfinite(loss) and math.isfinite(metrics["mean_grad_norm"])):
    raise TrainingError(
      f"the loss or its gradient is not finite at step {step} (loss {loss}); "
      f"{hooks.describe_saved()}. Lower the learning rate, clip gradients or check the data"
    )
  progress.advance(step, loss, metrics["learning_rate"])
  failed, allowed = int(metrics["clips_failed"]), hooks.max_failed_clips(step)
  if failed > allowed:
    raise TrainingError(
      f"{failed} clips could not be decoded by step {step}, more than the {allowed:.0f} "
      "allowed; fix the data set or raise --config.data.max_failed_share"
    )
  if step % intervals.log_every:
    return
  speed, speed_text = progress.measure(step)
  means = {f"train/{name.removeprefix('mean_')}": value for name, value in metrics.items()}
  hooks.write_metrics(step, means | speed)
  logger.info(
    "step %d/%d  loss %.4f  top-1 %.1f %%  learning rate %.2e%s",
    step,
    intervals.num_steps,
    metrics["mean_loss"],
    100 * metrics["mean_top1"],
    metrics["learning_rate"],
    speed_text,
  )
