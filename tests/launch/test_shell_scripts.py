"""All shell scripts: quality, help, and how they refuse; and those that start one process."""

import os
import pathlib
import signal
import subprocess
import sysconfig

import pytest

from tests.launch.arguments import (
  ARGUMENTS,
  QUOTED,
)
from tests.launch.shell import ROOT
from vswin_jax.common.cli import TRANSIENT, UNEXPECTED, USER_ERRORS

SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))
LAUNCHERS = [path for path in SCRIPTS if path.name != "common.sh"]


def test_shellcheck_finds_nothing():
  program = pathlib.Path(sysconfig.get_path("scripts"), "shellcheck")
  assert len(SCRIPTS) == 6
  command = [program, "--external-sources", *SCRIPTS]
  ended = subprocess.run(command, capture_output=True, text=True)
  assert (ended.returncode, ended.stdout + ended.stderr) == (0, "")


@pytest.mark.parametrize("script", LAUNCHERS, ids=lambda path: path.name)
def test_help(cluster, script):
  ended = cluster.run(str(script), "--help")
  assert (ended.returncode, ended.stderr) == (0, "")
  assert "--help" in ended.stdout or "--dry_run" in ended.stdout
  assert "#" not in ended.stdout
  assert cluster.calls() == []


@pytest.mark.parametrize("script", ["run_once", "gpu_box", "slurm"])
def test_no_arguments(cluster, script):
  ended = cluster.run(f"launch/{script}.sh")
  assert (ended.returncode, ended.stdout) == (1, "")
  assert ended.stderr == "error: give the arguments of the run, as in --config=... --workdir=...\n"


def test_dry_run_of_run_once(cluster):
  ended = cluster.run("launch/run_once.sh", "--dry_run", *ARGUMENTS)
  assert (ended.returncode, ended.stderr) == (0, "")
  assert ended.stdout == f"python -m vswin_jax.main --stop_status=143 {QUOTED}\n"


def test_quotes_are_those_of_a_shell(cluster):
  argument = """a 'b' "c" $d `e` \\ (f)"""
  ended = cluster.run("launch/run_once.sh", "--dry_run", argument)
  words = subprocess.run(
    ["bash", "-c", f"printf '%s|' {ended.stdout}"], capture_output=True, text=True
  )
  assert words.stdout.split("|")[4] == argument


def test_errors_of_the_user_are_those_of_the_library(cluster):
  ended = cluster.run(
    "bash",
    "-c",
    "source launch/common.sh; "
    'for status in {0..255}; do if is_user_error "$status"; then echo "$status"; fi; done',
  )
  assert (ended.returncode, ended.stderr) == (0, "")
  assert tuple(map(int, ended.stdout.split())) == USER_ERRORS


def fake_python(cluster, body: str) -> str:
  cluster.answer("python_of_run", body)
  return str(cluster.folder / "programs" / "python_of_run")


@pytest.mark.parametrize("status", [0, 134, *USER_ERRORS, UNEXPECTED, TRANSIENT])
def test_run_once_has_the_status_of_the_run(cluster, status):
  python = fake_python(cluster, f"echo said; echo complained >&2; exit {status}")
  file = cluster.folder / "status"
  ended = cluster.run("launch/run_once.sh", *ARGUMENTS, PYTHON=python, STATUS_FILE=str(file))
  assert ended.returncode == status
  assert ended.stdout == "said\ncomplained\n"
  assert file.read_text() == f"{status}\n"
  assert len(cluster.calls()) == 1


@pytest.mark.parametrize("to_all", [False, True])
def test_run_once_tells_a_run_that_was_stopped(cluster, to_all):
  python = fake_python(
    cluster,
    """trap 'echo saved; exit ${3#--stop_status=}' TERM
    echo training
    while :; do sleep 0.02; done""",
  )
  command = ("setsid", "launch/run_once.sh", *ARGUMENTS)
  process = cluster.start(*command, PYTHON=python)
  assert process.stdout.readline() == "training\n"
  if to_all:
    os.killpg(process.pid, signal.SIGTERM)
  else:
    process.send_signal(signal.SIGTERM)
  output, errors = process.communicate(timeout=20)
  # A shell says of a `sleep` that got the signal that it did.
  assert output.splitlines()[-1] == "saved"
  assert errors.splitlines()[-1] == "launch: stopped before its end"
  assert process.returncode == 128 + signal.SIGTERM


def test_gpu_box(cluster):
  ended = cluster.run("launch/gpu_box.sh", *ARGUMENTS, "--dry_run", RESTARTS="5")
  assert (ended.returncode, ended.stderr) == (0, "")
  assert ended.stdout == (
    "env 'JAX_COMPILATION_CACHE_DIR=my runs/a/compilation_cache' python launch/local.py "
    f"--platform=gpu --restarts=5 -- {QUOTED}\n"
  )
  python = fake_python(cluster, 'echo "$JAX_COMPILATION_CACHE_DIR"; exit 3')
  ended = cluster.run("launch/gpu_box.sh", *ARGUMENTS, PYTHON=python)
  assert (ended.returncode, ended.stdout) == (3, "my runs/a/compilation_cache\n")
  [call] = cluster.calls()
  assert call.startswith("python_of_run launch/local.py --platform=gpu --restarts=3 -- --config=c")


@pytest.mark.parametrize(
  "arguments, variables, folder",
  [
    (["--workdir", "runs/b"], {}, "runs/b/compilation_cache"),
    (["--workdir=gs://b/runs"], {}, "HOME/.cache/vswin_jax"),
    (["--workdir=runs/b"], {"JAX_COMPILATION_CACHE_DIR": "/fast"}, "/fast"),
  ],
)
def test_folder_of_compiled_programs(cluster, arguments, variables, folder):
  ended = cluster.run("launch/gpu_box.sh", *arguments, "--dry_run", **variables)
  folder = folder.replace("HOME", str(cluster.folder))
  assert ended.stdout.split()[1] == f"JAX_COMPILATION_CACHE_DIR={folder}"


def test_counts_are_checked(cluster):
  ended = cluster.run("launch/gpu_box.sh", *ARGUMENTS, RESTARTS="many")
  assert ended.stderr == "error: RESTARTS must be a whole number, got 'many'\n"
  assert ended.returncode == 1
