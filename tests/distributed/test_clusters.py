"""Who belongs to a run of several processes."""

import sys
import types

import pytest
from jax._src import cloud_tpu_init, clusters
from jax._src.clusters.cloud_tpu_cluster import BaseTpuCluster

from vswin_jax.distributed.clusters import Cluster, expand_nodes, find_cluster
from vswin_jax.distributed.errors import StartupError, TransientStartupError

SLURM = {
  "SLURM_JOB_ID": "70001",
  "SLURM_STEP_NUM_TASKS": "5",
  "SLURM_STEP_NODELIST": "gpu[08-09,12]",
  "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
  "SLURM_PROCID": "3",
  "SLURM_LOCALID": "1",
  "SLURM_NODEID": "1",
}


@pytest.mark.parametrize(
  "short, nodes",
  [
    ("node7", ["node7"]),
    ("node007,host2", ["node007", "host2"]),
    ("gpu[01-03,7],login", ["gpu01", "gpu02", "gpu03", "gpu7", "login"]),
    ("rack[1-2]n[08-09]-ib", ["rack1n08-ib", "rack1n09-ib", "rack2n08-ib", "rack2n09-ib"]),
  ],
)
def test_short_lists_of_slurm_nodes(short, nodes):
  assert expand_nodes(short) == nodes


def test_a_step_of_slurm_with_one_task_a_gpu():
  cluster = find_cluster(environment=SLURM)
  assert cluster == Cluster(
    "gpu08:61809", 5, 3, ("gpu08", "gpu08", "gpu09", "gpu09", "gpu12"), local_devices=(1,)
  )
  assert cluster.address == ("gpu08", 61809)
  assert cluster.name(4) == "process 4 (gpu12)"
  assert find_cluster(environment=SLURM | {"JAX_COORDINATOR_PORT": "7"}).address[1] == 7
  # Where the scheduler shows a task its own GPU only, that one is the first.
  bound = SLURM | {"CUDA_VISIBLE_DEVICES": "1"}
  assert find_cluster(environment=bound).local_devices is None


def test_a_step_of_slurm_with_one_task_a_node_takes_all_devices():
  one = {"SLURM_STEP_NUM_TASKS": "3", "SLURM_STEP_TASKS_PER_NODE": "1(x3)", "SLURM_LOCALID": "0"}
  cluster = find_cluster(environment=SLURM | one | {"SLURM_PROCID": "1"})
  assert cluster.hosts == ("gpu08", "gpu09", "gpu12") and cluster.local_devices is None


def test_a_single_process_belongs_to_no_cluster():
  assert find_cluster(environment={}) is None
  assert find_cluster(environment=SLURM | {"SLURM_STEP_NUM_TASKS": "1"}) is None


def test_what_the_user_says_comes_first():
  assert find_cluster("10.0.0.1:99", 4, 2, environment=SLURM) == Cluster("10.0.0.1:99", 4, 2)
  pod = find_cluster("job-0.job:99", 4, environment={"JOB_COMPLETION_INDEX": "3"})
  assert pod.process_id == 3


@pytest.mark.parametrize(
  "arguments, message",
  [
    (("host:1", None, None), "needs --coordinator=HOST:PORT, --num_processes=N and --process_id=I"),
    ((None, 4, 0), "needs --coordinator"),
    (("host", 4, 0), "coordinator must be HOST:PORT, got 'host'"),
    (("host:1", 4, 4), "process_id must be at least 0 and below num_processes 4, got 4"),
  ],
)
def test_what_the_user_says_must_make_sense(arguments, message):
  with pytest.raises(StartupError, match=message):
    find_cluster(*arguments, environment={})


def test_steps_of_slurm_that_say_too_little():
  environment = {name: value for name, value in SLURM.items() if name != "SLURM_STEP_NODELIST"}
  with pytest.raises(StartupError, match="a step of SLURM without SLURM_STEP_NODELIST"):
    find_cluster(environment=environment)
  with pytest.raises(StartupError, match="no whole number SLURM_STEP_NUM_TASKS, but 'x'"):
    find_cluster(environment=SLURM | {"SLURM_STEP_NUM_TASKS": "x"})


def find_on_tpus(monkeypatch, workers, number, slices=("", "", ""), **options) -> Cluster | None:
  """What a host of TPUs finds: one of the workers of its slice.

  `slices`: their number, that of its own, and the address of the first worker of all; empty: there
  is one, and nothing says so.
  """
  monkeypatch.setattr(cloud_tpu_init, "running_in_cloud_tpu_vm", True)
  config = types.SimpleNamespace(jax_platforms=None)
  monkeypatch.setattr("vswin_jax.distributed.clusters.jax", types.SimpleNamespace(config=config))
  names = ("NUM_SLICES", "SLICE_ID", "COORDINATOR_ADDRESS")
  for name, value in zip(names, slices, strict=True):
    monkeypatch.setenv(f"MEGASCALE_{name}", value)
  # Kinds join this list when they are defined.
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
      return number

  return find_cluster(**{"environment": {}} | options)


def test_a_slice_of_tpus(monkeypatch):
  hosts = ["127.0.0.1", "127.0.0.2"]
  cluster = find_on_tpus(monkeypatch, hosts, 1)
  assert cluster == Cluster("127.0.0.1:8482", 2, 1, ("127.0.0.1", "127.0.0.2"))


def test_several_slices_of_tpus(monkeypatch):
  slices = ("2", "1", "127.0.0.9:1234")
  cluster = find_on_tpus(monkeypatch, ["127.0.0.1", "127.0.0.2"], 1, slices)
  assert cluster == Cluster("127.0.0.9:8482", 4, 3)


def test_a_single_host_of_tpus_runs_alone(monkeypatch):
  assert find_on_tpus(monkeypatch, ["127.0.0.1"], 0) is None
  pod = {"JOB_COMPLETION_INDEX": "0"}
  assert find_on_tpus(monkeypatch, ["127.0.0.1"], 0, environment=pod) is None


def test_what_the_cloud_does_not_say_it_may_say_later(monkeypatch):
  with pytest.raises(TransientStartupError, match="RuntimeError: Failed to recognize coordinator"):
    find_on_tpus(monkeypatch, ["host.invalid", "other.invalid"], 1, timeout=0.5)

  def fails():
    raise ConnectionError("no metadata")

  with pytest.raises(
    TransientStartupError, match="ConnectionError: no metadata; give --coordinator"
  ):
    find_on_tpus(monkeypatch, fails, 0)


def test_pods_of_an_indexed_job_do_not_run_alone_by_mistake(monkeypatch):
  """Each would take itself for process 0."""
  monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
  monkeypatch.setitem(sys.modules, "kubernetes", None)  # not installed
  pod = {"JOB_COMPLETION_INDEX": "2"}
  message = r"pod 2 of .* give --coordinator=.*--num_processes=N"
  with pytest.warns(UserWarning, match="`kubernetes`"):
    with pytest.raises(StartupError, match=message) as error:
      find_cluster(environment=pod)
  assert error.type is StartupError
  assert find_cluster(None, 1, environment=pod) is None
  assert find_cluster("job-0.job:9", 1, 0, environment=pod) == Cluster("job-0.job:9", 1, 0)
  # Of a job without numbers.
  assert find_cluster(environment={"KUBERNETES_SERVICE_HOST": "10.0.0.1"}) is None
