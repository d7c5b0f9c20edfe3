"""The roll call before the processes of a run are connected.

Process 0 calls it at the coordinator's address, before JAX listens there: whoever is missing, twice
there or of other settings is named, where JAX itself would wait, or abort without a word about it.
"""

import json
import socket
import time

from vswin_jax.distributed.clusters import Cluster
from vswin_jax.distributed.errors import MissingProcessError, StartupError
from vswin_jax.training.progress import logger

# Seconds between two words about who is still missing.
_PATIENCE = 15.0


def call_roll(cluster: Cluster, *, timeout: float, facts: dict[str, str]) -> None:
  """Waits until every process is there.

  Raises:
    StartupError: in every process that is there, naming those that are not
      (`MissingProcessError`), those of other `facts`, or numbers that two processes have.
  """
  own = {
    "process": cluster.process_id,
    "processes": cluster.num_processes,
    "host": socket.gethostname(),
    "facts": facts,
  }
  deadline = time.monotonic() + timeout
  call = _lead if cluster.process_id == 0 else _follow
  verdict, is_missing = call(cluster, own, deadline, timeout)
  if verdict:
    raise (MissingProcessError if is_missing else StartupError)(verdict)


def _lead(cluster: Cluster, own: dict, deadline: float, timeout: float) -> tuple[str, bool]:
  """Process 0: collects the others and tells them what came of it.

  Returns:
    An error or "", and whether it is that processes are missing.
  """
  connections: list[socket.socket] = []
  # What the others are told if this process ends here.
  verdict = "process 0 ended while the roll was called", True
  try:
    verdict = _collect(cluster, own, deadline, timeout, connections)
  finally:
    for connection in connections:
      with connection:
        _send(connection, {"verdict": verdict})
  return verdict


def _collect(
  cluster: Cluster, own: dict, deadline: float, timeout: float, connections: list[socket.socket]
) -> tuple[str, bool]:
  """Waits for the others; adds their connections to a list."""
  present = {0: own}
  said = time.monotonic()
  with _listen(cluster) as server:
    while len(present) < cluster.num_processes:
      missing = [number for number in range(cluster.num_processes) if number not in present]
      names = ", ".join(map(cluster.name, missing))
      if time.monotonic() > deadline:
        return (
          f"{len(present)} of {cluster.num_processes} processes started within {timeout:g} s; "
          f"missing: {names}. Start the same command on every host, or raise --start_timeout"
        ), True
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
      other = _receive(connection, 5.0)
      if not _is_of_a_process(other):  # some other program
        connection.close()
        continue
      connections.append(connection)
      conflict = _conflict(present, own, other)
      if conflict:
        return conflict, False
      present[other["process"]] = other
  return "", False


def _is_of_a_process(message: dict | None) -> bool:
  kinds = {"process": int, "processes": int, "host": str, "facts": dict}
  return message is not None and all(
    isinstance(message.get(name), kind) for name, kind in kinds.items()
  )


def _conflict(present: dict[int, dict], own: dict, other: dict) -> str:
  """Why a process can't belong to the run, or ""."""
  names = [f"process {facts['process']} on {facts['host']}" for facts in (own, other)]
  if other["processes"] != own["processes"]:
    return (
      f"{names[0]} counts {own['processes']} processes, {names[1]} {other['processes']}; give all "
      "the same --num_processes"
    )
  if other["process"] in present:
    first = present[other["process"]]["host"]
    return (
      f"two processes have the number {other['process']}, on {first} and on {other['host']}; give "
      "each its own --process_id, and make sure that no earlier run is left"
    )
  for name in sorted(own["facts"].keys() | other["facts"].keys()):
    here, there = own["facts"].get(name), other["facts"].get(name)
    if here != there:
      return (
        f"{name} is {here} in {names[0]}, but {there} in {names[1]}; it must be the same in all"
      )
  return ""


def _follow(cluster: Cluster, own: dict, deadline: float, timeout: float) -> tuple[str, bool]:
  """Any other process: reports to process 0 and waits for its word; returns as `_lead`."""
  reason = ""
  while time.monotonic() < deadline:
    try:
      with socket.create_connection(cluster.address, timeout=5.0) as connection:
        _send(connection, own)
        # Process 0 may have started its clock a little later.
        answer = _receive(connection, timeout + 10.0)
    except OSError as error:
      answer, reason = None, f" ({error})"
    if answer is not None:
      verdict, is_missing = answer["verdict"]
      return verdict, is_missing
    time.sleep(0.2)
  return (
    f"{cluster.name(0)} does not answer at {cluster.coordinator} within {timeout:g} s{reason}; "
    "start the same command on its host, check the address, or raise --start_timeout"
  ), True


def _listen(cluster: Cluster) -> socket.socket:
  port = cluster.address[1]
  try:
    if socket.has_dualstack_ipv6():
      return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))
  except OSError as error:
    raise StartupError(
      f"can't listen at port {port} of this host, the coordinator's: {error}. End the program that "
      "has it, or give another --coordinator (SLURM: JAX_COORDINATOR_PORT)"
    ) from error


def _send(connection: socket.socket, message: dict) -> None:
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
