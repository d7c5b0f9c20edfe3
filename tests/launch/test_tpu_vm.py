"""The TPU VM launcher, with `gcloud` replaced; and what it runs on the workers."""

import pathlib
import signal
import time

import pytest

from tests.launch.arguments import (
  ARGUMENTS,
  QUOTED,
)
from vswin_jax.common.cli import USER_ERRORS

ZONE = ("--name=k4", "--zone=us-west4-a")
TPUS = "gcloud compute tpus"
WORKER = "vswin_jax/launch/tpu_vm_worker.sh"
UNPACK = "rm -rf vswin_jax && mkdir vswin_jax && tar -xzf vswin_jax.tar.gz -C vswin_jax"

# Looks at the slice and at the run on it take their answers from files: "-" is that there is no
# slice, "?" that nothing can be learnt. What is named in "failing" fails, once for each line.
GCLOUD = """
answer() {
  line=$(take "$1")
  case $line in
    -) echo "ERROR: (gcloud) NOT_FOUND: Resource was not found." >&2; exit 1 ;;
    "?") echo "ERROR: (gcloud) UNAVAILABLE: try later" >&2; exit 1 ;;
    *) echo "$line" ;;
  esac
}
if [[ -s $folder/failing && "$*" == *"$(head -n 1 "$folder/failing")"* ]]; then
  sed -i 1d "$folder/failing"
  exit 1
fi
case "$*" in
  *" describe "*) answer states ;;
  *"_worker.sh status"*) answer runs ;;
  *"_worker.sh log"*) if [[ -d $folder/logs ]]; then cat "$folder/logs/$(take log_names)"; fi ;;
esac
"""
KILL = f"bash -c 'if [[ -x {WORKER} ]]; then {WORKER} kill; fi'"
STATUS = f"bash -c 'if [[ -x {WORKER} ]]; then {WORKER} status; else echo not started; fi'"
DESCRIBE = f"{TPUS} queued-resources describe k4 '--format=value(state.state)' --zone=us-west4-a"
DELETE = f"{TPUS} queued-resources delete k4 --force --quiet --zone=us-west4-a"
COSTS = (
  "as long as the slice is there it costs: launch/tpu_vm.sh delete --name=k4 --zone=us-west4-a"
)
STEPS = {
  "queued-resources create": "create",
  "queued-resources describe": "describe",
  "queued-resources delete": "delete",
  "tpu-vm scp": "copy",
  "tar\\ -xzf": "unpack",
  "worker.sh\\ install": "install",
  "worker.sh\\ run": "run",
  "worker.sh\\ log": "log",
  "worker.sh\\ status": "status",
  "worker.sh\\ kill": "kill",
}
NEW = ["create", "describe", "copy", "unpack", "install", "run"]


def everything(cluster, states, runs, *options, failing=()):
  """Runs `all` with the given answers; what it did, step by step, beside how it ended."""
  cluster.answer("gcloud", GCLOUD)
  cluster.write("states", *states)
  cluster.write("runs", *runs)
  cluster.write("failing", *failing)
  command = ("launch/tpu_vm.sh", "all", *ZONE, "--poll=0", *options, "--", *ARGUMENTS)
  ended = cluster.run(*command, TMPDIR=str(cluster.folder))
  steps = [
    next(step for text, step in STEPS.items() if text in call) for call in cluster.calls("gcloud")
  ]
  return ended, steps


def gcloud_calls(cluster, text: str) -> list[str]:
  return [call for call in cluster.calls("gcloud") if text in call]


def ssh(worker: str, command: str, node: str = "k4") -> str:
  quoted = command.replace("'", "'\\''")
  return (
    f"{TPUS} tpu-vm ssh {node} --worker={worker} '--command={quoted}' "
    "'--ssh-flag=-o ServerAliveInterval=30' '--ssh-flag=-o ServerAliveCountMax=4' --zone=us-west4-a"
  )


