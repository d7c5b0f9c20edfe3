"""Who belongs to a run of several processes, and the roll call before they are connected."""

import concurrent.futures
import dataclasses
import socket
import time

import pytest

from vswin_jax.distributed import roll_call
from vswin_jax.distributed.clusters import Cluster, expand_nodes, find_cluster
from vswin_jax.distributed.errors import MissingProcessError, StartupError
from vswin_jax.distributed.roll_call import call_roll

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


def free_port() -> int:
  with socket.create_server(("", 0)) as server:
    return server.getsockname()[1]


def roll(*processes: dict, timeout: float = 20.0) -> list[str]:
  """What comes of the roll in each process: "" or its error."""
  address = f"localhost:{free_port()}"

  def call(process: dict) -> str:
    cluster = Cluster(address, 3, process["number"])
    options = {"hosts": ("a", "b", "c")} | process.get("cluster", {})
    cluster = dataclasses.replace(cluster, **options)
    try:
      call_roll(cluster, timeout=timeout, facts=process.get("facts", {}))
    except StartupError as error:
      return str(error)
    return ""

  with concurrent.futures.ThreadPoolExecutor(len(processes)) as pool:
    return list(pool.map(call, processes))


def test_all_processes_are_there():
  assert roll({"number": 0}, {"number": 1}, {"number": 2}) == ["", "", ""]


def test_all_that_are_there_name_the_missing_one(monkeypatch):
  said = []
  monkeypatch.setattr(roll_call, "_PATIENCE", 0.5)
  monkeypatch.setattr(roll_call.logger, "info", lambda *message: said.append(message))
  errors = roll({"number": 0}, {"number": 2}, timeout=1.5)
  assert said and all(
    message[0] % message[1:] == "2 of 3 processes are here; waiting for process 1 (b)"
    for message in said
  )
  assert errors[0] == errors[1]
  assert errors[0].startswith(
    "2 of 3 processes started within 1.5 s; missing: process 1 (b). Start"
  )


def test_a_missing_first_process_is_named():
  (error,) = roll({"number": 1}, timeout=1.0)
  assert error.startswith("process 0 (a) does not answer at localhost:")


def test_numbers_and_versions_must_fit():
  number = roll({"number": 0}, {"number": 1}, {"number": 1})
  assert all("two processes have the number 1" in error for error in number)
  count = roll({"number": 0}, {"number": 1, "cluster": {"num_processes": 2, "hosts": ("a", "b")}})
  assert all("counts 3 processes" in error and "give all the same" in error for error in count)
  facts = roll(
    {"number": 0, "facts": {"--config.seed": "0", "jax": "1"}},
    {"number": 2, "facts": {"--config.seed": "7", "jax": "1"}},
  )
  assert all("--config.seed is 0 in process 0 on" in error for error in facts)
  assert all("but 7 in process 2 on" in error for error in facts)


def test_strangers_at_the_port_are_sent_away():
  port = free_port()
  lead = Cluster(f"localhost:{port}", 2, 0)
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    leading = pool.submit(call_roll, lead, timeout=20.0, facts={})
    wrong = b'{"process": [1], "processes": 2, "host": "a", "facts": {}}\n'
    for message in (b"GET / HTTP/1.1\r\n\r\n", b'{"process": 1}\n', b"7\n", wrong):
      _send_when_there_is_a_server(port, message)
    call_roll(dataclasses.replace(lead, process_id=1), timeout=20.0, facts={})
    assert leading.result() is None


def _send_when_there_is_a_server(port: int, message: bytes) -> None:
  for _ in range(500):
    try:
      with socket.create_connection(("localhost", port), timeout=5.0) as connection:
        connection.sendall(message)
        return
    except ConnectionRefusedError:
      time.sleep(0.01)
  raise AssertionError("no server")


def test_a_missing_process_may_come_the_next_time():
  """Launchers start again after it, and not after other errors of a start."""
  assert MissingProcessError.exit_status == 75
  assert not hasattr(StartupError, "exit_status")


def test_a_port_that_is_taken_is_named():
  with socket.create_server(("", 0)) as server:
    port = server.getsockname()[1]
    with pytest.raises(StartupError, match=f"can't listen at port {port} of this host"):
      call_roll(Cluster(f"localhost:{port}", 2, 0), timeout=5.0, facts={})


def test_steps_of_slurm_that_say_too_little():
  environment = {name: value for name, value in SLURM.items() if name != "SLURM_STEP_NODELIST"}
  with pytest.raises(StartupError, match="a step of SLURM without SLURM_STEP_NODELIST"):
    find_cluster(environment=environment)
  with pytest.raises(StartupError, match="no whole number SLURM_STEP_NUM_TASKS, but 'x'"):
    find_cluster(environment=SLURM | {"SLURM_STEP_NUM_TASKS": "x"})
