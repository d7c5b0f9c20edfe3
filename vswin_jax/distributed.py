"""Runs of several processes: who belongs to one, and how they find each other.

Each host of a TPU pod or a cluster runs the same command. Before JAX connects them, process 0 calls
the roll at the coordinator's address: whoever is missing, twice there or of another version is
named, where JAX itself would wait or abort without a word about it.
"""

import contextlib
import dataclasses
import json
import os
import re
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping

import jax
from jax._src import clusters
from jax._src import distributed as jax_distributed

from vswin_jax.training.progress import logger

_FLAGS = "--coordinator=HOST:PORT, --num_processes=N and --process_id=I"
# Seconds between two words about who is still missing.
_PATIENCE = 15.0
# What a process that fails leaves for the others, and how often they look, in seconds.
_FAILURE = "vswin_jax/failure"
_WATCH_INTERVAL = 1.0
# Exit status of errors that do not speak to the user (1 is for those that do): another start may
# succeed.
_UNEXPECTED = 70


class StartupError(ValueError):
  """Processes that do not find each other; one line says which, and what to do."""


@dataclasses.dataclass(frozen=True)
class Cluster:
  """The processes of a run, as one of them sees them.

  Attributes:
    coordinator: "host:port" of process 0.
    hosts: names of the hosts by process, where they are known beforehand; else empty.
    local_devices: which devices of its host this process takes; None: all.
  """

  coordinator: str
  num_processes: int
  process_id: int
  hosts: tuple[str, ...] = ()
  local_devices: tuple[int, ...] | None = None

  def __post_init__(self):
    host, _, port = self.coordinator.rpartition(":")
    if not host or not port.isdigit():
      raise StartupError(f"the coordinator must be HOST:PORT, got {self.coordinator!r}")
    if not 0 <= self.process_id < self.num_processes:
      raise StartupError(
        f"process_id must be at least 0 and below num_processes {self.num_processes}, got "
        f"{self.process_id}"
      )

  @property
  def address(self) -> tuple[str, int]:
    host, _, port = self.coordinator.rpartition(":")
    return host.strip("[]"), int(port)

  def name(self, process: int) -> str:
    """A process in words."""
    return f"process {process}" + (f" ({self.hosts[process]})" if self.hosts else "")


def find_cluster(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  *,
  timeout: float = 300.0,
  environment: Mapping[str, str] = os.environ,
) -> Cluster | None:
  """The cluster that this process belongs to; None: it runs alone.

  Args:
    coordinator: what the user says; likewise `num_processes`, `process_id` (in an indexed
      Kubernetes job that of its pod). Without any of them: what SLURM, a TPU pod or Kubernetes say.
    timeout: seconds to wait for the name of the coordinator, where it has to be asked for.

  Raises:
    StartupError: what was given is not enough, or makes no sense.
  """
  if coordinator is not None or num_processes is not None or process_id is not None:
    if process_id is None and "JOB_COMPLETION_INDEX" in environment:
      process_id = int(environment["JOB_COMPLETION_INDEX"])
    if coordinator is None or num_processes is None or process_id is None:
      raise StartupError(f"a run of several processes needs {_FLAGS} together")
    return Cluster(coordinator, num_processes, process_id)
  if int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1 and "SLURM_PROCID" in environment:
    return _of_slurm(environment)
  if jax.config.jax_platforms == "cpu":
    return None
  try:
    address, count, number, _ = clusters.ClusterEnv.auto_detect_unset_distributed_params(
      None, None, None, None, None, int(timeout)
    )
  except (OSError, RuntimeError) as error:
    raise StartupError(
      f"this looks like a host of a TPU pod or of Kubernetes, but {error}; give {_FLAGS}"
    ) from error
  if address is None or count is None or count < 2:
    return None
  workers = tuple(filter(None, environment.get("TPU_WORKER_HOSTNAMES", "").split(",")))
  return Cluster(address, count, number, workers if len(workers) == count else ())