def test_dry_run_of_everything(cluster):
  command = ("launch/tpu_vm.sh", "all", *ZONE, "--spot", "--bucket=my-data", "--dry_run")
  ended = cluster.run(*command, "--project=p", "--", *ARGUMENTS, TMPDIR="/tmp")
  expected = [
    f"{TPUS} queued-resources create k4 --node-id=k4 --accelerator-type=v5litepod-64 "
    "--runtime-version=v2-alpha-tpuv5-lite --spot --zone=us-west4-a",
    DESCRIBE,
    "git -C launch/.. archive --format=tar.gz --output=/tmp/k4.tar.gz HEAD",
    f"{TPUS} tpu-vm scp /tmp/k4.tar.gz k4:vswin_jax.tar.gz --worker=all --zone=us-west4-a",
    ssh("all", f"bash -c '{UNPACK}'"),
    ssh("all", f"{WORKER} install my-data"),
    ssh("all", f"{WORKER} run {QUOTED}"),
    ssh("0", f"{WORKER} log 1"),
    ssh("0", STATUS),
    DELETE,
  ]
  gcloud = [line + " --project=p" if line.startswith("gcloud") else line for line in expected]
  assert (ended.returncode, ended.stderr) == (0, "")
  assert ended.stdout.splitlines() == gcloud
  assert cluster.calls() == []


@pytest.mark.parametrize(
  "command, options, expected",
  [
    (
      "create",
      ["--type=v6e-256", "--runtime=v2-alpha-tpuv6e", "--slices=2"],
      [
        f"{TPUS} queued-resources create k4 --node-count=2 --node-prefix=k4 "
        "--accelerator-type=v6e-256 --runtime-version=v2-alpha-tpuv6e --zone=us-west4-a"
      ],
    ),
    (
      "install",
      ["--slices=2"],
      [ssh("all", f"{WORKER} install", f"k4-{slice}") for slice in range(2)],
    ),
    (
      "run",
      ["--cache=gs://b/compiled", "--", *ARGUMENTS],
      [ssh("all", f"env JAX_COMPILATION_CACHE_DIR=gs://b/compiled {WORKER} run {QUOTED}")],
    ),
    ("log", ["--slices=2"], [ssh("0", f"{WORKER} log", "k4-0")]),
    ("stop", [], [ssh("0", f"{WORKER} stop")]),
    ("kill", [], [ssh("all", KILL)]),
    ("status", [], [DESCRIBE, ssh("0", STATUS)]),
    ("delete", [], [DELETE]),
  ],
)
def test_dry_runs_of_single_steps(cluster, command, options, expected):
  ended = cluster.run("launch/tpu_vm.sh", command, *ZONE, "--dry_run", *options)
  assert (ended.returncode, ended.stderr) == (0, "")
  assert ended.stdout.splitlines() == expected
  assert cluster.calls() == []


def test_a_run_that_ends_well_leaves_no_slice(cluster):
  waiting = ["-", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]
  ended, steps = everything(cluster, waiting, ["ended 0"])
  assert ended.returncode == 0
  assert steps == ["describe", *NEW[:2], "describe", *NEW[1:], "log", "status", "delete"]
  assert ended.stderr.splitlines() == [
    "launch: k4 is WAITING_FOR_RESOURCES",
    "launch: k4 is PROVISIONING",
  ]
  [unpacking] = gcloud_calls(cluster, "tar\\ -xzf")
  assert "--worker=all" in unpacking


def test_a_run_that_fails_is_started_again_on_all_workers(cluster):
  ended, steps = everything(cluster, ["-", "ACTIVE", "ACTIVE"], ["ended 134", "ended 0"])
  assert ended.returncode == 0
  assert steps == [
    "describe",
    *NEW,
    *("log", "status", "describe", "kill", "install", "run", "log", "status", "delete"),
  ]
  assert ended.stderr.splitlines() == [
    "launch: the run: ended 134",
    "launch: starting it again on all workers (1 of 3)",
  ]
  [kill] = gcloud_calls(cluster, "kill")
  assert "--worker=all" in kill


def test_restarts_are_bounded(cluster):
  states = ["-", "ACTIVE", "ACTIVE", "ACTIVE"]
  ended, steps = everything(cluster, states, ["ended 137"] * 2, "--restarts=1")
  assert ended.returncode == 137
  assert steps.count("run") == 2 and "delete" not in steps
  assert ended.stderr.splitlines()[-2:] == [
    "launch: started 2 times: giving up",
    f"launch: the run ended 137; {COSTS}",
  ]


@pytest.mark.parametrize("status", USER_ERRORS)
def test_wrong_commands_are_not_started_again(cluster, status):
  ended, steps = everything(cluster, ["-", "ACTIVE"], [f"ended {status}"])
  assert ended.returncode == status
  assert steps == ["describe", *NEW, "log", "status"]


