"""Progress and speed of a training: an updating line in a terminal, figures for the log."""

import sys
import time

import jax
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from vswin_jax.common.logging import logger


class Progress:
  """Progress bar of a training, which also measures its speed; use as a context.

  Log messages appear above the bar. Only the first process shows a bar, and only in a terminal.
  """

  def __init__(self, start_step: int, num_steps: int, batch_size: int):
    self._num_steps = num_steps
    self._batch_size = batch_size
    self._bar = tqdm(
      total=num_steps,
      initial=start_step,
      unit="step",
      desc="training",
      dynamic_ncols=True,
      disable=jax.process_index() > 0 or not sys.stderr.isatty(),
      bar_format="{desc}: {n_fmt}/{total_fmt} |{bar}|{postfix} [{elapsed}, {remaining} left]",
    )
    self._redirect = logging_redirect_tqdm([logger])
    self.pause(start_step)

  def __enter__(self):
    self._redirect.__enter__()
    return self

  def __exit__(self, *error):
    self._redirect.__exit__(*error)
    self._bar.close()

  def pause(self, step: int) -> None:
    """Restarts the measurement, so that it does not include evaluation or compilation."""
    self._step, self._time, self._waited = step, time.perf_counter(), 0.0

  def waited(self, seconds: float) -> None:
    """Adds time that the loop waited for a batch."""
    self._waited += seconds

  def advance(self, step: int, loss: float, learning_rate: float) -> None:
    """Shows that `step` updates are done."""
    self._bar.update(step - self._bar.n)
    text = f"loss {loss:.3f}, learning rate {learning_rate:.1e}"
    if step > self._step:
      seconds = time.perf_counter() - self._time
      text += f", {(step - self._step) * self._batch_size / seconds:.0f} clips/s"
    self._bar.set_postfix_str(text, refresh=False)

  def measure(self, step: int) -> tuple[dict[str, float], str]:
    """Returns the speed since the last call or pause, as metrics and as text for the log.

    Both are empty if no step was measured since.
    """
    steps = step - self._step
    if steps < 1:
      return {}, ""
    seconds = time.perf_counter() - self._time
    speed, waiting = steps * self._batch_size / seconds, self._waited / seconds
    left = tqdm.format_interval((self._num_steps - step) * seconds / steps)
    self.pause(step)
    metrics = {"speed/clips_per_second": speed, "speed/data_wait_share": waiting}
    return metrics, f"  {speed:.1f} clips/s  waiting for data {100 * waiting:.0f} %  {left} left"
