"""Cluster detection: the processes of a run, from flags, SLURM, a TPU pod or Kubernetes."""

import dataclasses
import os
import re

import jax
from jax._src import cloud_tpu_init
from jax._src.clusters import ClusterEnv
from jax._src.clusters.slurm_cluster import SlurmCluster

from vswin_jax.common.cli import is_transient
from vswin_jax.distributed.errors import StartupError, TransientStartupError

_FLAGS = "--coordinator=HOST:PORT, --num_processes=N and --process_id=I"
_POD_INDEX = "JOB_COMPLETION_INDEX"


@dataclasses.dataclass(frozen=True)
class Cluster:
  """The processes of a run.

  Attributes:
    coordinator: "host:port" of process 0.
    num_processes: of the run.
    process_id: of this process, from 0.
    local_devices: indices of the GPUs of its host that this process takes; None: all.
  """

  coordinator: str
  num_processes: int
  process_id: int
  local_devices: tuple[int, ...] | None = None

  def __post_init__(self):
    if not re.fullmatch(r".+:\d+", self.coordinator):
      raise StartupError(f"--coordinator must be HOST:PORT, got {self.coordinator!r}")
    if not 0 <= self.process_id < self.num_processes:
      raise StartupError(
        f"--process_id must be at least 0 and below --num_processes={self.num_processes}, got "
        f"{self.process_id}"
      )

  @property
  def address(self) -> tuple[str, int]:
    host, _, port = self.coordinator.rpartition(":")
    return host.strip("[]"), int(port)


def find_cluster(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  *,
  timeout: float = 300.0,
) -> Cluster | None:
  """Returns the cluster that this process belongs to, or None if it runs alone.

  Args:
    coordinator: "host:port" of process 0. If any of the three is given, nothing is detected.
    num_processes: of the run; 1 without the other two: this process runs alone.
    process_id: of this process; by default the index of its pod in an indexed Kubernetes job.
    timeout: seconds to wait until the name of the coordinator is known, where it is detected.

  Raises:
    StartupError: the flags or the environment are incomplete or invalid.
    TransientStartupError: a service of the cloud did not answer.
  """
  pod = os.environ.get(_POD_INDEX)
  given = (coordinator, num_processes, process_id)
  if given == (None, 1, None):
    return None
  if given != (None, None, None):
    if process_id is None and pod is not None:
      process_id = int(pod)
    if None in (coordinator, num_processes, process_id):
      raise StartupError(f"a run of several processes needs {_FLAGS} together")
    return Cluster(coordinator, num_processes, process_id)
  try:
    environment = _detect_environment()
    if environment is not None:
      return _cluster_of(environment, timeout)
  except Exception as error:  # services of the cloud raise many kinds
    is_lasting = isinstance(error, KeyError | ValueError) or not is_transient(error)
    raise (StartupError if is_lasting else TransientStartupError)(
      "this looks like a step of SLURM, a host of a TPU pod or a pod of Kubernetes, but the other "
      f"processes can't be found: {type(error).__name__}: {error}; give {_FLAGS}"
    ) from error
  if pod is not None:
    raise StartupError(
      f"this is pod {pod} of an indexed Kubernetes job whose other pods are unknown; give "
      "--coordinator=HOST:PORT of pod 0 and --num_processes=N, or --num_processes=1 alone if each "
      "pod is a run of its own"
    )
  return None


def _detect_environment() -> type[ClusterEnv] | None:
  if int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
    return SlurmCluster
  on_tpu = cloud_tpu_init.running_in_cloud_tpu_vm and jax.config.jax_platforms != "cpu"
  # Elsewhere JAX would take a single pod of Kubernetes for part of a cluster.
  if not on_tpu and _POD_INDEX not in os.environ:
    return None
  candidates = (kind for kind in ClusterEnv._cluster_types if not kind.opt_in_only_method)
  return next((kind for kind in candidates if kind.is_env_present()), None)


def _cluster_of(environment: type[ClusterEnv], timeout: float) -> Cluster | None:
  count = environment.get_process_count()
  if count < 2:
    return None
  port = os.environ.get("JAX_COORDINATOR_PORT")
  address = environment.get_coordinator_address(int(timeout), port)
  local_devices = None
  if environment is SlurmCluster and count > int(os.environ["SLURM_STEP_NUM_NODES"]):
    # With --gpu-bind SLURM shows a task its own GPU only, as device 0.
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if len(visible) > 1 or not visible[0]:
      local_devices = (environment.get_local_process_id(),)
  return Cluster(address, count, environment.get_process_id(), local_devices)