def test_a_run_that_never_was_started_has_no_status(cluster):
  states = ["-", "ACTIVE", "ACTIVE"]
  ended, _ = everything(cluster, states, ["not started"], "--restarts=0")
  assert ended.returncode == 1
  assert ended.stderr.splitlines()[-1] == f"launch: the run: not started; {COSTS}"


@pytest.mark.parametrize("last_word", ["?", "ended 143", "ended 134"])
def test_a_slice_that_is_preempted_is_created_again(cluster, last_word):
  states = ["-", "ACTIVE", "SUSPENDING", "SUSPENDED", "ACTIVE"]
  # Deleted at once, and what is left of it once more.
  ended, steps = everything(cluster, states, [last_word, "ended 0"])
  assert ended.returncode == 0
  assert steps == [
    *("describe", *NEW, "log", "status", "describe"),
    *("delete", "describe", "delete", *NEW, "log", "status", "delete"),
  ]
  assert ended.stderr.splitlines() == [
    "launch: k4 is SUSPENDING",
    "launch: creating the slice again (1 of 20)",
  ]


def test_the_end_of_a_slice_may_be_seen_late(cluster):
  states = ["-", *["ACTIVE"] * 3, "SUSPENDED", "-", "ACTIVE"]
  ended, steps = everything(cluster, states, ["ended 143", "?", "?", "ended 0"])
  assert ended.returncode == 0
  assert steps.count("create") == 2 and steps.count("run") == 2
  # Nothing is read of a run that has ended.
  assert steps.count("log") == 2


def test_creations_are_bounded(cluster):
  states = ["-", "FAILED"] * 3
  ended, steps = everything(cluster, states, [], "--recreations=2")
  assert ended.returncode == 1
  assert steps.count("create") == 3
  assert ended.stderr.splitlines()[-1] == f"launch: created the slice 3 times; {COSTS}"


def test_a_run_that_was_asked_to_stop_stays_stopped(cluster):
  ended, steps = everything(cluster, ["-", *["ACTIVE"] * 12], ["ended 143"] * 11)
  assert ended.returncode == 143
  assert steps.count("run") == 1 and "delete" not in steps


def test_a_slice_whose_worker_stays_out_of_reach_is_kept(cluster):
  ended, steps = everything(cluster, ["-", *["ACTIVE"] * 12], ["?"] * 11)
  assert ended.returncode == 1
  assert steps == ["describe", *NEW, "log", *["status", "describe"] * 11]
  assert ended.stderr.splitlines() == [
    "launch: worker 0 can't be reached; see why, then start `all` again: "
    "launch/tpu_vm.sh status --name=k4 --zone=us-west4-a",
    f"launch: the slice is ACTIVE and is kept, with whatever runs on it; {COSTS}",
  ]


@pytest.mark.parametrize("between, starts", [("running", 1), ("ended 134", 2)])
def test_a_worker_may_be_out_of_reach_for_a_while(cluster, between, starts):
  # Twice as long as can be, each time counted anew.
  runs = [*["?"] * 10, between, *["?"] * 10, "ended 0"]
  ended, steps = everything(cluster, ["-", *["ACTIVE"] * 22], runs)
  assert ended.returncode == 0
  assert steps.count("create") == 1 and steps.count("run") == starts


def test_a_lost_connection_is_taken_up_again(cluster):
  ended, steps = everything(cluster, ["-", "ACTIVE", "ACTIVE"], ["running", "ended 0"])
  assert ended.returncode == 0
  assert steps == ["describe", *NEW, "log", "status", "describe", "log", "status", "delete"]


def test_the_same_command_goes_on_with_a_run(cluster):
  ended, steps = everything(cluster, ["ACTIVE", "ACTIVE"], ["running", "ended 0"])
  assert ended.returncode == 0
  assert steps == ["describe", "describe", "status", "log", "status", "delete"]


def test_a_slice_without_a_run_gets_one(cluster):
  ended, steps = everything(cluster, ["ACTIVE", "ACTIVE"], ["not started", "ended 0"])
  assert ended.returncode == 0
  assert steps == ["describe", "describe", "status", "kill", *NEW[2:], "log", "status", "delete"]


def test_a_worker_that_does_not_answer_is_not_one_without_a_run(cluster):
  states = ["ACTIVE"] * 4
  ended, steps = everything(cluster, states, ["?", "?", "running", "ended 0"])
  assert ended.returncode == 0
  assert "copy" not in steps and "run" not in steps and "kill" not in steps
  assert ended.stderr.splitlines() == [
    f"launch: looking at the run failed (try {number} of 5)" for number in (1, 2)
  ]


