"""Requests to stop: SIGTERM to any process of a run stops all of them after the same step."""

import signal
import threading

import jax
from jax.experimental import multihost_utils


class Stopped(Exception):
  """Raised when work is abandoned because the run was asked to stop."""


class StopRequest:
  """Request to stop, by SIGTERM; use as a context.

  In a run of several processes, all get the same answer at the same poll, so that they stop after
  the same step. All must poll equally often.

  Attributes:
    reached: result of the last poll.
  """

  def __init__(self):
    self.reached = False
    self._polls = 0
    self._signalled = False
    self._previous = None

  def __enter__(self):
    # With several processes the distributed runtime takes the signal.
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and not jax.distributed.is_initialized():
      self._previous = signal.signal(signal.SIGTERM, self._note)
    return self

  def _note(self, *_):
    self._signalled = True

  def __exit__(self, *_):
    if self._previous is not None:
      signal.signal(signal.SIGTERM, self._previous)

  def poll(self) -> bool:
    """Returns whether to stop; once true, it stays true."""
    if not self.reached:
      self._polls += 1
      if jax.distributed.is_initialized():
        self.reached = multihost_utils.reached_preemption_sync_point(self._polls)
      else:
        self.reached = self._signalled
    return self.reached

  def check(self) -> None:
    """Polls, and raises `Stopped` if it is time to stop."""
    if self.poll():
      raise Stopped
