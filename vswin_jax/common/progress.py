"""Logging, and the progress of a run: an updating line in a terminal, plain lines in a log."""

import logging
import sys
import time

import absl.logging
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

# For messages that all processes of a run have; the first one shows them.
logger = logging.getLogger("vswin_jax")
# For messages of a single process.
own_logger = logger.getChild("process")


def set_up_logging(path=None, *, process: int = 0) -> None:
  """Sends log messages to standard error, and to a file if one is given.

  Args:
    path: of a file to append to.
    process: index of this process in its run.
  """
  absl.logging.set_verbosity(absl.logging.WARNING)
  logger.setLevel(logging.INFO if process == 0 else logging.ERROR)
  own_logger.setLevel(logging.WARNING)
  logger.propagate = False
  for handler in list(logger.handlers):
    logger.removeHandler(handler)
    handler.close()
  console = logging.StreamHandler(sys.stderr)
  console.setFormatter(logging.Formatter(f"[process {process}] %(message)s" if process else None))
  logger.addHandler(console)
  if path is not None:
    file = logging.FileHandler(path)
    file.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S"))
    logger.addHandler(file)


class Progress:
  """Progress bar of training, which measures clips per second and the time spent on waiting.

  Use as a context. In a terminal, log messages appear above the bar; elsewhere there is no bar.
  """

  def __init__(self, start_step: int, num_steps: int, batch_size: int, *, is_shown: bool = True):
    self._batch_size = batch_size
    self._bar = tqdm(
      total=num_steps,
      initial=start_step,
      unit="step",
      desc="training",
      dynamic_ncols=True,
      disable=not (is_shown and sys.stderr.isatty()),
      bar_format="{desc}: {n_fmt}/{total_fmt} |{bar}|{postfix} [{elapsed}, {remaining} left]",
    )
    self._num_steps = num_steps
    self._redirect = logging_redirect_tqdm([logger])
    self._restart(start_step)

  def __enter__(self):
    self._redirect.__enter__()
    return self

  def __exit__(self, *error):
    self._redirect.__exit__(*error)
    self._bar.close()

  def _restart(self, step: int) -> None:
    self._step, self._time, self._waited = step, time.perf_counter(), 0.0

  def waited(self, seconds: float) -> None:
    """Adds seconds that the loop spent on waiting for a batch."""
    self._waited += seconds

  def advance(self, step: int, loss: float, learning_rate: float) -> None:
    """Shows the step and its loss in the bar."""
    self._bar.update(step - self._bar.n)
    speed = (step - self._step) * self._batch_size / (time.perf_counter() - self._time)
    self._bar.set_postfix_str(
      f"loss {loss:.3f}, learning rate {learning_rate:.1e}, {speed:.0f} clips/s", refresh=False
    )

  def _measure(self, step: int) -> dict[str, float]:
    seconds, steps = time.perf_counter() - self._time, step - self._step
    return {
      "clips_per_second": steps * self._batch_size / seconds,
      "data_wait_share": self._waited / seconds,
      "seconds_left": (self._num_steps - step) * seconds / steps,
    }

  def interval(self, step: int) -> dict[str, float]:
    """Returns the clips per second, the share of time spent on waiting for data, and the seconds
    left at this speed: since the last call or `pause`, or, if that was at this step, before it."""
    speed = self._measure(step) if step > self._step else self._paused
    self._restart(step)
    return speed

  def pause(self, step: int) -> None:
    """Restarts the measurement, so that evaluation and compilation do not count as training."""
    if step > self._step:
      self._paused = self._measure(step)
    self._restart(step)
