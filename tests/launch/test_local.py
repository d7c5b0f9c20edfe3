"""The local launcher: one for all, all for one."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import types

import pytest

from launch import local
from vswin_jax.common.cli import TRANSIENT, UNEXPECTED, USER_ERRORS

ROOT = pathlib.Path(__file__).parents[2]
FAKE = pathlib.Path(__file__).with_name("fake_run.py")


def job(folder: pathlib.Path, *plan: dict[int, str], **options) -> local.Job:
  return local.Job(
    command=(sys.executable, "-S", str(FAKE), str(folder), json.dumps(plan)),
    **{"processes": 3, "grace_seconds": 0.2, "settle_seconds": 1.0, **options},
  )


def starts(folder: pathlib.Path, process: int) -> list[str]:
  """The coordinators that a process was started with."""
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


def started_pids(folder: pathlib.Path) -> list[int]:
  files = [*folder.glob("starts_*"), *folder.glob("child_*")]
  return [int(line.split()[-1]) for file in files for line in file.read_text().splitlines()]


def test_all_processes_run_and_are_heard(tmp_path, capfd):
  assert local.run(job(tmp_path, {})) == 0
  output, errors = capfd.readouterr()
  assert errors == ""
  lines = output.splitlines()
  assert len(lines) == 9
  for process in range(3):
    assert [line for line in lines if line.startswith(f"[{process}]")] == [
      f"[{process}] {place} of {process}" for place in ("first", "second", "third")
    ]
    [record] = (tmp_path / f"starts_{process}").read_text().splitlines()
    assert re.fullmatch(r"localhost:\d+ 3 \d+", record)


def test_a_process_that_is_killed_starts_all_again_on_a_new_port(tmp_path, capfd):
  plan = {0: "hang", 1: "hang", 2: "die SIGKILL"}, {}
  assert local.run(job(tmp_path, *plan)) == 0
  assert capfd.readouterr().err.splitlines() == [
    "launch: process 2 was killed (SIGKILL)",
    "launch: starting all 3 processes again (1 of 3)",
  ]
  coordinators = [starts(tmp_path, process) for process in range(3)]
  assert coordinators[0] == coordinators[1] == coordinators[2]
  assert len(set(coordinators[0])) == 2
  wait_until(lambda: not any(map(is_alive, started_pids(tmp_path))))


def test_restarts_are_bounded(tmp_path, capfd):
  assert local.run(job(tmp_path, *[{1: "die SIGSEGV"}] * 3, restarts=2)) == 128 + signal.SIGSEGV
  assert capfd.readouterr().err.splitlines() == [
    "launch: process 1 was killed (SIGSEGV)",
    "launch: starting all 3 processes again (1 of 2)",
    "launch: process 1 was killed (SIGSEGV)",
    "launch: starting all 3 processes again (2 of 2)",
    "launch: process 1 was killed (SIGSEGV)",
    "launch: started 3 times: giving up",
  ]


@pytest.mark.parametrize("status", USER_ERRORS)
def test_wrong_commands_are_not_started_again(tmp_path, capfd, status):
  assert local.run(job(tmp_path, {0: "hang", 1: f"end {status}"})) == status
  assert capfd.readouterr().err == f"launch: process 1 ended with status {status}\n"
  assert len(starts(tmp_path, 0)) == 1
  wait_until(lambda: not any(map(is_alive, started_pids(tmp_path))))


@pytest.mark.parametrize("status", [UNEXPECTED, TRANSIENT])
def test_other_statuses_are_started_again(tmp_path, status):
  assert local.run(job(tmp_path, {1: f"end {status}"}, {})) == 0
  assert len(starts(tmp_path, 0)) == 2


def test_what_made_the_others_abort_is_the_cause(tmp_path, capfd):
  plan = {0: "end 1 0.4", 1: "die SIGABRT", 2: "die SIGABRT"}
  assert local.run(job(tmp_path, plan, settle_seconds=20.0)) == 1
  assert capfd.readouterr().err == "launch: process 0 ended with status 1\n"


def test_an_abort_without_another_cause_is_a_fault(tmp_path, capfd):
  plan = {0: "hang", 1: "die SIGABRT"}, {}
  assert local.run(job(tmp_path, *plan, settle_seconds=0.2)) == 0
  assert "launch: process 1 was killed (SIGABRT)" in capfd.readouterr().err


def launch(task: local.Job) -> subprocess.Popen:
  """The launcher in a process of its own."""
  program = f"import sys; from launch import local; sys.exit(local.run(local.{task!r}))"
  return subprocess.Popen(
    [sys.executable, "-c", program], cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
  )


@pytest.mark.skipif(sys.platform != "linux", reason="asks the Linux kernel to end the processes")
def test_processes_end_with_a_launcher_that_is_killed(tmp_path):
  launcher = launch(job(tmp_path, dict.fromkeys(range(3), "train")))
  wait_until(lambda: len([*tmp_path.glob("training_*")]) == 3)
  assert all(map(is_alive, started_pids(tmp_path)))
  launcher.kill()
  launcher.communicate()
  wait_until(lambda: not any(map(is_alive, started_pids(tmp_path))))


def test_a_request_to_stop_goes_to_process_0(tmp_path):
  launcher = launch(job(tmp_path, dict.fromkeys(range(3), "train")))
  wait_until(lambda: len([*tmp_path.glob("training_*")]) == 3)
  launcher.terminate()
  _, errors = launcher.communicate(timeout=20)
  assert launcher.returncode == 0
  assert [path.name for path in tmp_path.glob("asked_*")] == ["asked_0"]
  assert errors.decode() == "launch: asked to stop: passing it on to process 0; once more kills\n"


def test_a_request_to_stop_may_come_when_the_last_process_is_ending():
  # It runs when it is looked at, and has ended when it shall be told.
  codes = iter([None, 0, 0])
  process = types.SimpleNamespace(poll=lambda: next(codes))
  assert local._wait([process], [signal.SIGTERM], settle_seconds=1.0) is None


def test_a_second_request_kills(tmp_path):
  launcher = launch(job(tmp_path, dict.fromkeys(range(3), "hang")))
  wait_until(lambda: len([*tmp_path.glob("child_*")]) == 3)
  launcher.send_signal(signal.SIGINT)
  assert b"asked to stop" in launcher.stderr.readline()
  launcher.send_signal(signal.SIGINT)
  _, errors = launcher.communicate(timeout=20)
  assert launcher.returncode == 128 + signal.SIGKILL
  assert errors.decode() == "launch: killing all processes\n"
  wait_until(lambda: not any(map(is_alive, started_pids(tmp_path))))


def command_line(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
  return subprocess.run(
    [sys.executable, "launch/local.py", *arguments],
    cwd=ROOT,
    env={**os.environ, **environment},
    capture_output=True,
    text=True,
  )


RUN = ("--", "--config=c.py", "--workdir=my runs/a", "--config.model.num_heads=(1,1,2,2)")


def expected(environments: list[str]) -> str:
  return "".join(
    f"{environment} {sys.executable} -m vswin_jax.main --config=c.py '--workdir=my runs/a' "
    f"'--config.model.num_heads=(1,1,2,2)' --coordinator=localhost:PORT "
    f"--num_processes={len(environments)} --process_id={process}\n"
    for process, environment in enumerate(environments)
  )


@pytest.mark.parametrize(
  "options, environments",
  [
    (("--processes=2",), ["JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=1"] * 2),
    (("--devices_per_process=4",), ["JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=4"]),
    (("--platform=gpu",), ["JAX_PLATFORMS=cuda,cpu"]),
    (
      ("--platform=gpu", "--processes=2", "--devices_per_process=2"),
      [
        "JAX_PLATFORMS=cuda,cpu CUDA_VISIBLE_DEVICES=4,5",
        "JAX_PLATFORMS=cuda,cpu CUDA_VISIBLE_DEVICES=6,7",
      ],
    ),
  ],
)
def test_dry_run(options, environments):
  ended = command_line(*options, "--dry_run", *RUN, CUDA_VISIBLE_DEVICES="4,5,6,7")
  assert ended.returncode == 0, ended.stderr
  [port] = {*re.findall(r"localhost:(\d+)", ended.stdout)}
  assert ended.stdout.replace(f"localhost:{port}", "localhost:PORT") == expected(environments)


@pytest.mark.parametrize(
  "arguments, message",
  [
    ([], "error: give the arguments of the run after --, as in -- --config=... --workdir=..."),
    (["--restart=1", *RUN], "error: Unknown command line flag 'restart'. Did you mean: restarts ?"),
    (
      ["--platform=gpu", "--processes=3", *RUN],
      "error: 3 processes with 1 GPUs each need 3 GPUs, but CUDA_VISIBLE_DEVICES=0,1; give fewer "
      "--processes or --devices_per_process",
    ),
  ],
)
def test_bad_launches_end_in_one_line(arguments, message):
  ended = command_line(*arguments, CUDA_VISIBLE_DEVICES="0,1")
  assert (ended.returncode, ended.stdout, ended.stderr) == (1, "", message + "\n")
