"""The training loop: fetch, step, write, then at their intervals evaluate and save."""

import math
import time
from collections.abc import Callable, Iterator

import jax

from vswin_jax.common.cli import TRANSIENT
from vswin_jax.common.progress import Progress, logger, own_logger
from vswin_jax.training.sharding import put_batch
from vswin_jax.training.step import TrainState
from vswin_jax.training.stopping import Stopped, StopRequest


class TrainingError(RuntimeError):
  """Training that can't go on; the message says at which step, and what to do."""


class LostWorkerError(TrainingError):
  """A data worker that died."""

  exit_status = TRANSIENT


def train(
  state: TrainState,
  train_step: Callable[[TrainState, dict], tuple[TrainState, dict]],
  batches: Iterator[dict],
  *,
  start_step: int,
  num_steps: int,
  batch_size: int,
  sharding: jax.sharding.NamedSharding,
  write_metrics: Callable[[int, dict[str, float]], None],
  evaluate: Callable[[TrainState], dict[str, float]],
  save: Callable[[TrainState, dict[str, float] | None], None],
  stop: StopRequest,
  last_saved: Callable[[], str],
  describe_failed: Callable[[int], str],
  max_failed_clips: Callable[[int], float],
  log_every: int,
  eval_every: int,
  save_every: int,
  saves_evaluated: bool = False,
  evaluates_first: bool = False,
  is_shown: bool = True,
) -> TrainState:
  """Trains from `start_step` until `num_steps` updates are done.

  The order within a step is fixed: fetch a batch, start the step, write the metrics of the step
  before, and at their intervals evaluate, then save. Nothing waits for the device but the metrics,
  and those are read while the next step runs.

  Args:
    state: its buffers are given to `train_step` and must not be used again.
    train_step: jitted, from `training.step.make_train_step`, with the same `log_every`.
    batches: host batches for steps from `start_step` on.
    sharding: of the batches.
    write_metrics: keeps scalars of a step, by name.
    evaluate: metrics of a state, by name; may raise `Stopped`.
    save: keeps a state; called only with states whose loss was finite, with the metrics of their
      evaluation if there was one.
    stop: whether the run was asked to stop.
    last_saved: says which state is kept, for the message of an error.
    describe_failed: id of a record that could not be decoded.
    max_failed_clips: by the number of clips seen, how many may fail.
    saves_evaluated: every state that is evaluated is saved too.
    evaluates_first: an evaluation of the state at `start_step` was left and is made up for.
    is_shown: the progress, on a terminal.

  Returns:
    The last state: `num_steps` updates, or fewer if the run was asked to stop, in which case `save`
    was called with it.

  Raises:
    TrainingError: the loss or the gradient is not finite, or too many clips can't be decoded.
  """
  with Progress(start_step, num_steps, batch_size, is_shown=is_shown) as progress:

    def write(step: int, metrics: dict) -> None:
      metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
      if not (math.isfinite(metrics["loss"]) and math.isfinite(metrics["mean_grad_norm"])):
        raise TrainingError(
          f"the loss or its gradient is not finite at step {step} (loss {metrics['loss']}); "
          f"{last_saved()}. Lower the learning rate, clip gradients or check the data"
        )
      progress.advance(step, metrics["loss"], metrics["learning_rate"])
      failed, allowed = int(metrics["clips_failed"]), max_failed_clips(step * batch_size)
      if failed > allowed:
        raise TrainingError(
          f"{failed} clips could not be decoded by step {step}, more than the {allowed:.0f} "
          "allowed; mend the data set or raise --config.data.max_failed_share"
        )
      if step % log_every == 0:
        speed = progress.interval(step)
        left = speed.pop("seconds_left")
        del metrics["loss"]
        values = {f"train/{name.removeprefix('mean_')}": value for name, value in metrics.items()}
        write_metrics(step, values | {f"speed/{name}": value for name, value in speed.items()})
        logger.info(
          "step %d/%d  loss %.4f  top-1 %.1f %%  rate %.2e  %.1f clips/s  waiting for data %.0f %%"
          "  %s left",
          step,
          num_steps,
          metrics["mean_loss"],
          100 * metrics["mean_top1"],
          metrics["learning_rate"],
          speed["clips_per_second"],
          100 * speed["data_wait_share"],
          _clock(left),
        )

    def evaluated(step: int) -> dict[str, float] | None:
      try:
        metrics = evaluate(state)
      except Stopped:
        return None
      write_metrics(step, metrics)
      return metrics

    if evaluates_first and evaluated(start_step) is None:
      return state
    pending = None
    for step in range(start_step + 1, num_steps + 1):
      waiting_since = time.perf_counter()
      batch = _next(batches, step)
      progress.waited(time.perf_counter() - waiting_since)
      for record in batch["failed"][batch["failed"] >= 0]:
        own_logger.warning("clip of %s can't be decoded; replaced", describe_failed(int(record)))
      state, metrics = train_step(state, put_batch(batch, sharding))
      if pending is not None:
        write(*pending)
      pending = (step, metrics)
      if step == start_step + 1:
        jax.block_until_ready(metrics)
        progress.pause(step)

      evaluates = step % eval_every == 0 or step == num_steps
      saves = step % save_every == 0 or step == num_steps or (evaluates and saves_evaluated)
      if stop.poll() or evaluates or saves:
        write(*pending)
        pending = None
        # An evaluation that is left is made up for when the run goes on.
        scores = evaluated(step) if evaluates and not stop.reached else None
        if saves or stop.reached:
          save(state, scores)
        progress.pause(step)
      if stop.reached:
        break
  return state


def _next(batches: Iterator[dict], step: int) -> dict:
  try:
    return next(batches)
  except RuntimeError as error:
    # What the loader raises when a worker process was killed from outside.
    if "terminated unexpectedly" not in str(error):
      raise
    raise LostWorkerError(
      f"a data worker died before step {step}: {' '.join(str(error).split())}. It may have run out "
      "of memory, or of shared memory in /dev/shm; lower --config.loader.num_workers or "
      "--config.loader.prefetch_batches. The same command resumes"
    ) from error


def _clock(seconds: float) -> str:
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
