"""The SLURM launcher, with `srun` and its companions replaced."""

import shutil
import signal
import subprocess
import time

import pytest

from tests.launch.arguments import (
  ARGUMENTS,
  QUOTED,
)
from vswin_jax.common.cli import TRANSIENT, UNEXPECTED, USER_ERRORS

JOB = {"SLURM_JOB_ID": "42", "SLURM_JOB_NUM_NODES": "4", "SLURM_CPUS_ON_NODE": "96"}
KILLED = 'echo "srun: error: n1: task 2: Killed" >&2; exit 137'


@pytest.mark.parametrize(
  "variables, processes",
  [
    ({}, "--nodes=4 --ntasks=4 --ntasks-per-node=1 --cpus-per-task=96"),
    (
      {"PROCESSES_PER_NODE": "gpus", "SLURM_GPUS_ON_NODE": "8"},
      "--nodes=4 --ntasks=32 --ntasks-per-node=8 --cpus-per-task=12",
    ),
    (
      {"PROCESSES_PER_NODE": "gpus", "SLURM_GPUS_ON_NODE": "8", "SLURM_CPUS_ON_NODE": "8"},
      "--nodes=4 --ntasks=32 --ntasks-per-node=8 --cpus-per-task=1",
    ),
  ],
)
def test_dry_run(cluster, variables, processes):
  ended = cluster.run("launch/slurm.sh", *ARGUMENTS, "--dry_run", **{**JOB, **variables})
  assert (ended.returncode, ended.stderr) == (0, "")
  assert ended.stdout == (
    "env 'JAX_COMPILATION_CACHE_DIR=my runs/a/compilation_cache' JAX_COORDINATOR_PORT=10672 "
    f"srun {processes} --gpu-bind=none --kill-on-bad-exit=1 python -m vswin_jax.main "
    f"--stop_status=143 {QUOTED}\n"
  )
  assert cluster.calls() == []


def test_a_run_that_ends_well(cluster):
  ended = cluster.run("launch/slurm.sh", *ARGUMENTS, **JOB)
  assert (ended.returncode, ended.stderr) == (0, "")
  [call] = cluster.calls()
  assert call.endswith(
    r"-m vswin_jax.main --stop_status=143 --config=c.py --workdir=my\ runs/a "
    r"--config.model.num_heads=\(1\,1\,2\,2\)"
  )


def test_a_fault_starts_all_again_on_another_port(cluster):
  cluster.answer("srun", f'echo "port $JAX_COORDINATOR_PORT"; if ((call < 2)); then {KILLED}; fi')
  ended = cluster.run("launch/slurm.sh", *ARGUMENTS, **JOB)
  assert ended.returncode == 0
  assert ended.stdout == "port 10672\nport 10673\nport 10674\n"
  again = [
    "srun: error: n1: task 2: Killed",
    "launch: n1: task 2: Killed",
    "launch: the run ended with status 137",
  ]
  assert ended.stderr.splitlines() == [
    *again,
    "launch: starting all processes again (1 of 3)",
    *again,
    "launch: starting all processes again (2 of 3)",
  ]


def test_restarts_are_bounded(cluster):
  cluster.answer("srun", KILLED)
  ended = cluster.run("launch/slurm.sh", *ARGUMENTS, **JOB, RESTARTS="1")
  assert ended.returncode == 137
  assert ended.stderr.splitlines()[-1] == "launch: started 2 times: giving up"
  assert len(cluster.calls("srun")) == 2
  assert cluster.calls("scontrol") == []


@pytest.mark.parametrize("status", USER_ERRORS)
def test_wrong_commands_are_not_started_again(cluster, status):
  # `srun` gives the status of those that it killed because of the first.
  cluster.answer(
    "srun",
    f"""echo "srun: error: n1: tasks 0-3: Exited with exit code {status}" >&2
    echo "srun: error: n2: task 4: Killed" >&2
    exit 137""",
  )
  ended = cluster.run("launch/slurm.sh", *ARGUMENTS, **JOB)
  assert ended.returncode == status
  assert len(cluster.calls("srun")) == 1


@pytest.mark.parametrize("status", [UNEXPECTED, TRANSIENT])
def test_other_statuses_are_started_again(cluster, status):
  cluster.answer(
    "srun",
    f'if ((call == 0)); then echo "srun: error: n1: task 0: Exited with exit code {status}" >&2; '
    f"exit {status}; fi",
  )
  assert cluster.run("launch/slurm.sh", *ARGUMENTS, **JOB).returncode == 0
  assert len(cluster.calls("srun")) == 2


def trains(cluster, signal_number: int, status: int, **variables: str) -> subprocess.Popen:
  """A run that has got a signal and ends with this status once there is a file `asked`."""
  cluster.answer(
    "srun", f"echo training; until [[ -f $folder/asked ]]; do sleep 0.02; done; exit {status}"
  )
  process = cluster.start("launch/slurm.sh", *ARGUMENTS, **JOB, **variables)
  assert process.stdout.readline() == "training\n"
  process.send_signal(signal_number)
  return process


