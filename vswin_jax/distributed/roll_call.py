"""The roll call before the processes of a run are connected.

Process 0 calls it at the coordinator's address, before JAX listens there: whoever is missing, twice
there or of other settings is named, where JAX itself would wait, or abort without a word about it.
"""

import dataclasses
import json
import socket
import time

from vswin_jax.common.cli import is_transient
from vswin_jax.common.progress import logger
from vswin_jax.distributed.clusters import Cluster
from vswin_jax.distributed.errors import StartupError, TransientStartupError

# Seconds between two words about who is still missing.
_PATIENCE = 15.0


@dataclasses.dataclass(frozen=True)
class _Verdict:
  """What came of a roll call.

  Attributes:
    error: why the run can't start; empty: all are there.
    is_transient: whether the same command may succeed.
  """

  error: str = ""
  is_transient: bool = False


@dataclasses.dataclass(frozen=True)
class _Process:
  """Another process, as process 0 sees it: what it reported, and over which connection."""

  report: dict
  connection: socket.socket

  @property
  def number(self) -> int:
    return self.report["process"]

  def is_there(self) -> bool:
    """Whether it still waits for the verdict."""
    self.connection.setblocking(False)
    try:
      return self.connection.recv(1, socket.MSG_PEEK) != b""
    except BlockingIOError:  # silence
      return True
    except OSError:
      return False


def call_roll(cluster: Cluster, *, timeout: float, metadata: dict[str, str]) -> None:
  """Waits until every process is there.

  Raises:
    StartupError: in every process that is there, naming those that are not
      (`TransientStartupError`), those of other `metadata`, or numbers that two processes have.
  """
  own = {
    "process": cluster.process_id,
    "processes": cluster.num_processes,
    "host": socket.gethostname(),
    "metadata": metadata,
  }
  deadline = time.monotonic() + timeout
  call = _lead if cluster.process_id == 0 else _follow
  verdict = call(cluster, own, deadline, timeout)
  if verdict.error:
    raise (TransientStartupError if verdict.is_transient else StartupError)(verdict.error)


def _lead(cluster: Cluster, own: dict, deadline: float, timeout: float) -> _Verdict:
  """Process 0: collects the others and tells them what came of it."""
  others: list[_Process] = []
  # What the others are told if this process ends here.
  verdict = _Verdict("process 0 ended while the roll was called", is_transient=True)
  try:
    verdict = _collect(cluster, own, deadline, timeout, others)
  finally:
    for other in others:
      with other.connection:
        _send(other.connection, dataclasses.asdict(verdict))
  return verdict


def _collect(
  cluster: Cluster, own: dict, deadline: float, timeout: float, others: list[_Process]
) -> _Verdict:
  """Waits for the others, and keeps those that are there in a list."""
  said = time.monotonic()
  with _listen(cluster) as server:
    while True:
      _drop_those_that_left(others)
      present = {0, *(other.number for other in others)}
      missing = [number for number in range(cluster.num_processes) if number not in present]
      if not missing:
        return _Verdict()
      names = ", ".join(map(cluster.name, missing))
      if time.monotonic() > deadline:
        return _Verdict(
          f"{len(present)} of {cluster.num_processes} processes started within {timeout:g} s; "
          f"missing: {names}. Start the same command on every host, or raise --start_timeout",
          is_transient=True,
        )
      if time.monotonic() > said + _PATIENCE:
        said = time.monotonic()
        logger.info(
          "%d of %d processes are here; waiting for %s",
          len(present),
          cluster.num_processes,
          names,
        )
      server.settimeout(min(1.0, max(deadline - time.monotonic(), 0.01)))
      try:
        connection, _ = server.accept()
      except TimeoutError:
        continue
      report = _receive(connection, 5.0)
      if report is None or not _is_of_a_process(report):  # some other program
        connection.close()
        continue
      # One that was started again has its number from one that left just now.
      _drop_those_that_left(others)
      conflict = _conflict(own, others, report)
      others.append(_Process(report, connection))
      if conflict:
        return _Verdict(conflict)


def _drop_those_that_left(others: list[_Process]) -> None:
  for other in list(others):
    if not other.is_there():
      others.remove(other)
      other.connection.close()


def _is_of_a_process(message: dict) -> bool:
  return _has_kinds(message, {"process": int, "processes": int, "host": str, "metadata": dict})


def _is_a_verdict(message: dict) -> bool:
  return _has_kinds(message, {"error": str, "is_transient": bool})


def _has_kinds(message: dict, kinds: dict[str, type]) -> bool:
  """Whether a message has these entries and no others."""
  return message.keys() == kinds.keys() and all(
    isinstance(message[name], kind) for name, kind in kinds.items()
  )


def _conflict(own: dict, present: list[_Process], other: dict) -> str:
  """Why the process of a report can't belong to the run, or ""."""
  names = [f"process {metadata['process']} on {metadata['host']}" for metadata in (own, other)]
  if other["processes"] != own["processes"]:
    return (
      f"{names[0]} counts {own['processes']} processes, {names[1]} {other['processes']}; give all "
      "the same --num_processes"
    )
  for first in (own, *(process.report for process in present)):
    if first["process"] == other["process"]:
      return (
        f"two processes have the number {other['process']}, on {first['host']} and on "
        f"{other['host']}; give each its own --process_id, and make sure that no earlier run is "
        "left"
      )
  for name in sorted(own["metadata"].keys() | other["metadata"].keys()):
    here, there = own["metadata"].get(name), other["metadata"].get(name)
    if here != there:
      return (
        f"{name} is {here} in {names[0]}, but {there} in {names[1]}; it must be the same in all"
      )
  return ""


def _follow(cluster: Cluster, own: dict, deadline: float, timeout: float) -> _Verdict:
  """Any other process: reports to process 0 and waits for its word."""
  reason = ""
  while time.monotonic() < deadline:
    try:
      with socket.create_connection(cluster.address, timeout=5.0) as connection:
        _send(connection, own)
        # Process 0 may have started its clock a little later.
        answer = _receive(connection, timeout + 10.0)
    except OSError as error:
      answer, reason = None, f" ({error})"
    if answer is not None and _is_a_verdict(answer):
      return _Verdict(**answer)
    time.sleep(0.2)
  return _Verdict(
    f"{cluster.name(0)} does not answer at {cluster.coordinator} within {timeout:g} s{reason}; "
    "start the same command on its host, check the address, or raise --start_timeout",
    is_transient=True,
  )


def _listen(cluster: Cluster) -> socket.socket:
  port = cluster.address[1]
  try:
    if socket.has_dualstack_ipv6():
      return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))
  except OSError as error:
    # An earlier run may still be ending, and launchers may take another port.
    kind = TransientStartupError if is_transient(error) else StartupError
    raise kind(
      f"can't listen at port {port} of this host, the coordinator's: {error}. End the program that "
      "has it, or give another --coordinator (SLURM: JAX_COORDINATOR_PORT)"
    ) from error


def _send(connection: socket.socket, message: dict) -> None:
  connection.settimeout(5.0)
  try:
    connection.sendall(json.dumps(message).encode() + b"\n")
  except OSError as error:
    logger.warning("a process left while the roll was called: %s", error)


def _receive(connection: socket.socket, timeout: float) -> dict | None:
  """One line of JSON; None: something else, or nothing in time."""
  connection.settimeout(timeout)
  try:
    with connection.makefile("rb") as file:
      message = json.loads(file.readline(2**16))
  except (OSError, ValueError):
    return None
  return message if isinstance(message, dict) else None