def test_a_slice_whose_state_can_not_be_read_is_left_alone(cluster):
  # Twice before the run is found, once while it is followed.
  states = ["?", "?", "ACTIVE", "ACTIVE", "?", "ACTIVE"]
  ended, steps = everything(cluster, states, ["running", "running", "ended 0"])
  assert ended.returncode == 0
  assert steps.count("delete") == 1 and steps[-1] == "delete"
  assert "create" not in steps
  assert ended.stderr.splitlines()[0] == (
    "launch: the state of k4 can't be read (try 1 of 5): ERROR: (gcloud) UNAVAILABLE: try later"
  )


def test_a_state_that_stays_unknown_ends_it(cluster):
  ended, steps = everything(cluster, ["-", "ACTIVE", *["?"] * 5], ["running"])
  assert ended.returncode == 1
  assert "delete" not in steps
  assert ended.stderr.splitlines()[-1] == f"launch: the state of the slice can't be read; {COSTS}"


def test_a_log_goes_on_where_it_was_cut(cluster):
  folder = cluster.folder / "logs"
  folder.mkdir()
  folder.joinpath("a").write_text("first\nsecond\nthi")
  folder.joinpath("b").write_text("third\nfourth\n")
  cluster.write("log_names", "a", "b")
  ended, _ = everything(cluster, ["-", "ACTIVE", "ACTIVE"], ["running", "ended 0"])
  assert ended.stdout == "first\nsecond\nthi\nthird\nfourth\n"
  first, second = gcloud_calls(cluster, "worker.sh\\ log")
  assert "log\\ 1 " in first and "log\\ 3 " in second


@pytest.mark.parametrize("failing", [" scp ", "worker.sh install", "worker.sh run"])
def test_steps_are_tried_again(cluster, failing):
  states = ["-", *["ACTIVE"] * 3]
  ended, steps = everything(cluster, states, ["ended 0"], failing=[failing] * 2)
  assert ended.returncode == 0
  name = {" scp ": "copy", "worker.sh install": "install", "worker.sh run": "run"}[failing]
  assert steps.count(name) == 3 and steps.count("create") == 1
  # A run on a part of the workers is ended before the next start.
  assert steps.count("kill") == (2 if name == "run" else 0)


def test_what_can_not_be_installed_ends_it(cluster):
  ended, steps = everything(cluster, ["-", *["ACTIVE"] * 6], [], failing=[" scp "] * 5)
  assert ended.returncode == 1
  assert steps.count("copy") == 5 and "delete" not in steps
  assert ended.stderr.splitlines()[-1] == f"launch: copying failed 5 times; {COSTS}"


def test_a_slice_that_is_lost_while_it_is_set_up_is_created_again(cluster):
  states = ["-", "ACTIVE", "SUSPENDED", "-", "ACTIVE"]
  ended, steps = everything(cluster, states, ["ended 0"], failing=["worker.sh install"])
  assert ended.returncode == 0
  assert steps.count("create") == 2 and steps.count("install") == 2


def test_what_can_not_be_created_ends_it(cluster):
  ended, steps = everything(cluster, ["-"] * 6, [], failing=[" create "] * 5)
  assert ended.returncode == 1
  assert ended.stderr.splitlines()[-1] == "error: the slice can't be created"
  assert steps.count("create") == 5


def test_a_slice_that_was_created_in_spite_of_an_error_is_used(cluster):
  states = ["-", "PROVISIONING", "ACTIVE"]
  ended, steps = everything(cluster, states, ["ended 0"], failing=[" create "])
  assert ended.returncode == 0
  assert steps.count("create") == 1


@pytest.mark.parametrize(
  "arguments, message",
  [
    ([], "which command? see --help"),
    (["al", *ZONE], "unknown command 'al'; see --help"),
    (["create"], "give --zone, as in --zone=us-west4-a"),
    (
      ["create", *ZONE, "--zones=a"],
      "unknown option '--zones=a'; arguments of the run come after --; see --help",
    ),
    (["create", *ZONE, "--slices=two"], "--slices must be a whole number, got 'two'"),
    (["create", *ZONE, "--slices=0"], "--slices must be at least 1, got 0"),
    (
      ["run", *ZONE],
      "give the arguments of the run after --, as in -- --config=... --workdir=gs://...",
    ),
  ],
)
def test_bad_commands_end_in_one_line(cluster, arguments, message):
  ended = cluster.run("launch/tpu_vm.sh", *arguments)
  assert (ended.returncode, ended.stdout, ended.stderr) == (1, "", f"error: {message}\n")


