"""Trace of some steps of a training, for XProf and Perfetto."""

import contextlib
import pathlib
import re
import tempfile
from collections.abc import Callable, Iterator

import jax

from vswin_jax.common.logging import own_logger
from vswin_jax.common.messages import describe_error


def parse_steps(text: str, num_steps: int) -> tuple[int, int]:
  """Returns the steps of a flag `--profile=FIRST:LAST`.

  Args:
    num_steps: of the training; the first step is 1.

  Raises:
    ValueError: not two steps of the training, the second at least the first.
  """
  found = re.fullmatch(r"([0-9]+):([0-9]+)", text)
  if not found:
    raise ValueError(f"--profile={text} must be FIRST:LAST, two steps such as 10:12")
  first, last = map(int, found.groups())
  if not 1 <= first <= last <= num_steps:
    raise ValueError(
      f"--profile={text} must be FIRST:LAST, FIRST at least 1, LAST at least FIRST and at most "
      f"{num_steps}, the last step of this training"
    )
  return first, last


class Profile:
  """Trace of the steps of a training from FIRST to LAST; use as a context.

  A training that starts between these steps is traced from its start, one that ends between them,
  also by an error, until its end. If the trace fails, that is logged and the training goes on.
  """

  def __init__(
    self,
    steps: tuple[int, int] | None = None,
    store: Callable[[pathlib.Path], None] = lambda folder: None,
  ):
    """Plans a trace.

    Args:
      steps: FIRST and LAST; None: no trace.
      store: receives a folder with the files of the trace, which it copies.
    """
    self._first, self._last = steps or (0, 0)
    self._store = store
    self._is_running = False

  def __enter__(self):
    return self

  def __exit__(self, *error):
    if self._is_running:
      self.stop()

  def starts(self, step: int) -> bool:
    """Returns whether the trace starts before a step."""
    return not self._is_running and self._first <= step <= self._last

  def ends(self, step: int) -> bool:
    """Returns whether the trace ends after a step."""
    return self._is_running and step >= self._last

  def start(self) -> None:
    """Starts the trace; the steps before must have been computed."""
    with self._errors_logged(), contextlib.ExitStack() as stack:
      options = jax.profiler.ProfileOptions()
      options.session_id = f"steps_{self._first}_{self._last}"
      # Calls of Python functions would be most of the events.
      options.python_tracer_level = 0
      folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="vswin_jax_profile_"))
      jax.profiler.start_trace(folder, create_perfetto_trace=True, profiler_options=options)
      self._folder, self._cleanup = pathlib.Path(folder), stack.pop_all()
      self._is_running = True

  def stop(self) -> None:
    """Ends the trace and stores its files; the traced steps must have been computed."""
    self._is_running, self._last = False, 0
    with self._errors_logged(), self._cleanup:
      jax.profiler.stop_trace()
      self._store(self._folder)

  @contextlib.contextmanager
  def _errors_logged(self) -> Iterator[None]:
    try:
      yield
    except Exception as error:
      self._last = 0
      own_logger.warning("can't write the profile: %s", describe_error(error))
