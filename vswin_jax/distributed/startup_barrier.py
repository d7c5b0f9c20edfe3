"""Startup barrier: waits for all processes and reports those that are missing or do not match.

Runs before `jax.distributed.initialize`, which aborts the process without naming the cause.
Process 0 listens at the coordinator address and sends one result to all others.
"""

import contextlib
import json
import socket
import time

from vswin_jax.common.cli import is_transient
from vswin_jax.common.logging import logger
from vswin_jax.distributed.clusters import Cluster
from vswin_jax.distributed.errors import StartupError, TransientStartupError

_LOG_INTERVAL = 15.0
# Seconds for one message between two processes.
_MESSAGE_TIMEOUT = 5.0
# Entries of the messages to process 0 and from it.
_REPORT = {"process": int, "processes": int, "host": str, "metadata": dict}
_RESULT = {"error": str, "is_transient": bool}


def wait_for_all_processes(cluster: Cluster, *, timeout: float, metadata: dict[str, str]) -> None:
  """Waits until all processes of a cluster have started.

  Args:
    timeout: seconds.
    metadata: values that must be equal in all processes, by name.

  Raises:
    TransientStartupError: processes are missing after `timeout`; the message lists them.
    StartupError: two processes have the same id, or differ in the number of processes or in
      `metadata`. All processes that have started raise the same error.
  """
  report = {
    "process": cluster.process_id,
    "processes": cluster.num_processes,
    "host": socket.gethostname(),
    "metadata": metadata,
  }
  if cluster.process_id == 0:
    _lead(cluster, report, timeout)
  else:
    _follow(cluster, report, timeout)


def _lead(cluster: Cluster, report: dict, timeout: float) -> None:
  """Collects the reports in process 0 and sends the result to all processes."""
  reports: dict[socket.socket, dict] = {}
  # Sent if this process is interrupted.
  result = {"error": "process 0 ended before all processes had started", "is_transient": True}
  try:
    _collect(cluster, report, timeout, reports)
    result = {"error": "", "is_transient": False}
  except StartupError as error:
    result = {"error": str(error), "is_transient": isinstance(error, TransientStartupError)}
    raise
  finally:
    for connection in reports:
      with connection, contextlib.suppress(OSError):
        _send(connection, result)


def _collect(
  cluster: Cluster, own: dict, timeout: float, reports: dict[socket.socket, dict]
) -> None:
  """Fills `reports` with those of the other processes, by connection."""
  deadline = time.monotonic() + timeout
  log_time = time.monotonic() + _LOG_INTERVAL
  with _listen(cluster) as server:
    while True:
      _drop_disconnected(reports)
      present = {0, *(report["process"] for report in reports.values())}
      missing = [number for number in range(cluster.num_processes) if number not in present]
      if not missing:
        return
      names = f"process {', '.join(map(str, missing))}"
      if time.monotonic() > deadline:
        raise TransientStartupError(
          f"{len(present)} of {cluster.num_processes} processes started within {timeout:g} s; "
          f"missing: {names}. Start the same command on every host, or raise --start_timeout"
        )
      if time.monotonic() > log_time:
        log_time = time.monotonic() + _LOG_INTERVAL
        counts = f"{len(present)} of {cluster.num_processes}"
        logger.info("%s processes have started; waiting for %s", counts, names)
      server.settimeout(min(1.0, max(deadline - time.monotonic(), 0.01)))
      try:
        connection, _ = server.accept()
      except TimeoutError:
        continue
      report = _receive(connection, _REPORT, _MESSAGE_TIMEOUT)
      if report is None:  # another program
        connection.close()
        continue
      # A restarted process takes the place of its predecessor.
      _drop_disconnected(reports)
      earlier = [own, *reports.values()]
      reports[connection] = report
      _check_report(report, earlier)


def _drop_disconnected(reports: dict[socket.socket, dict]) -> None:
  for connection in list(reports):
    connection.setblocking(False)
    try:
      if connection.recv(1, socket.MSG_PEEK):
        continue
    except BlockingIOError:  # it waits for the result
      continue
    except OSError:
      pass
    del reports[connection]
    connection.close()


def _check_report(report: dict, earlier: list[dict]) -> None:
  """Checks that the report of a process fits `earlier` ones, of which process 0's is the first."""
  expected, actual = (
    {"--num_processes": one["processes"], **one["metadata"]} for one in (earlier[0], report)
  )
  for name in expected | actual:
    if actual.get(name) != expected.get(name):
      raise StartupError(
        f"{name} is {expected.get(name)} in process 0 on {earlier[0]['host']}, but "
        f"{actual.get(name)} in process {report['process']} on {report['host']}; it must be the "
        "same in all processes"
      )
  for other in earlier:
    if report["process"] == other["process"]:
      raise StartupError(
        f"two processes have the id {report['process']}, on {other['host']} and on "
        f"{report['host']}; give each its own --process_id, and end processes of earlier runs"
      )


def _follow(cluster: Cluster, report: dict, timeout: float) -> None:
  """Sends the report of this process to process 0 and waits for the result."""
  reason = ""
  deadline = time.monotonic() + timeout
  while time.monotonic() < deadline:
    result = None
    try:
      with socket.create_connection(cluster.address, timeout=_MESSAGE_TIMEOUT) as connection:
        _send(connection, report)
        # Process 0 may have started later than this one.
        result = _receive(connection, _RESULT, timeout + 10.0)
    except OSError as error:
      reason = f" ({error})"
    if result is not None:
      if result["error"]:
        raise (TransientStartupError if result["is_transient"] else StartupError)(result["error"])
      return
    time.sleep(0.2)
  raise TransientStartupError(
    f"process 0 does not answer at {cluster.coordinator} within {timeout:g} s{reason}; start the "
    "same command on its host, check the address, or raise --start_timeout"
  )


def _listen(cluster: Cluster) -> socket.socket:
  port = cluster.address[1]
  try:
    if socket.has_dualstack_ipv6():
      return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))
  except OSError as error:
    kind = TransientStartupError if is_transient(error) else StartupError
    raise kind(
      f"can't listen at port {port}, the coordinator's: {error}; end the program that uses it, or "
      "give another --coordinator (SLURM: JAX_COORDINATOR_PORT)"
    ) from error


def _send(connection: socket.socket, message: dict) -> None:
  connection.settimeout(_MESSAGE_TIMEOUT)
  connection.sendall(json.dumps(message).encode() + b"\n")


def _receive(connection: socket.socket, types: dict[str, type], timeout: float) -> dict | None:
  """Returns a line of JSON with entries of the given types, or None if none was received."""
  connection.settimeout(timeout)
  try:
    with connection.makefile("rb") as file:
      message = json.loads(file.readline(2**16))
    if {name: type(value) for name, value in message.items()} == types:
      return message
  except (OSError, ValueError, AttributeError):
    pass
  return None