def near_the_time_limit(
  cluster, status: int, scancel: str = 'touch "$folder/asked"', **variables: str
) -> tuple[int, str]:
  """The status and the words of a launcher whose run ends with this one when it is asked to."""
  cluster.answer("scancel", scancel)
  process = trains(cluster, signal.SIGUSR1, status, **variables)
  _, errors = process.communicate(timeout=20)
  return process.returncode, errors


@pytest.mark.parametrize("status", [143, 134])
def test_near_the_time_limit_the_run_saves_and_the_job_queues_again(cluster, status):
  ended = near_the_time_limit(cluster, status, SLURM_RESTART_COUNT="1")
  assert ended == (0, "launch: time is nearly up: saving\nlaunch: back to the queue\n")
  assert cluster.calls("sc") == ["scancel --signal=TERM 42", "scontrol requeue 42"]
  assert len(cluster.calls("srun")) == 1


def test_a_run_that_was_at_its_end_does_not_queue_again(cluster):
  assert near_the_time_limit(cluster, 0) == (0, "launch: time is nearly up: saving\n")
  assert cluster.calls("scontrol") == []


def test_the_time_limit_between_two_starts(cluster):
  cluster.answer("srun", f'echo $PPID >"$folder/launcher"; {KILLED}')
  # The launcher searches what the first start said when that has ended.
  searching = cluster.folder / "programs" / "grep"
  searching.write_text(
    "#!/usr/bin/env bash\n"
    f"if [[ $* == *srun:* ]]; then kill -USR1 $(<{cluster.folder}/launcher); fi\n"
    f'exec {shutil.which("grep")} "$@"\n'
  )
  searching.chmod(0o755)
  ended = cluster.run("launch/slurm.sh", *ARGUMENTS, **JOB)
  assert ended.returncode == 0
  assert len(cluster.calls("srun")) == 1
  assert cluster.calls("scontrol") == ["scontrol requeue 42"]


def test_tasks_that_are_only_starting_are_asked_once_more(cluster):
  cluster.answer("sleep", 'if [[ $1 == 10 ]]; then set -- 0.01; fi; exec /bin/sleep "$1"')
  scancel = 'if ((call > 1)); then touch "$folder/asked"; fi'
  assert near_the_time_limit(cluster, 143, scancel)[0] == 0
  assert len(cluster.calls("scancel")) >= 3
  assert len(cluster.calls("srun")) == 1


def test_tasks_that_were_asked_by_others_are_not_started_again(cluster):
  cluster.answer("srun", 'echo "srun: error: n1: task 0: Exited with exit code 143" >&2; exit 143')
  ended = cluster.run("launch/slurm.sh", *ARGUMENTS, **JOB)
  assert ended.returncode == 143
  assert len(cluster.calls("srun")) == 1
  assert cluster.calls("scontrol") == []


def test_the_queue_is_not_for_ever(cluster):
  status, errors = near_the_time_limit(cluster, 143, SLURM_RESTART_COUNT="2", REQUEUES="2")
  assert status == 1
  assert errors.splitlines()[-1] == "error: queued 3 times: giving up"
  assert cluster.calls("scontrol") == []


def test_a_job_that_is_cancelled_is_not_started_again(cluster):
  process = trains(cluster, signal.SIGTERM, 143)
  # The tasks are told by SLURM itself.
  time.sleep(0.1)
  assert process.poll() is None
  (cluster.folder / "asked").touch()
  process.communicate(timeout=20)
  assert process.returncode == 143
  assert len(cluster.calls()) == 1


@pytest.mark.parametrize(
  "variables, message",
  [
    (
      {},
      "not in a job; submit this file: sbatch --nodes=... --gpus-per-node=... launch/slurm.sh ...",
    ),
    (
      {**JOB, "PROCESSES_PER_NODE": "gpus"},
      "PROCESSES_PER_NODE=gpus in a job without GPUs; give --gpus-per-node",
    ),
    (
      {
        **JOB,
        "PROCESSES_PER_NODE": "gpus",
        "SLURM_GPUS_ON_NODE": "8",
        "SLURM_CPUS_ON_NODE": "7",
      },
      "8 processes on a node need a CPU each at least, but the job has 7 there; give --exclusive, "
      "or more --cpus-per-task",
    ),
    ({**JOB, "PROCESSES_PER_NODE": "3"}, "PROCESSES_PER_NODE must be 1 or gpus, got '3'"),
    ({**JOB, "REQUEUES": "-1"}, "REQUEUES must be a whole number, got '-1'"),
    (
      {**JOB, "SLURM_SUBMIT_DIR": "/"},
      "no launch/common.sh in /; submit the job in the clone of the repository",
    ),
  ],
)
def test_bad_jobs_end_in_one_line(cluster, variables, message):
  ended = cluster.run("launch/slurm.sh", *ARGUMENTS, **variables)
  assert (ended.returncode, ended.stderr) == (1, f"error: {message}\n")
  assert cluster.calls() == []
