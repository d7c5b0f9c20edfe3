"""SLURM launcher, with `srun`, `scancel` and `scontrol` replaced."""

import shutil
import signal
import subprocess
import time

import pytest

from tests.launch.programs import ARGUMENTS, words
from vswin_jax.common.cli import TRANSIENT, UNEXPECTED, USER_ERRORS

JOB = {"SLURM_JOB_ID": "42", "SLURM_JOB_NUM_NODES": "4", "SLURM_CPUS_ON_NODE": "96"}
GPUS = {"PROCESSES_PER_NODE": "gpus", "SLURM_GPUS_ON_NODE": "8"}
KILLED = 'echo "srun: error: n1: task 2: Killed" >&2; exit 137'


def ended_with(status: int) -> str:
  return f'echo "srun: error: n1: task 0: Exited with exit code {status}" >&2; exit {status}'


@pytest.mark.parametrize(
  "variables, processes",
  [
    ({}, ["--nodes=4", "--ntasks=4", "--ntasks-per-node=1", "--cpus-per-task=96"]),
    (GPUS, ["--nodes=4", "--ntasks=32", "--ntasks-per-node=8", "--cpus-per-task=12"]),
  ],
)
def test_srun_command(programs, variables, processes):
  expected = [
    *("srun", *processes, "--gpu-bind=none", "--kill-on-bad-exit=1"),
    *("launch/run_once.sh", *ARGUMENTS),
  ]
  ended = programs.run("launch/slurm.sh", *ARGUMENTS, "--dry_run", **JOB, **variables)
  assert words(ended.stdout) == expected and programs.calls() == []
  assert programs.run("launch/slurm.sh", *ARGUMENTS, **JOB, **variables).returncode == 0
  assert programs.calls() == [expected]


def test_a_failure_restarts_all_on_another_port(programs):
  programs.add(
    "srun", f'echo "$JAX_COORDINATOR_PORT" >>"$folder/ports"; if ((call < 2)); then {KILLED}; fi'
  )
  assert programs.run("launch/slurm.sh", *ARGUMENTS, **JOB).returncode == 0
  assert (programs.folder / "ports").read_text().split() == ["10672", "10673", "10674"]


def test_restarts_are_bounded(programs):
  programs.add("srun", KILLED)
  ended = programs.run("launch/slurm.sh", *ARGUMENTS, **JOB, RESTARTS="1")
  assert ended.returncode == 137
  assert "srun: error: n1: task 2: Killed" in ended.stderr
  assert len(programs.calls("srun")) == 2
  assert programs.calls("scontrol") == []


@pytest.mark.parametrize("status", USER_ERRORS)
def test_wrong_commands_are_not_restarted(programs, status):
  # srun returns the status of the tasks that it ended because of the first.
  programs.add(
    "srun",
    f"""echo "srun: error: n1: tasks 0-3: Exited with exit code {status}" >&2
    echo "srun: error: n2: task 4: Killed" >&2
    exit 137""",
  )
  assert programs.run("launch/slurm.sh", *ARGUMENTS, **JOB).returncode == status
  assert len(programs.calls("srun")) == 1


@pytest.mark.parametrize("status", [UNEXPECTED, TRANSIENT])
def test_other_failures_are_restarted(programs, status):
  programs.add("srun", f"if ((call == 0)); then {ended_with(status)}; fi")
  assert programs.run("launch/slurm.sh", *ARGUMENTS, **JOB).returncode == 0
  assert len(programs.calls("srun")) == 2


def start_and_signal(programs, number: int, status: int, **variables: str) -> subprocess.Popen:
  """Starts a run that ends with a status once the file `asked` exists, and signals the job."""
  programs.add(
    "srun", f"echo training; until [[ -f $folder/asked ]]; do sleep 0.02; done; exit {status}"
  )
  process = programs.start("launch/slurm.sh", *ARGUMENTS, **JOB, **variables)
  assert process.stdout.readline() == "training\n"
  process.send_signal(number)
  return process


