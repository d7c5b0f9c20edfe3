"""The roll call before processes are connected."""

import concurrent.futures
import dataclasses
import json
import socket
import time

import pytest

from vswin_jax.distributed import roll_call
from vswin_jax.distributed.clusters import Cluster
from vswin_jax.distributed.errors import StartupError, TransientStartupError
from vswin_jax.distributed.roll_call import call_roll


def free_port() -> int:
  with socket.create_server(("", 0)) as server:
    return server.getsockname()[1]


def send_when_there_is_a_server(port: int, message: bytes) -> None:
  for _ in range(500):
    try:
      with socket.create_connection(("localhost", port), timeout=5.0) as connection:
        connection.sendall(message)
        return
    except ConnectionRefusedError:
      time.sleep(0.01)
  raise AssertionError("no server")


def roll(
  *processes: dict, left: tuple[int, ...] = (), timeout: float = 20.0
) -> list[StartupError | None]:
  """The errors of the roll in each process; those that left report between the first and the second
  of them."""
  port = free_port()

  def call(process: dict) -> StartupError | None:
    cluster = Cluster(f"localhost:{port}", 3, process["number"])
    options = {"hosts": ("a", "b", "c")} | process.get("cluster", {})
    cluster = dataclasses.replace(cluster, **options)
    try:
      call_roll(cluster, timeout=timeout, metadata=process.get("metadata", {}))
    except StartupError as error:
      return error
    return None

  with concurrent.futures.ThreadPoolExecutor(len(processes)) as pool:
    first = pool.submit(call, processes[0])
    for number in left:
      report = {"process": number, "processes": 3, "host": "left", "metadata": {}}
      send_when_there_is_a_server(port, json.dumps(report).encode() + b"\n")
    others = pool.map(call, processes[1:])
    return [first.result(), *others]


def test_all_processes_are_there():
  assert roll({"number": 0}, {"number": 1}, {"number": 2}) == [None, None, None]
  alone = {"num_processes": 1, "hosts": ()}
  assert roll({"number": 0, "cluster": alone}) == [None]


def test_all_that_are_there_name_the_missing_one(monkeypatch):
  said = []
  monkeypatch.setattr(roll_call, "_PATIENCE", 0.5)
  monkeypatch.setattr(roll_call.logger, "info", lambda *message: said.append(message))
  errors = roll({"number": 0}, {"number": 2}, timeout=1.5)
  assert said and all(
    message[0] % message[1:] == "2 of 3 processes are here; waiting for process 1 (b)"
    for message in said
  )
  assert str(errors[0]) == str(errors[1])
  assert str(errors[0]).startswith(
    "2 of 3 processes started within 1.5 s; missing: process 1 (b). Start"
  )
  assert all(isinstance(error, TransientStartupError) for error in errors)


def test_a_process_that_left_after_its_report_is_missing():
  nameless = {"cluster": {"hosts": ()}}
  errors = roll({"number": 0, **nameless}, {"number": 2, **nameless}, left=(1,), timeout=1.5)
  for error in errors:
    assert str(error).startswith("2 of 3 processes started within 1.5 s; missing: process 1. Start")
    assert isinstance(error, TransientStartupError)


def test_a_process_that_left_may_be_started_again():
  assert roll({"number": 0}, {"number": 1}, {"number": 2}, left=(1, 2, 1)) == [None, None, None]


def test_a_missing_first_process_is_named():
  (error,) = roll({"number": 1}, timeout=1.0)
  assert str(error).startswith("process 0 (a) does not answer at localhost:")
  assert isinstance(error, TransientStartupError)


def test_numbers_and_versions_must_fit():
  number = roll({"number": 0}, {"number": 1}, {"number": 1})
  assert all("two processes have the number 1" in str(error) for error in number)
  count = roll({"number": 0}, {"number": 1, "cluster": {"num_processes": 2, "hosts": ("a", "b")}})
  assert all("counts 3 processes" in str(error) for error in count)
  assert all("give all the same --num_processes" in str(error) for error in count)
  metadata = roll(
    {"number": 0, "metadata": {"--config.seed": "0", "jax": "1"}},
    {"number": 2, "metadata": {"--config.seed": "7", "jax": "1"}},
  )
  assert all("--config.seed is 0 in process 0 on" in str(error) for error in metadata)
  assert all("but 7 in process 2 on" in str(error) for error in metadata)
  # The same command would fail again.
  assert {type(error) for error in number + count + metadata} == {StartupError}


def test_strangers_at_the_port_are_sent_away():
  port = free_port()
  lead = Cluster(f"localhost:{port}", 2, 0)
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    leading = pool.submit(call_roll, lead, timeout=20.0, metadata={})
    wrong = b'{"process": [1], "processes": 2, "host": "a", "metadata": {}}\n'
    for message in (b"GET / HTTP/1.1\r\n\r\n", b'{"process": 1}\n', b"7\n", wrong):
      send_when_there_is_a_server(port, message)
    call_roll(dataclasses.replace(lead, process_id=1), timeout=20.0, metadata={})
    assert leading.result() is None


def test_a_port_that_is_taken_is_named():
  with socket.create_server(("", 0)) as server:
    port = server.getsockname()[1]
    with pytest.raises(TransientStartupError, match=f"can't listen at port {port} of this host"):
      call_roll(Cluster(f"localhost:{port}", 2, 0), timeout=5.0, metadata={})
