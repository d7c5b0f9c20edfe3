"""How the processes of a run are connected, and how they end together."""

import contextlib
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping

import jax
import numpy as np
from jax._src import distributed as jax_distributed

import vswin_jax
from vswin_jax.common.cli import UNEXPECTED, unexpected_errors
from vswin_jax.distributed.clusters import Cluster
from vswin_jax.distributed.roll_call import call_roll

# What a process that fails leaves for the others, and how often they look, in seconds.
_FAILURE = "vswin_jax/failure"
_WATCH_INTERVAL = 1.0
# Milliseconds for which those that have finished wait for the others.
_LONGEST_END = 3_600_000


def start(
  cluster: Cluster | None,
  *,
  start_timeout: float = 300.0,
  heartbeat_timeout: float = 60.0,
  metadata: Mapping[str, str] | None = None,
) -> None:
  """Connects this process with the others of its run; must come before any use of devices.

  Args:
    start_timeout: seconds within which all must have started.
    heartbeat_timeout: seconds after which a process that says nothing counts as dead; then the
      others abort.
    metadata: what must be the same in all processes, by name.

  Raises:
    StartupError: not all came in time, or they do not belong together.
  """
  if cluster is None:
    return
  # NumPy draws the order of the data.
  versions = {module.__name__: module.__version__ for module in (jax, np, vswin_jax)}
  call_roll(cluster, timeout=start_timeout, metadata=dict(metadata or {}) | versions)
  # For CPUs alone: there nothing else connects processes, and one program after the other keeps
  # what they send each other in one order.
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  jax.config.update("jax_cpu_enable_async_dispatch", False)
  jax.distributed.initialize(
    cluster.coordinator,
    cluster.num_processes,
    cluster.process_id,
    cluster.local_devices,
    # Everything is known: otherwise JAX would take one device of a SLURM node.
    cluster_detection_method="deactivate",
    initialization_timeout=int(start_timeout),
    heartbeat_timeout_seconds=int(heartbeat_timeout),
  )


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
  """Makes an error in one process of a run end all of them, with what it said.

  Left alone, the others would wait for it inside a collective operation until it counts as dead.
  The exit status after an error that nobody expected is `common.cli.UNEXPECTED`; after a
  `SystemExit` in any process, all end with its status.
  """
  client = jax_distributed.global_state.client
  if client is None:
    with unexpected_errors():
      yield
    return
  ended = threading.Event()
  watcher = threading.Thread(target=_watch, args=(client, ended), daemon=True)
  watcher.start()
  try:
    yield
    # Watched: those that still work may fail.
    client.wait_at_barrier("vswin_jax/end", _LONGEST_END)
  except BaseException as error:
    if isinstance(error, SystemExit) and not error.code:
      raise
    ended.set()
    _leave(_tell(client, error))
  ended.set()
  watcher.join()
  jax.distributed.shutdown()


def _tell(client, error: BaseException) -> int:
  """Tells the user and the other processes of an error; returns the exit status."""
  if isinstance(error, SystemExit):
    is_text = isinstance(error.code, str)
    reason, status = (error.code, 1) if is_text else (f"error: {error.__context__}", error.code)
    if is_text:
      print(reason, file=sys.stderr)
  else:
    traceback.print_exc()
    # When another process has ended, operations with it fail in ways that say nothing.
    told = _wait_for_word(client)
    if told is not None:
      return told
    reason, status = f"{type(error).__name__}: {error}", UNEXPECTED
  reason = f"process {jax_distributed.global_state.process_id}: {' '.join(reason.split())}"
  with contextlib.suppress(Exception):  # there is one already, or nobody to hear it
    client.key_value_set(_FAILURE, json.dumps([reason, status]))
  # Until the others have read it: what they would notice first is that this process is gone.
  time.sleep(2 * _WATCH_INTERVAL)
  return status


def _wait_for_word(client) -> int | None:
  """The exit status of the failure that another process told of; None: none did."""
  deadline = time.monotonic() + 3 * _WATCH_INTERVAL
  while time.monotonic() < deadline:
    status = _read_word(client)
    if status is not None:
      return status
    time.sleep(0.1)
  return None


def _read_word(client) -> int | None:
  """Says why another process has failed, if one has; returns the exit status."""
  try:
    reason, status = json.loads(client.key_value_try_get(_FAILURE))
  except Exception:  # nothing is there, or the run ends
    return None
  print(f"error: this run ends because of {reason}", file=sys.stderr)
  return status


def _watch(client, ended: threading.Event) -> None:
  """Ends this process when another one has failed."""
  while not ended.wait(_WATCH_INTERVAL):
    status = _read_word(client)
    if status is not None and not ended.is_set():
      _leave(status)


def _leave(status: int) -> None:
  """Ends this process at once: an orderly exit would wait for processes that wait for this one."""
  if jax_distributed.global_state.process_id == 0:
    # The words of a failure go through it, and all must have read them.
    time.sleep(2 * _WATCH_INTERVAL)
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)
