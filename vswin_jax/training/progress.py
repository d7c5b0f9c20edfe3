"""Progress and speed of a training: an updating line in a terminal, figures for the log."""

import dataclasses
import sys
import time

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from vswin_jax.common.logging import logger


@dataclasses.dataclass(frozen=True)
class Speed:
  """Speed of a training since the last logged step.

  Attributes:
    clips_per_second: of all devices together.
    data_wait_share: share of the time spent waiting for batches.
    seconds_left: until the end of the training at this speed.
  """

  clips_per_second: float
  data_wait_share: float
  seconds_left: float

  def __str__(self) -> str:
    minutes, seconds = divmod(round(self.seconds_left), 60)
    hours, minutes = divmod(minutes, 60)
    left = f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
    return (
      f"{self.clips_per_second:.1f} clips/s  waiting for data {100 * self.data_wait_share:.0f} %  "
      f"{left} left"
    )


class Progress:
  """Progress bar of a training, which also measures its speed; use as a context.

  Log messages appear above the bar. Outside a terminal there is no bar.
  """

  def __init__(self, start_step: int, num_steps: int, batch_size: int, *, is_shown: bool = True):
    self._num_steps = num_steps
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

  def interval(self, step: int) -> Speed | None:
    """Returns the speed since the last call or pause; None if no step was measured since."""
    steps = step - self._step
    if steps < 1:
      return None
    seconds = time.perf_counter() - self._time
    speed = Speed(
      clips_per_second=steps * self._batch_size / seconds,
      data_wait_share=self._waited / seconds,
      seconds_left=(self._num_steps - step) * seconds / steps,
    )
    self.pause(step)
    return speed
