"""The training loop: fetch, step, write, then at their intervals evaluate and save."""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator

import jax

from vswin_jax.training.metrics import MetricsWriter
from vswin_jax.training.progress import Progress, logger
from vswin_jax.training.sharding import put_batch
from vswin_jax.training.step import TrainState


class TrainingError(RuntimeError):
  """Training that can't go on; the message says at which step, and what to do."""


def train(
  state: TrainState,
  train_step: Callable[[TrainState, dict], tuple[TrainState, dict]],
  batches: Iterator[dict],
  *,
  start_step: int,
  num_steps: int,
  batch_size: int,
  sharding: jax.sharding.NamedSharding,
  writer: MetricsWriter,
  evaluate: Callable[[TrainState], dict[str, float]],
  save: Callable[[TrainState], None],
  last_saved: Callable[[], str],
  describe_failed: Callable[[int], str],
  max_failed_clips: Callable[[int], float],
  log_every: int,
  eval_every: int,
  save_every: int,
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
    evaluate: metrics of a state, by name.
    save: keeps a state; called only with states whose loss was finite.
    last_saved: says which state is kept, for the message of an error.
    describe_failed: id of a record that could not be decoded.
    max_failed_clips: by the number of clips seen, how many may fail.

  Returns:
    The last state: `num_steps` updates, or fewer if the process was asked to stop (SIGTERM), in
    which case it has been saved.

  Raises:
    TrainingError: the loss or the gradient is not finite, or too many clips can't be decoded.
  """
  with Progress(start_step, num_steps, batch_size) as progress, _StopRequest() as stop:

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
        writer.write(step, values | {f"speed/{name}": value for name, value in speed.items()})
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

    pending = None
    for step in range(start_step + 1, num_steps + 1):
      waiting_since = time.perf_counter()
      batch = _next(batches, step)
      progress.waited(time.perf_counter() - waiting_since)
      for record in batch["failed"][batch["failed"] >= 0]:
        logger.warning("clip of %s can't be decoded; replaced", describe_failed(int(record)))
      state, metrics = train_step(state, put_batch(batch, sharding))
      if pending is not None:
        write(*pending)
      pending = (step, metrics)
      if step == start_step + 1:
        jax.block_until_ready(metrics)
        progress.pause(step)

      stopping = stop.requested
      evaluates = step % eval_every == 0 or step == num_steps
      saves = step % save_every == 0 or step == num_steps or stopping
      if evaluates or saves:
        write(*pending)
        pending = None
        if evaluates:
          writer.write(step, evaluate(state))
        if saves:
          save(state)
        progress.pause(step)
      if stopping:
        logger.info("asked to stop: saved step %d, the same command resumes", step)
        break
  return state


def _next(batches: Iterator[dict], step: int) -> dict:
  try:
    return next(batches)
  except RuntimeError as error:
    # What the loader raises when a worker process was killed from outside.
    if "terminated unexpectedly" not in str(error):
      raise
    raise TrainingError(
      f"a data worker died before step {step}: {' '.join(str(error).split())}. It may have run out "
      "of memory, or of shared memory in /dev/shm; lower --config.loader.num_workers or "
      "--config.loader.prefetch_batches. The same command resumes"
    ) from error


class _StopRequest:
  """Notes SIGTERM instead of dying of it, where the main thread runs the loop."""

  def __init__(self):
    self.requested = False

  def __enter__(self):
    if threading.current_thread() is threading.main_thread():
      self._previous = signal.signal(signal.SIGTERM, self._note)
    return self

  def _note(self, *_):
    self.requested = True

  def __exit__(self, *_):
    if threading.current_thread() is threading.main_thread():
      signal.signal(signal.SIGTERM, self._previous)


def _clock(seconds: float) -> str:
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
