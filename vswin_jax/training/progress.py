"""Progress and speed of a training: an updating line in a terminal, figures for the log."""

import sys
import time
from collections.abc import Sequence

import jax
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from vswin_jax.common.chips import GIB
from vswin_jax.common.logging import logger
from vswin_jax.training.compilation import Compilation
from vswin_jax.training.devices import describe_memory, peak_flops, peak_memory

_TERA = 1e12


class Progress:
  """Progress bar of a training, which also measures its speed; use as a context.

  Log messages appear above the bar. Only the first process shows a bar, and only in a terminal.
  """

  def __init__(
    self,
    start_step: int,
    num_steps: int,
    batch_size: int,
    step_flops: float | None = None,
    devices: Sequence[jax.Device] = (),
  ):
    """Starts the measurement.

    Args:
      batch_size: clips of a step over all devices.
      step_flops: model FLOPs of a step over all devices; None: unknown.
      devices: all devices of the training.
    """
    self._num_steps = num_steps
    self._batch_size = batch_size
    self._step_flops = step_flops
    self._devices = devices
    self._peak_flops = peak_flops(devices)
    self._compilation_metrics = {}
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

  def compiled(self, compilation: Compilation) -> None:
    """Logs the compilation of the training step, and what is known of its cost."""
    self._compilation_metrics = {"speed/compile_seconds": compilation.seconds}
    logger.info(
      "%s: %s TFLOP a step, peak of the devices %s TFLOP/s, memory %s",
      compilation.describe("the training step"),
      _in_tera(self._step_flops),
      _in_tera(self._peak_flops),
      describe_memory(peak_memory(self._devices)),
    )

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

    The text is empty if no step was measured since.
    """
    metrics, self._compilation_metrics = self._compilation_metrics, {}
    steps = step - self._step
    if steps < 1:
      return metrics, ""
    seconds = time.perf_counter() - self._time
    speed, waiting = steps * self._batch_size / seconds, self._waited / seconds
    left = tqdm.format_interval((self._num_steps - step) * seconds / steps)
    self.pause(step)
    metrics |= {"speed/clips_per_second": speed, "speed/data_wait_share": waiting}
    flops, mfu = self._step_flops and self._step_flops * steps / seconds, None
    if flops:
      metrics["speed/model_tflops"] = flops / _TERA
      if self._peak_flops:
        metrics["speed/mfu"] = mfu = flops / self._peak_flops
    memory = peak_memory(self._devices)
    if memory:
      metrics["speed/peak_memory_gib"] = memory[0] / GIB
    # Large models on a CPU take less than one clip a second.
    clips = f"{speed:.{1 if speed >= 1 else 3}f} clips/s"
    used = "-" if mfu is None else f"{mfu:.1%}"
    return metrics, (
      f"  {clips}  {_in_tera(flops)} TFLOP/s  MFU {used}  memory {describe_memory(memory)}  "
      f"waiting for data {100 * waiting:.0f} %  {left} left"
    )


def _in_tera(number: float | None) -> str:
  """Returns a number in units of 10**12 with three significant digits; "-" for None."""
  return "-" if number is None else f"{number / _TERA:.3g}"
