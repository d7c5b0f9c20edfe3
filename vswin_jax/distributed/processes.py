"""Connecting the processes of a run, and ending all of them when one fails."""

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
from vswin_jax.common.messages import one_line
from vswin_jax.distributed.clusters import Cluster
from vswin_jax.distributed.startup_barrier import wait_for_all_processes

# Key of the failure that ends a run, and the seconds between two looks at it.
_FAILURE = "vswin_jax/failure"
_WATCH_INTERVAL = 1.0
# Milliseconds for which processes that have finished wait for the others.
_END_TIMEOUT = 3_600_000


def start(
  cluster: Cluster | None,
  *,
  start_timeout: float = 300.0,
  heartbeat_timeout: float = 60.0,
  metadata: Mapping[str, str] | None = None,
) -> None:
  """Connects this process with the others of its run; must be called before any use of devices.

  Args:
    cluster: None: this process runs alone.
    start_timeout: seconds within which all processes must have started.
    heartbeat_timeout: seconds of silence after which a process counts as dead and the others abort.
    metadata: values that must be the same in all processes, by name.

  Raises:
    StartupError: processes are missing, or do not belong to one run.
  """
  if cluster is None:
    return
  # NumPy's version determines the order of the data.
  versions = {module.__name__: module.__version__ for module in (jax, np, vswin_jax)}
  wait_for_all_processes(cluster, timeout=start_timeout, metadata=dict(metadata or {}) | versions)
  # On CPUs, JAX connects processes by gloo alone, which needs one program after the other.
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  jax.config.update("jax_cpu_enable_async_dispatch", False)
  jax.distributed.initialize(
    cluster.coordinator,
    cluster.num_processes,
    cluster.process_id,
    cluster.local_devices,
    # Otherwise JAX would give each SLURM task a single device.
    cluster_detection_method="deactivate",
    initialization_timeout=int(start_timeout),
    heartbeat_timeout_seconds=int(heartbeat_timeout),
  )


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
  """Ends all processes of a run when one fails, with its message and exit status.

  Otherwise they would wait in a collective operation until the heartbeat timeout. The status is
  that of a `SystemExit`, and `common.cli.UNEXPECTED` for any other exception.
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
    # The watcher goes on: processes that still work may fail.
    client.wait_at_barrier("vswin_jax/end", _END_TIMEOUT)
  except BaseException as error:
    if isinstance(error, SystemExit) and not error.code:
      raise
    ended.set()
    _exit(_report(client, error))
  ended.set()
  watcher.join()
  jax.distributed.shutdown()


def _report(client, error: BaseException) -> int:
  """Reports an error to the user and to the other processes; returns the exit status."""
  if isinstance(error, SystemExit):
    is_text = isinstance(error.code, str)
    reason, status = (error.code, 1) if is_text else (f"error: {error.__context__}", error.code)
    if is_text:
      print(reason, file=sys.stderr)
  else:
    traceback.print_exc()
    # An operation with a process that has failed raises an error that does not name the cause.
    status = _failure_of_another(
      lambda: client.blocking_key_value_get(_FAILURE, int(3000 * _WATCH_INTERVAL))
    )
    if status is not None:
      return status
    reason, status = f"{type(error).__name__}: {error}", UNEXPECTED
  reason = f"process {jax_distributed.global_state.process_id}: {one_line(reason)}"
  with contextlib.suppress(Exception):  # another failure was first, or the coordinator is gone
    client.key_value_set(_FAILURE, json.dumps([reason, status]))
  # Lets the others read the failure before they notice that this process is gone.
  time.sleep(2 * _WATCH_INTERVAL)
  return status


def _failure_of_another(read) -> int | None:
  """Prints the failure of another process and returns its exit status; None if there is none."""
  try:
    reason, status = json.loads(read())
  except Exception:  # the key is not set, or the coordinator is gone
    return None
  print(f"error: this run ends because of {reason}", file=sys.stderr)
  return status


def _watch(client, ended: threading.Event) -> None:
  """Ends this process when another one has failed."""
  while not ended.wait(_WATCH_INTERVAL):
    status = _failure_of_another(lambda: client.key_value_try_get(_FAILURE))
    if status is not None and not ended.is_set():
      _exit(status)


def _exit(status: int) -> None:
  """Ends this process at once; an orderly exit would wait for the other processes."""
  if jax_distributed.global_state.process_id == 0:
    # Process 0 is the coordinator: the others must have read the failure.
    time.sleep(2 * _WATCH_INTERVAL)
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)
