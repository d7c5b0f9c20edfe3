"""Cluster detection from flags, SLURM, TPU pods and Kubernetes."""

import os
import sys
import types

import pytest
from jax._src import cloud_tpu_init, clusters
from jax._src.clusters.cloud_tpu_cluster import BaseTpuCluster

from vswin_jax.distributed.clusters import Cluster, find_cluster
from vswin_jax.distributed.errors import StartupError, TransientStartupError

SLURM = {
  "SLURM_JOB_ID": "70001",
  "SLURM_NTASKS": "6",
  "SLURM_STEP_NUM_TASKS": "6",
  "SLURM_STEP_NUM_NODES": "3",
  "SLURM_STEP_NODELIST": "gpu[08-09,12]",
  "SLURM_PROCID": "3",
  "SLURM_LOCALID": "1",
}
POD = {"JOB_COMPLETION_INDEX": "2", "KUBERNETES_SERVICE_HOST": "10.0.0.1"}


@pytest.fixture(autouse=True)
def set_environment(monkeypatch):
  """Sets environment variables; those of other clusters are not set."""
  for name in os.environ:
    if name.startswith(("SLURM_", "MEGASCALE_", "KUBERNETES_", "CUDA_", "JAX_COORDINATOR")):
      monkeypatch.delenv(name)

  def set_all(variables: dict[str, str]) -> None:
    for name, value in variables.items():
      monkeypatch.setenv(name, value)

  return set_all


def test_slurm_with_one_task_per_gpu(set_environment):
  set_environment(SLURM)
  cluster = find_cluster()
  assert cluster == Cluster("gpu08:61809", 6, 3, local_devices=(1,))
  assert cluster.address == ("gpu08", 61809)
  # The task sees its own GPU only, which then is the first.
  set_environment({"JAX_COORDINATOR_PORT": "7", "CUDA_VISIBLE_DEVICES": "1"})
  assert find_cluster() == Cluster("gpu08:7", 6, 3)


def test_slurm_with_one_task_per_node_takes_all_devices(set_environment):
  set_environment(SLURM | {"SLURM_NTASKS": "3", "SLURM_STEP_NUM_TASKS": "3", "SLURM_PROCID": "1"})
  assert find_cluster() == Cluster("gpu08:61809", 3, 1)


def test_a_single_process_belongs_to_no_cluster(set_environment):
  assert find_cluster() is None
  set_environment(SLURM | {"SLURM_STEP_NUM_TASKS": "1"})
  assert find_cluster() is None


def test_flags_override_detection(set_environment):
  set_environment(SLURM | POD)
  assert find_cluster("10.0.0.1:99", 4, 3) == Cluster("10.0.0.1:99", 4, 3)
  assert find_cluster("job-0.job:99", 4) == Cluster("job-0.job:99", 4, 2)
  assert find_cluster(None, 1) is None


@pytest.mark.parametrize(
  "arguments, message",
  [
    (("host:1", None, None), "needs --coordinator=HOST:PORT, --num_processes=N and --process_id=I"),
    ((None, 4, 0), "needs --coordinator"),
    (("host", 4, 0), "--coordinator must be HOST:PORT, got 'host'"),
    (("host:1", 4, 4), "--process_id must be at least 0 and below --num_processes=4, got 4"),
  ],
)
def test_invalid_flags(arguments, message):
  with pytest.raises(StartupError, match=message):
    find_cluster(*arguments)


@pytest.mark.parametrize("name", ["SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_STEP_NUM_NODES"])
def test_incomplete_slurm_environment(set_environment, name):
  set_environment({key: value for key, value in SLURM.items() if key != name})
  with pytest.raises(StartupError, match=f"KeyError: '{name}'; give --coordinator") as error:
    find_cluster()
  assert error.type is StartupError


@pytest.fixture
def tpu_host(monkeypatch, set_environment):
  """Makes this process one of the workers of a TPU slice."""

  def set_up(workers, worker_id: int, variables: dict[str, str] | None = None) -> None:
    monkeypatch.setattr(cloud_tpu_init, "running_in_cloud_tpu_vm", True)
    config = types.SimpleNamespace(jax_platforms=None)
    monkeypatch.setattr("vswin_jax.distributed.clusters.jax", types.SimpleNamespace(config=config))
    empty = dict.fromkeys(("NUM_SLICES", "SLICE_ID", "COORDINATOR_ADDRESS"), "")
    set_environment(
      {f"MEGASCALE_{key}": value for key, value in (empty | (variables or {})).items()}
    )
    # Subclasses register themselves in this list.
    monkeypatch.setattr(clusters.ClusterEnv, "_cluster_types", [])

    class Host(BaseTpuCluster):
      @classmethod
      def is_env_present(cls):
        return True

      @staticmethod
      def _get_worker_list_in_slice():
        return workers() if callable(workers) else workers

      @staticmethod
      def _get_process_id_in_slice():
        return worker_id

  return set_up


def test_a_tpu_slice(tpu_host):
  tpu_host(["127.0.0.1", "127.0.0.2"], 1)
  assert find_cluster() == Cluster("127.0.0.1:8482", 2, 1)


def test_several_tpu_slices(tpu_host):
  slices = {"NUM_SLICES": "2", "SLICE_ID": "1", "COORDINATOR_ADDRESS": "127.0.0.9:1234"}
  tpu_host(["127.0.0.1", "127.0.0.2"], 1, slices)
  assert find_cluster() == Cluster("127.0.0.9:8482", 4, 3)


def test_a_single_tpu_host_runs_alone(tpu_host, set_environment):
  tpu_host(["127.0.0.1"], 0)
  assert find_cluster() is None
  set_environment(POD)
  assert find_cluster() is None


def test_errors_of_the_cloud_are_transient(tpu_host):
  def fails():
    raise ConnectionError("no metadata")

  for workers, message in (
    (["host.invalid", "other.invalid"], "RuntimeError: Failed to recognize coordinator"),
    (fails, "ConnectionError: no metadata; give --coordinator"),
  ):
    tpu_host(workers, 1)
    with pytest.raises(TransientStartupError, match=message):
      find_cluster(timeout=0)


def test_pods_of_an_indexed_job_need_a_coordinator(monkeypatch, set_environment):
  """Otherwise each pod would run alone, as process 0."""
  set_environment(POD)
  monkeypatch.setitem(sys.modules, "kubernetes", None)  # not installed
  with pytest.warns(UserWarning, match="`kubernetes`"):
    with pytest.raises(StartupError, match=r"pod 2 of .* give --coordinator=") as error:
      find_cluster()
  assert error.type is StartupError
  monkeypatch.delenv("JOB_COMPLETION_INDEX")
  assert find_cluster() is None
