"""Shell launchers: lint, help, invalid arguments; `run_once.sh` and `gpu_box.sh`."""

import os
import pathlib
import signal
import subprocess
import sysconfig

import pytest

from tests.launch.programs import ARGUMENTS, ROOT, words
from vswin_jax.common.cli import TRANSIENT, UNEXPECTED, USER_ERRORS

SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))
LAUNCHERS = [path for path in SCRIPTS if path.name != "common.sh"]


def test_shellcheck_finds_nothing():
  program = pathlib.Path(sysconfig.get_path("scripts"), "shellcheck")
  command = [program, "--external-sources", *SCRIPTS]
  ended = subprocess.run(command, capture_output=True, text=True)
  assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.parametrize("script", LAUNCHERS, ids=lambda path: path.name)
def test_help(programs, script):
  ended = programs.run(str(script), "--help")
  assert ended.returncode == 0 and "--dry_run" in ended.stdout
  assert programs.calls() == []


@pytest.mark.parametrize("script", ["run_once", "gpu_box", "slurm"])
def test_missing_arguments(programs, script):
  ended = programs.run(f"launch/{script}.sh")
  assert ended.returncode == 1 and "give the arguments of the run" in ended.stderr


def test_user_errors_are_those_of_the_library(programs):
  ended = programs.run(
    "bash",
    "-c",
    "source launch/common.sh; "
    'for status in {0..255}; do if is_user_error "$status"; then echo "$status"; fi; done',
  )
  assert tuple(map(int, ended.stdout.split())) == USER_ERRORS


def test_dry_run_of_run_once(programs):
  ended = programs.run("launch/run_once.sh", "--dry_run", *ARGUMENTS)
  assert words(ended.stdout) == ["python", "-m", "vswin_jax.main", "--stop_status=143", *ARGUMENTS]


@pytest.mark.parametrize("status", [0, 134, *USER_ERRORS, UNEXPECTED, TRANSIENT])
def test_run_once_returns_the_status_of_the_run(programs, status):
  python = programs.add("fake_python", f"exit {status}")
  file = programs.folder / "status"
  ended = programs.run("launch/run_once.sh", *ARGUMENTS, PYTHON=python, STATUS_FILE=str(file))
  assert ended.returncode == status
  assert file.read_text() == f"{status}\n"
  assert len(programs.calls()) == 1


@pytest.mark.parametrize("to_all", [False, True])
def test_run_once_passes_signals_on(programs, to_all):
  python = programs.add(
    "fake_python",
    """trap 'touch "$folder/saved"; exit ${3#--stop_status=}' TERM
    echo training
    while :; do sleep 0.02; done""",
  )
  process = programs.start("setsid", "launch/run_once.sh", *ARGUMENTS, PYTHON=python)
  assert process.stdout.readline() == "training\n"
  if to_all:
    os.killpg(process.pid, signal.SIGTERM)
  else:
    process.send_signal(signal.SIGTERM)
  process.communicate(timeout=20)
  assert process.returncode == 128 + signal.SIGTERM
  assert (programs.folder / "saved").exists()


def test_gpu_box(programs):
  python = programs.add("fake_python", 'echo "$JAX_COMPILATION_CACHE_DIR" >"$folder/cache"; exit 3')
  for variables, restarts, cache in (
    ({}, 3, f"{programs.folder}/.cache/vswin_jax"),
    ({"RESTARTS": "5", "JAX_COMPILATION_CACHE_DIR": "/fast"}, 5, "/fast"),
  ):
    ended = programs.run("launch/gpu_box.sh", *ARGUMENTS, "--dry_run", PYTHON=python, **variables)
    assert ended.returncode == 3
    assert programs.calls()[-1][1:] == [
      *("launch/local.py", "--platform=gpu", f"--restarts={restarts}", "--dry_run"),
      *("--", *ARGUMENTS),
    ]
    assert (programs.folder / "cache").read_text() == f"{cache}\n"
