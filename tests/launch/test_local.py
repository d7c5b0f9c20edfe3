"""Local launcher: restarts, stop requests, commands of the processes."""

import argparse
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from launch import local
from tests.launch.programs import ARGUMENTS, ROOT
from vswin_jax.common.cli import TRANSIENT, UNEXPECTED, USER_ERRORS

FAKE = pathlib.Path(__file__).with_name("fake_run.py")


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
  monkeypatch.setattr(local, "_GRACE_SECONDS", 0.2)


def options(folder: pathlib.Path, *plan: dict[int, str], restarts: int = 3) -> argparse.Namespace:
  parsed = local.parse_arguments(["--processes=3", f"--restarts={restarts}", "--", "x"])
  parsed.command = [sys.executable, "-S", str(FAKE), str(folder), json.dumps(plan)]
  return parsed


def coordinators(folder: pathlib.Path, process: int) -> list[str]:
  """Returns the coordinator of each start of a process."""
  lines = (folder / f"starts_{process}").read_text().splitlines()
  return [line.split()[0] for line in lines]


def is_alive(pid: int) -> bool:
  try:
    return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
  except FileNotFoundError:
    return False


def wait_until(condition) -> None:
  deadline = time.monotonic() + 20
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.01)


def wait_until_all_ended(folder: pathlib.Path) -> None:
  files = [*folder.glob("starts_*"), *folder.glob("child_*")]
  pids = [int(line.split()[-1]) for file in files for line in file.read_text().splitlines()]
  wait_until(lambda: not any(map(is_alive, pids)))


def test_all_processes_run_and_their_output_is_numbered(tmp_path, capfd):
  assert local.run(options(tmp_path, {})) == 0
  lines = capfd.readouterr().out.splitlines()
  for process in range(3):
    own = [line for line in lines if line.startswith(f"[{process}] ")]
    assert own == [f"[{process}] output of {process}", f"[{process}] error of {process}"]
  assert len(lines) == 6


def test_a_killed_process_restarts_all_on_a_new_port(tmp_path):
  plan = {0: "hang", 1: "hang", 2: "die SIGKILL"}, {}
  assert local.run(options(tmp_path, *plan)) == 0
  first, *others = [coordinators(tmp_path, process) for process in range(3)]
  assert others == [first, first] and len(set(first)) == 2
  wait_until_all_ended(tmp_path)


def test_restarts_are_bounded(tmp_path):
  plan = [{1: "die SIGSEGV"}] * 3
  assert local.run(options(tmp_path, *plan, restarts=2)) == 128 + signal.SIGSEGV
  assert len(coordinators(tmp_path, 0)) == 3


@pytest.mark.parametrize("status", USER_ERRORS)
def test_wrong_commands_are_not_restarted(tmp_path, status):
  assert local.run(options(tmp_path, {0: "hang", 1: f"end {status}"})) == status
  assert len(coordinators(tmp_path, 0)) == 1
  wait_until_all_ended(tmp_path)


@pytest.mark.parametrize("status", [UNEXPECTED, TRANSIENT])
def test_other_failures_are_restarted(tmp_path, status):
  assert local.run(options(tmp_path, {1: f"end {status}"}, {})) == 0
  assert len(coordinators(tmp_path, 0)) == 2


def test_the_cause_of_an_abort_gives_the_status(tmp_path, monkeypatch):
  monkeypatch.setattr(local, "_SETTLE_SECONDS", 20.0)
  plan = {0: "end 1 0.4", 1: "die SIGABRT", 2: "die SIGABRT"}
  assert local.run(options(tmp_path, plan)) == 1


def test_an_abort_without_another_cause_is_restarted(tmp_path, monkeypatch):
  monkeypatch.setattr(local, "_SETTLE_SECONDS", 0.2)
  assert local.run(options(tmp_path, {0: "hang", 1: "die SIGABRT"}, {})) == 0
  assert len(coordinators(tmp_path, 0)) == 2


def launch(parsed: argparse.Namespace) -> subprocess.Popen:
  """Starts the launcher in a process of its own."""
  program = f"""
import sys
from argparse import Namespace
from launch import local
sys.exit(local.run({parsed!r}))"""
  return subprocess.Popen(
    [sys.executable, "-c", program], cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
  )


@pytest.mark.skipif(sys.platform != "linux", reason="the Linux kernel ends the processes")
def test_processes_end_with_a_launcher_that_is_killed(tmp_path):
  launcher = launch(options(tmp_path, dict.fromkeys(range(3), "train")))
  wait_until(lambda: len([*tmp_path.glob("training_*")]) == 3)
  launcher.kill()
  launcher.communicate()
  wait_until_all_ended(tmp_path)


def test_a_request_to_stop_goes_to_process_0(tmp_path):
  launcher = launch(options(tmp_path, dict.fromkeys(range(3), "train")))
  wait_until(lambda: len([*tmp_path.glob("training_*")]) == 3)
  launcher.terminate()
  _, errors = launcher.communicate(timeout=20)
  assert launcher.returncode == 0, errors
  assert [path.name for path in tmp_path.glob("asked_*")] == ["asked_0"]


def test_a_second_request_kills(tmp_path):
  launcher = launch(options(tmp_path, dict.fromkeys(range(3), "hang")))
  wait_until(lambda: len([*tmp_path.glob("child_*")]) == 3)
  launcher.send_signal(signal.SIGINT)
  assert b"asked to stop" in launcher.stderr.readline()
  launcher.send_signal(signal.SIGINT)
  launcher.communicate(timeout=20)
  assert launcher.returncode == 128 + signal.SIGKILL
  wait_until_all_ended(tmp_path)


@pytest.mark.parametrize(
  "arguments, variables",
  [
    (["--processes=2"], [{"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}] * 2),
    (["--devices_per_process=4"], [{"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "4"}]),
    (["--platform=gpu"], [{"JAX_PLATFORMS": "cuda,cpu"}]),
    (
      ["--platform=gpu", "--processes=2", "--devices_per_process=2"],
      [
        {"JAX_PLATFORMS": "cuda,cpu", "CUDA_VISIBLE_DEVICES": "4,5"},
        {"JAX_PLATFORMS": "cuda,cpu", "CUDA_VISIBLE_DEVICES": "6,7"},
      ],
    ),
  ],
)
def test_commands_of_processes(monkeypatch, arguments, variables):
  monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
  commands = local.process_commands(local.parse_arguments([*arguments, "--", *ARGUMENTS]))
  assert [own for own, _ in commands] == variables
  for index, (_, command) in enumerate(commands):
    assert command[1:-3] == ["-m", "vswin_jax.main", *ARGUMENTS]
    assert command[-3].startswith("--coordinator=localhost:")
    assert command[-2:] == [f"--num_processes={len(variables)}", f"--process_id={index}"]
  assert len({command[-3] for _, command in commands}) == 1


@pytest.mark.parametrize(
  "arguments, message",
  [
    ([], "run_arguments"),
    (["--restart=1", "--", "x"], "--restart=1"),
    (["--processes=0", "--", "x"], "--processes must be at least 1, got 0"),
    (["--platform=gpu", "--processes=3", "--", "x"], "CUDA_VISIBLE_DEVICES=0,1"),
  ],
)
def test_invalid_arguments(arguments, message):
  ended = subprocess.run(
    [sys.executable, "launch/local.py", *arguments],
    cwd=ROOT,
    env={**os.environ, "CUDA_VISIBLE_DEVICES": "0,1"},
    capture_output=True,
    text=True,
  )
  assert ended.returncode in USER_ERRORS
  assert message in ended.stderr.splitlines()[-1]