def status_at_time_limit(
  programs, run_status: int, scancel: str = 'touch "$folder/asked"', **variables: str
) -> int:
  """Returns the status of a job whose run ends with `run_status` when it is asked to stop."""
  programs.add("scancel", scancel)
  process = start_and_signal(programs, signal.SIGUSR1, run_status, **variables)
  process.communicate(timeout=20)
  assert len(programs.calls("srun")) == 1
  return process.returncode


@pytest.mark.parametrize("run_status", [143, 134])
def test_at_the_time_limit_the_run_saves_and_the_job_is_requeued(programs, run_status):
  assert status_at_time_limit(programs, run_status, SLURM_RESTART_COUNT="1") == 0
  assert programs.calls("sc") == [["scancel", "--signal=TERM", "42"], ["scontrol", "requeue", "42"]]


def test_a_run_that_ends_well_at_the_time_limit_is_not_requeued(programs):
  assert status_at_time_limit(programs, 0) == 0
  assert programs.calls("scontrol") == []


def test_requeues_are_bounded(programs):
  assert status_at_time_limit(programs, 143, SLURM_RESTART_COUNT="2", REQUEUES="2") == 1
  assert programs.calls("scontrol") == []


def test_tasks_are_asked_repeatedly(programs):
  programs.add("sleep", 'if [[ $1 == 10 ]]; then set -- 0.01; fi; exec /bin/sleep "$1"')
  scancel = 'if ((call > 1)); then touch "$folder/asked"; fi'
  assert status_at_time_limit(programs, 143, scancel) == 0
  assert len(programs.calls("scancel")) >= 3


def test_the_time_limit_between_two_starts(programs):
  programs.add("srun", f'echo $PPID >"$folder/launcher"; {KILLED}')
  # The launcher searches the messages of srun between two starts.
  programs.add(
    "grep",
    'if [[ $* == *srun:* ]]; then kill -USR1 "$(<"$folder/launcher")"; fi\n'
    f'exec {shutil.which("grep")} "$@"',
  )
  path = programs.folder / "programs" / "grep"
  path.write_text(path.read_text().replace("call=$(grep", f"call=$({shutil.which('grep')}"))
  assert programs.run("launch/slurm.sh", *ARGUMENTS, **JOB).returncode == 0
  assert len(programs.calls("srun")) == 1
  assert programs.calls("scontrol") == [["scontrol", "requeue", "42"]]


def test_a_run_that_others_stopped_is_not_restarted(programs):
  programs.add("srun", ended_with(143))
  assert programs.run("launch/slurm.sh", *ARGUMENTS, **JOB).returncode == 143
  assert len(programs.calls("srun")) == 1
  assert programs.calls("scontrol") == []


def test_a_cancelled_job_is_not_restarted(programs):
  process = start_and_signal(programs, signal.SIGTERM, 143)
  # SLURM signals the tasks itself.
  time.sleep(0.1)
  assert process.poll() is None
  (programs.folder / "asked").touch()
  process.communicate(timeout=20)
  assert process.returncode == 143
  assert len(programs.calls()) == 1


@pytest.mark.parametrize(
  "variables, message",
  [
    ({}, "not in a job"),
    ({**JOB, "PROCESSES_PER_NODE": "gpus"}, "give --gpus-per-node"),
    ({**JOB, **GPUS, "SLURM_CPUS_ON_NODE": "7"}, "8 processes on a node need a CPU each"),
    ({**JOB, "PROCESSES_PER_NODE": "3"}, "PROCESSES_PER_NODE must be 1 or gpus, got '3'"),
    ({**JOB, "REQUEUES": "-1"}, "REQUEUES must be a whole number, got '-1'"),
    ({**JOB, "SLURM_SUBMIT_DIR": "/"}, "no launch/common.sh in /"),
  ],
)
def test_invalid_jobs(programs, variables, message):
  ended = programs.run("launch/slurm.sh", *ARGUMENTS, **variables)
  assert ended.returncode == 1 and message in ended.stderr
  assert programs.calls() == []
