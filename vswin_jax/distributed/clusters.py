"""Which processes belong to a run, as the user, SLURM, a TPU pod or Kubernetes say."""

import contextlib
import dataclasses
import os
import re
from collections.abc import Iterator, Mapping

import jax
from jax._src import cloud_tpu_init, clusters

from vswin_jax.common.cli import is_transient
from vswin_jax.distributed.errors import StartupError, TransientStartupError

_FLAGS = "--coordinator=HOST:PORT, --num_processes=N and --process_id=I"
# What srun tells its tasks, besides their number.
_OF_A_STEP = ("SLURM_JOB_ID", "SLURM_LOCALID", "SLURM_STEP_NODELIST", "SLURM_STEP_TASKS_PER_NODE")
# The number of a pod of an indexed Kubernetes job.
_POD_NUMBER = "JOB_COMPLETION_INDEX"


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
      A `num_processes` of 1 without the others: this process runs alone, whatever they say.
    timeout: seconds to wait for the name of the coordinator, where it has to be asked for.

  Raises:
    StartupError: what was given is not enough, or makes no sense; `TransientStartupError` where
      whoever had to be asked did not answer.
  """
  if (coordinator, num_processes, process_id) == (None, 1, None):
    return None
  if coordinator is not None or num_processes is not None or process_id is not None:
    if process_id is None and _POD_NUMBER in environment:
      process_id = _number(environment, _POD_NUMBER)
    if coordinator is None or num_processes is None or process_id is None:
      raise StartupError(f"a run of several processes needs {_FLAGS} together")
    return Cluster(coordinator, num_processes, process_id)
  if "SLURM_PROCID" in environment and _number(environment, "SLURM_STEP_NUM_TASKS", 1) > 1:
    return _of_slurm(environment)
  on_tpu = cloud_tpu_init.running_in_cloud_tpu_vm and jax.config.jax_platforms != "cpu"
  in_pod = _POD_NUMBER in environment
  if not on_tpu and not in_pod:
    return None
  kind = _kind_of_cluster()
  if kind is not None:
    return _as_jax_says(kind, timeout)
  if in_pod:
    raise StartupError(
      f"this is pod {environment[_POD_NUMBER]} of an indexed Kubernetes job, and nothing here says "
      "who the others are; give --coordinator=HOST:PORT of pod 0 and --num_processes=N, or "
      "--num_processes=1 alone where each pod is a run of its own"
    )
  return None


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
  text = environment.get(name, default)
  try:
    return int(text)
  except (TypeError, ValueError) as error:
    raise StartupError(
      f"the environment has no whole number {name}, but {text!r}; give {_FLAGS}"
    ) from error


def _kind_of_cluster() -> type[clusters.ClusterEnv] | None:
  """What JAX takes this machine for: a host of TPUs, or, if their Python package is there, a pod of
  Kubernetes."""
  with _asking():
    kinds = clusters.ClusterEnv._cluster_types
    return next(
      (kind for kind in kinds if not kind.opt_in_only_method and kind.is_env_present()), None
    )


def _as_jax_says(kind: type[clusters.ClusterEnv], timeout: float) -> Cluster | None:
  with _asking():
    count = kind.get_process_count()
    if count < 2:
      return None
    address = kind.get_coordinator_address(
      timeout_secs=int(timeout), override_coordinator_port=None
    )
    number = kind.get_process_id()
    # Of several slices, each knows its own workers only.
    workers = getattr(kind, "_get_worker_list_in_slice", tuple)()
  return Cluster(address, count, number, tuple(workers) if len(workers) == count else ())


@contextlib.contextmanager
def _asking() -> Iterator[None]:
  """Says where errors come from that JAX meets when it asks the cloud."""
  try:
    yield
  except Exception as error:  # of the cloud's services, of many kinds
    # They fail now and then, and a host may get its name after others have started.
    kind = TransientStartupError if is_transient(error) else StartupError
    raise kind(
      "this looks like a host of a TPU pod or of Kubernetes, but the others can't be found: "
      f"{type(error).__name__}: {error}; give {_FLAGS}"
    ) from error


def _of_slurm(environment: Mapping[str, str]) -> Cluster:
  """A step of `srun`, with one task a node, or one a GPU."""
  missing = [name for name in _OF_A_STEP if name not in environment]
  if missing:
    raise StartupError(f"this is a step of SLURM without {', '.join(missing)}; give {_FLAGS}")
  nodes = expand_nodes(environment["SLURM_STEP_NODELIST"])
  tasks = _tasks_per_node(environment["SLURM_STEP_TASKS_PER_NODE"])
  # Tasks are dealt out in this way unless srun is told otherwise; these are names for messages.
  hosts = tuple(node for node, count in zip(nodes, tasks) for _ in range(count))
  # Unless the launcher says it: above the ports that services use, and not the same for two jobs on
  # one node.
  port = (
    environment.get("JAX_COORDINATOR_PORT") or 61440 + _number(environment, "SLURM_JOB_ID") % 4096
  )
  own_tasks = tasks[_number(environment, "SLURM_NODEID", 0)]
  visible = [name for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
  shares_node = own_tasks > 1 and len(visible) != 1
  count = _number(environment, "SLURM_STEP_NUM_TASKS")
  return Cluster(
    f"{nodes[0]}:{port}",
    count,
    _number(environment, "SLURM_PROCID"),
    hosts if len(hosts) == count else (),
    (_number(environment, "SLURM_LOCALID"),) if shares_node else None,
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