def worker(cluster, *arguments: str, **variables: str):
  return cluster.run("launch/tpu_vm_worker.sh", *arguments, USER="me", **variables)


@pytest.fixture
def python(cluster) -> None:
  """The interpreter on a worker."""
  folder = cluster.folder / "vswin_jax_environment" / "bin"
  folder.mkdir(parents=True)
  folder.joinpath("python").symlink_to(cluster.folder / "programs" / "python")


def status_when_ended(cluster) -> str:
  deadline = time.monotonic() + 20
  while (said := worker(cluster, "status").stdout) == "running\n":
    assert time.monotonic() < deadline
    time.sleep(0.02)
  return said


def test_worker_runs_to_the_end(cluster, python):
  assert worker(cluster, "status").stdout == "not started\n"
  cluster.answer("python", 'echo "$PWD"; echo "$JAX_COMPILATION_CACHE_DIR"; exit 134')
  assert worker(cluster, "run", *ARGUMENTS).returncode == 0
  assert status_when_ended(cluster) == "ended 134\n"
  root = pathlib.Path(__file__).parents[2]
  assert worker(cluster, "log").stdout == f"{root}\nmy runs/a/compilation_cache\n"
  [call] = cluster.calls()
  assert call.startswith(
    r"python -m vswin_jax.main --stop_status=143 --config=c.py --workdir=my\ runs/a "
  )


def test_worker_stops_a_run(cluster, python):
  cluster.answer(
    "python",
    """trap 'echo saved; exit ${3#--stop_status=}' TERM
    touch "$folder/training"
    while :; do sleep 0.02; done""",
  )
  worker(cluster, "run", *ARGUMENTS)
  while not (cluster.folder / "training").exists():
    time.sleep(0.02)
  assert worker(cluster, "status").stdout == "running\n"
  again = worker(cluster, "run", *ARGUMENTS)
  assert again.stderr == "error: a run is going on; stop or kill it first\n"
  follower = cluster.start("launch/tpu_vm_worker.sh", "log")
  assert worker(cluster, "stop").returncode == 0
  assert status_when_ended(cluster) == f"ended {128 + signal.SIGTERM}\n"
  output, _ = follower.communicate(timeout=20)
  assert output == "saved\nlaunch: stopped before its end\n"
  assert worker(cluster, "stop").stderr == "error: nothing is running\n"


def test_worker_kills_a_run(cluster, python):
  cluster.answer("python", 'trap "" TERM; echo $$ >"$folder/training"; sleep 60')
  worker(cluster, "run", *ARGUMENTS)
  while not (cluster.folder / "training").exists():
    time.sleep(0.02)
  assert worker(cluster, "kill").returncode == 0
  assert status_when_ended(cluster) == "ended 137\n"
  assert worker(cluster, "kill").returncode == 0


def test_worker_dry_runs(cluster):
  root = pathlib.Path(__file__).parents[2]
  environment = f"{cluster.folder}/vswin_jax_environment"
  cluster.answer("gcsfuse", "exit 0")
  ended = worker(cluster, "--dry_run", "install", "my-data")
  assert ended.stdout.splitlines() == [
    "python3 -m pip install --quiet --user uv",
    f"python3 -m uv venv --quiet --allow-existing --python=3.12 {environment}",
    f"python3 -m uv pip install --quiet --python={environment}/bin/python --editable "
    f"'{root}[tpu,gcs]'",
    "sudo install --directory --owner=me /mnt/my-data",
    "gcsfuse --implicit-dirs -o ro my-data /mnt/my-data",
  ]
  ended = worker(cluster, "--dry_run", "run", *ARGUMENTS)
  assert ended.stdout == (
    "env 'JAX_COMPILATION_CACHE_DIR=my runs/a/compilation_cache' "
    f"PYTHON={environment}/bin/python STATUS_FILE={cluster.folder}/.vswin_jax/status "
    f"nohup setsid {root}/launch/run_once.sh {QUOTED}\n"
  )
  assert cluster.calls() == []
