"""Startup barrier: missing, duplicate and differing processes."""

import concurrent.futures
import dataclasses
import json
import socket
import time

import pytest

from tests.helpers.process_runs import free_port
from vswin_jax.distributed import startup_barrier
from vswin_jax.distributed.clusters import Cluster
from vswin_jax.distributed.errors import StartupError, TransientStartupError
from vswin_jax.distributed.startup_barrier import wait_for_all_processes


def send_when_listening(port: int, message: bytes) -> None:
  for _ in range(500):
    try:
      with socket.create_connection(("localhost", port), timeout=5.0) as connection:
        connection.sendall(message)
        return
    except ConnectionRefusedError:
      time.sleep(0.01)
  raise AssertionError("nobody listens")


def start_all(
  *process_ids: int,
  num_processes: dict[int, int] | None = None,
  metadata: dict[int, dict] | None = None,
  left: tuple[int, ...] = (),
  timeout: float = 20.0,
) -> list[StartupError | None]:
  """Returns the error of each process, or None.

  Args:
    process_ids: the processes that start, of 3.
    num_processes: for each process id, if not 3.
    metadata: for each process id.
    left: ids of processes that connect after the first and leave before the others start.
    timeout: seconds.
  """
  port = free_port()

  def wait(process_id: int) -> StartupError | None:
    count = (num_processes or {}).get(process_id, 3)
    own_metadata = (metadata or {}).get(process_id, {})
    cluster = Cluster(f"localhost:{port}", count, process_id)
    try:
      wait_for_all_processes(cluster, timeout=timeout, metadata=own_metadata)
    except StartupError as error:
      return error
    return None

  with concurrent.futures.ThreadPoolExecutor(len(process_ids)) as pool:
    first = pool.submit(wait, process_ids[0])
    for process_id in left:
      report = {"process": process_id, "processes": 3, "host": "left", "metadata": {}}
      send_when_listening(port, json.dumps(report).encode() + b"\n")
    others = pool.map(wait, process_ids[1:])
    return [first.result(), *others]


def test_all_processes_start(caplog):
  assert start_all(0, 1, 2) == [None, None, None]
  assert not [record for record in caplog.records if record.name == "asyncio"]
  assert start_all(0, num_processes={0: 1}) == [None]


def test_missing_processes_are_listed_in_all_others(monkeypatch):
  logged = []
  monkeypatch.setattr(startup_barrier, "_LOG_INTERVAL", 0.3)
  monkeypatch.setattr(
    startup_barrier.logger, "info", lambda text, *args: logged.append(text % args)
  )
  errors = start_all(0, 2, timeout=1.5)
  assert set(logged) == {"2 of 3 processes have started; waiting for process 1"}
  assert str(errors[0]) == str(errors[1])
  assert str(errors[0]).startswith("2 of 3 processes started within 1.5 s; missing: process 1.")
  assert {type(error) for error in errors} == {TransientStartupError}


def test_a_process_that_left_is_missing():
  for error in start_all(0, 2, left=(1,), timeout=1.5):
    assert "missing: process 1." in str(error)


def test_a_process_that_left_may_be_started_again():
  assert start_all(0, 1, 2, left=(1, 2, 1)) == [None, None, None]


def test_a_missing_process_0_is_named():
  [error] = start_all(1, timeout=1.0)
  assert str(error).startswith("process 0 does not answer at localhost:")
  assert type(error) is TransientStartupError


@pytest.mark.parametrize(
  "process_ids, options, message",
  [
    ((0, 1, 1), {}, "two processes have the id 1"),
    ((0, 1), {"num_processes": {1: 2}}, "--num_processes is 3 in process 0 on"),
    (
      (0, 2),
      {"metadata": {0: {"--config.seed": "0"}, 2: {"--config.seed": "7"}}},
      "--config.seed is 0 in process 0 on",
    ),
  ],
)
def test_processes_that_do_not_match_are_named_in_all(process_ids, options, message):
  for error in start_all(*process_ids, **options):
    assert message in str(error)
    # A restart would fail again.
    assert type(error) is StartupError


def test_connections_of_other_programs_are_closed():
  port = free_port()
  first = Cluster(f"localhost:{port}", 2, 0)
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    waiting = pool.submit(wait_for_all_processes, first, timeout=20.0, metadata={})
    wrong_type = b'{"process": [1], "processes": 2, "host": "a", "metadata": {}}\n'
    for message in (b"GET / HTTP/1.1\r\n\r\n", b'{"process": 1}\n', b"7\n", wrong_type):
      send_when_listening(port, message)
    second = dataclasses.replace(first, process_id=1)
    wait_for_all_processes(second, timeout=20.0, metadata={})
    assert waiting.result() is None


def test_a_port_in_use_is_named():
  with socket.create_server(("", 0)) as server:
    port = server.getsockname()[1]
    with pytest.raises(TransientStartupError, match=f"can't listen at port {port}"):
      wait_for_all_processes(Cluster(f"localhost:{port}", 2, 0), timeout=5.0, metadata={})
