"""Startup barrier: waits for all processes and reports those that are missing or do not match.

Runs before `jax.distributed.initialize`, which aborts the process without naming the cause.
Process 0 listens at the coordinator address and sends one result to all others.
"""

import asyncio
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
# How the connection of a process ends; a cancellation would be logged with a traceback.
_ENDED = (OSError, ValueError, asyncio.CancelledError)
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
    asyncio.run(_lead(cluster, report, timeout))
  else:
    _follow(cluster, report, timeout)


async def _lead(cluster: Cluster, own: dict, timeout: float) -> None:
  """Collects the reports in process 0 and sends the result to all processes."""
  reports: dict[asyncio.StreamWriter, dict] = {}

  async def keep_report(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Keeps the report of a process for as long as the process is connected."""
    with contextlib.closing(writer), contextlib.suppress(*_ENDED):
      report = _parse(await asyncio.wait_for(reader.readline(), _MESSAGE_TIMEOUT), _REPORT)
      if report is not None:  # otherwise it is of another program
        reports[writer] = report
        try:
          await reader.read()
        finally:
          del reports[writer]

  # Sent if this process is interrupted.
  result = {"error": "process 0 ended before all processes had started", "is_transient": True}
  server = await asyncio.start_server(keep_report, sock=_listen(cluster))
  try:
    await _wait_for_reports(own, timeout, reports)
    result = {"error": "", "is_transient": False}
  except StartupError as error:
    result = {"error": str(error), "is_transient": isinstance(error, TransientStartupError)}
    raise
  finally:
    server.close()
    for writer in list(reports):
      with contextlib.suppress(OSError):
        writer.write(_encode(result))
        await asyncio.wait_for(writer.drain(), _MESSAGE_TIMEOUT)


async def _wait_for_reports(
  own: dict, timeout: float, reports: dict[asyncio.StreamWriter, dict]
) -> None:
  """Waits in process 0 until the reports of all other processes are in `reports`."""
  deadline = time.monotonic() + timeout
  log_time = time.monotonic() + _LOG_INTERVAL
  while True:
    present = _check_reports([own, *reports.values()])
    missing = [number for number in range(own["processes"]) if number not in present]
    if not missing:
      return
    counts = f"{len(present)} of {own['processes']} processes"
    names = f"process {', '.join(map(str, missing))}"
    if time.monotonic() > deadline:
      raise TransientStartupError(
        f"{counts} started within {timeout:g} s; missing: {names}. Start the same command on every "
        "host, or raise --start_timeout"
      )
    if time.monotonic() > log_time:
      log_time = time.monotonic() + _LOG_INTERVAL
      logger.info("%s have started; waiting for %s", counts, names)
    await asyncio.sleep(0.1)


def _check_reports(reports: list[dict]) -> set[int]:
  """Returns the processes of reports that fit together; the first is that of process 0."""
  hosts: dict[int, str] = {}
  for report in reports:
    number, host = report["process"], report["host"]
    expected, actual = (
      {"--num_processes": one["processes"], **one["metadata"]} for one in (reports[0], report)
    )
    for name in expected | actual:
      if actual.get(name) != expected.get(name):
        raise StartupError(
          f"{name} is {expected.get(name)} in process 0 on {reports[0]['host']}, but "
          f"{actual.get(name)} in process {number} on {host}; it must be the same in all processes"
        )
    if number in hosts:
      raise StartupError(
        f"two processes have the id {number}, on {hosts[number]} and on {host}; give each its own "
        "--process_id, and end processes of earlier runs"
      )
    hosts[number] = host
  return set(hosts)


def _follow(cluster: Cluster, report: dict, timeout: float) -> None:
  """Sends the report of this process to process 0 and waits for the result."""
  reason = ""
  deadline = time.monotonic() + timeout
  while time.monotonic() < deadline:
    result = None
    try:
      with socket.create_connection(cluster.address, timeout=_MESSAGE_TIMEOUT) as connection:
        connection.sendall(_encode(report))
        # Process 0 may have started later than this one.
        connection.settimeout(timeout + 10.0)
        with connection.makefile("rb") as file:
          result = _parse(file.readline(2**16), _RESULT)
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


def _encode(message: dict) -> bytes:
  return json.dumps(message).encode() + b"\n"


def _parse(line: bytes, types: dict[str, type]) -> dict | None:
  """Returns the message in a line of JSON; None if its entries are not of the given types."""
  try:
    message = json.loads(line)
    is_message = {name: type(value) for name, value in message.items()} == types
  except (ValueError, AttributeError):
    return None
  return message if is_message else None