def _of_slurm(environment: Mapping[str, str]) -> Cluster:
  """A step of `srun`, with one task a node, or one a GPU."""
  nodes = expand_nodes(environment["SLURM_STEP_NODELIST"])
  tasks = _tasks_per_node(environment["SLURM_STEP_TASKS_PER_NODE"])
  hosts = tuple(node for node, count in zip(nodes, tasks) for _ in range(count))
  # Unless the launcher says it: above the ports that services use, and not the same for two jobs on
  # one node.
  port = environment.get("JAX_COORDINATOR_PORT") or 61440 + int(environment["SLURM_JOB_ID"]) % 4096
  own_tasks = tasks[int(environment.get("SLURM_NODEID", 0))]
  visible = [name for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
  shares_node = own_tasks > 1 and len(visible) != 1
  return Cluster(
    f"{nodes[0]}:{port}",
    int(environment["SLURM_STEP_NUM_TASKS"]),
    int(environment["SLURM_PROCID"]),
    hosts,
    (int(environment["SLURM_LOCALID"]),) if shares_node else None,
  )


def expand_nodes(names: str) -> list[str]:
  """SLURM's short form of host names, such as "gpu[01-03,7],login"."""
  nodes = []
  for name in re.findall(r"[^,\[]+(?:\[[^\]]*\][^,\[]*)*", names):
    expanded = [""]
    for text, numbers in re.findall(r"([^\[]+)|\[([^\]]*)\]", name):
      choices = [text] if text else list(_numbers(numbers))
      expanded = [start + choice for start in expanded for choice in choices]
    nodes += expanded
  return nodes


def _numbers(ranges: str):
  for part in ranges.split(","):
    first, _, last = part.partition("-")
    for number in range(int(first), int(last or first) + 1):
      yield str(number).zfill(len(first))


def _tasks_per_node(counts: str) -> list[int]:
  """SLURM's short form of counts, such as "2(x3),1"."""
  tasks = []
  for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", counts):
    tasks += [int(count)] * int(times or 1)
  return tasks


def start(
  cluster: Cluster | None,
  *,
  start_timeout: float = 300.0,
  heartbeat_timeout: float = 60.0,
  facts: Mapping[str, str] | None = None,
) -> None:
  """Connects this process with the others of its run; must come before any use of devices.

  Args:
    start_timeout: seconds within which all must have started.
    heartbeat_timeout: seconds after which a process that says nothing counts as dead; then the
      others abort.
    facts: what must be the same in all processes, by name.

  Raises:
    StartupError: not all came in time, or they do not belong together.
  """
  if cluster is None:
    return
  call_roll(cluster, timeout=start_timeout, facts=dict(facts or {}) | {"jax": jax.__version__})
  # Used on CPUs alone, where nothing else connects processes.
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
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
  The exit status is 1 after a `SystemExit`, 70 after any other error.
  """
  client = jax_distributed.global_state.client
  if client is None:
    yield
    return
  ended = threading.Event()
  watcher = threading.Thread(target=_watch, args=(client, ended), daemon=True)
  watcher.start()
  try:
    yield
  except BaseException as error:
    if isinstance(error, SystemExit) and not error.code:
      raise
    if isinstance(error, SystemExit):
      reason, status = str(error.code), 1
      print(reason, file=sys.stderr)
    else:
      reason, status = f"{type(error).__name__}: {error}", _UNEXPECTED
      traceback.print_exc()
    ended.set()
    with contextlib.suppress(Exception):  # the others may be gone already
      reason = f"process {jax_distributed.global_state.process_id}: {' '.join(reason.split())}"
      client.key_value_set(_FAILURE, json.dumps([reason, status]), True)
    # An orderly exit would wait for processes that wait for this one.
    _leave(status)
  ended.set()
  watcher.join()
  jax.distributed.shutdown()


def _watch(client, ended: threading.Event) -> None:
  """Ends this process when another one has failed."""
  while not ended.wait(_WATCH_INTERVAL):
    try:
      reason, status = json.loads(client.key_value_try_get(_FAILURE))
    except Exception:  # nothing is there, or the run ends
      continue
    print(f"error: this run ends because of {reason}", file=sys.stderr)
    _leave(status)


def _leave(status: int) -> None:
  """Ends this process at once."""
  if jax_distributed.global_state.process_id == 0:
    # The words of a failure go through it, and all must have read them.
    time.sleep(2 * _WATCH_INTERVAL)
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)


def call_roll(cluster: Cluster, *, timeout: float, facts: dict[str, str]) -> None:
  """Waits until every process is there.

  Raises:
    StartupError: in every process that is there, naming those that are not, those of other
      `facts`, or numbers that two processes have.
  """
  own = {
    "process": cluster.process_id,
    "processes": cluster.num_processes,
    "host": socket.gethostname(),
    "facts": facts,
  }
  deadline = time.monotonic() + timeout
  verdict = (_lead if cluster.process_id == 0 else _follow)(cluster, own, deadline, timeout)
  if verdict:
    raise StartupError(verdict)


def _lead(cluster: Cluster, own: dict, deadline: float, timeout: float) -> str:
  """Process 0: collects the others and tells them what came of it; returns an error or ""."""
  present, connections = {0: own}, []
  verdict = ""
  try:
    with _listen(cluster.address[1]) as server:
      said = time.monotonic()
      while not verdict and len(present) < cluster.num_processes:
        missing = [number for number in range(cluster.num_processes) if number not in present]
        names = ", ".join(map(cluster.name, missing))
        if time.monotonic() > deadline:
          verdict = (
            f"{len(present)} of {cluster.num_processes} processes started within {timeout:g} s; "
            f"missing: {names}. Start the same command on every host, or raise --start_timeout"
          )
          break
        if time.monotonic() > said + _PATIENCE:
          logger.info("%d of %d processes are here; waiting for %s", len(present),
                      cluster.num_processes, names)  # fmt: skip
          said = time.monotonic()
        server.settimeout(min(1.0, max(deadline - time.monotonic(), 0.01)))
        try:
          connection, _ = server.accept()
        except TimeoutError:
          continue
        other = _receive(connection, 5.0)
        if other is None or not own.keys() <= other.keys():  # some other program
          connection.close()
          continue
        connections.append(connection)
        verdict = _conflict(present, own, other)
        present[other["process"]] = other
  finally:
    for connection in connections:
      with connection:
        _send(connection, {"error": verdict})
  return verdict


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


def _follow(cluster: Cluster, own: dict, deadline: float, timeout: float) -> str:
  """Any other process: reports to process 0 and waits for its word."""
  while time.monotonic() < deadline:
    try:
      with socket.create_connection(cluster.address, timeout=5.0) as connection:
        _send(connection, own)
        # Process 0 may have started its clock a little later.
        answer = _receive(connection, timeout + 10.0)
    except OSError:
      answer = None
    if answer is not None:
      return answer["error"]
    time.sleep(0.2)
  return (
    f"{cluster.name(0)} does not answer at {cluster.coordinator} within {timeout:g} s; start the "
    "same command on its host, check the address, or raise --start_timeout"
  )


def _listen(port: int) -> socket.socket:
  if socket.has_dualstack_ipv6():
    return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
  return socket.create_server(("", port))


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
