"""TPU VM launcher, with `gcloud` replaced; and the script that it runs on the workers."""

import signal
import time

import pytest

from tests.launch.programs import ARGUMENTS, ROOT, words
from vswin_jax.common.cli import USER_ERRORS

LAUNCHER = "launch/tpu_vm.sh"
SLICE = ("--name=k4", "--zone=us-west4-a")
WORKER = "vswin_jax/launch/tpu_vm_worker.sh"

# States of the slice and of the run are read from files: "-" is a slice that does not exist, "?" an
# error of gcloud. The command named by a line of "failing" fails once.
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
esac
"""
# Texts of the calls of gcloud that change something.
STEPS = {
  "queued-resources create": "create",
  "queued-resources delete": "delete",
  "tpu-vm scp": "copy",
  "worker.sh install": "install",
  "worker.sh run": "run",
  "worker.sh log": "log",
  "worker.sh kill": "kill",
}
SET_UP = ["kill", "copy", "install", "run"]
NEW = ["create", *SET_UP]


def run_all(programs, states, runs, *options, failing=()):
  """Runs `all`; returns its status, the steps that it took, and its messages.

  Args:
    programs: the stand-ins.
    states: of the slice, each time that it is read.
    runs: states of the run, each time that it is read.
    options: of the launcher.
    failing: texts of the commands that fail.
  """
  programs.add("gcloud", GCLOUD)
  for name, lines in (("states", states), ("runs", runs), ("failing", failing)):
    (programs.folder / name).write_text("".join(f"{line}\n" for line in lines))
  command = (LAUNCHER, "all", *SLICE, "--poll=0", *options, "--", *ARGUMENTS)
  ended = programs.run(*command, TMPDIR=str(programs.folder))
  steps = [
    step
    for call in programs.calls("gcloud")
    for text, step in STEPS.items()
    if text in " ".join(call)
  ]
  return ended.returncode, steps, ended.stderr


def ssh(worker: str, *command: str, node: str = "k4") -> list[str]:
  return ["gcloud", "compute", "tpus", "tpu-vm", "ssh", node, f"--worker={worker}", *command]


def queued_resources(*command: str) -> list[str]:
  return ["gcloud", "compute", "tpus", "queued-resources", *command, "--zone=us-west4-a"]


def parsed(line: str) -> list[str]:
  """Returns the words of a command; those of ssh with the remote command, without options."""
  command = words(line)
  if "ssh" in command:
    [remote] = [word for word in command if word.startswith("--command=")]
    command = command[: command.index(remote)] + words(remote.removeprefix("--command="))
  return command


@pytest.mark.parametrize(
  "command, options, expected",
  [
    (
      "create",
      ["--type=v6e-256", "--runtime=v2-alpha-tpuv6e", "--slices=2", "--spot"],
      [
        queued_resources(
          *("create", "k4", "--node-count=2", "--node-prefix=k4", "--accelerator-type=v6e-256"),
          *("--runtime-version=v2-alpha-tpuv6e", "--spot"),
        )
      ],
    ),
    (
      "install",
      ["--slices=2", "--bucket=my-data"],
      [ssh("all", WORKER, "install", "my-data", node=f"k4-{slice}") for slice in range(2)],
    ),
    (
      "run",
      ["--cache=gs://b/c", "--", *ARGUMENTS],
      [ssh("all", "env", "JAX_COMPILATION_CACHE_DIR=gs://b/c", WORKER, "run", *ARGUMENTS)],
    ),
    ("log", ["--slices=2"], [ssh("0", WORKER, "log", node="k4-0")]),
    ("stop", [], [ssh("0", WORKER, "stop")]),
    ("kill", [], [ssh("all", "bash", "-c", f"if [[ -x {WORKER} ]]; then {WORKER} kill; fi")]),
    (
      "status",
      [],
      [
        queued_resources("describe", "k4", "--format=value(state.state)"),
        ssh(
          *("0", "bash", "-c"),
          f"if [[ -x {WORKER} ]]; then {WORKER} status; else echo not started; fi",
        ),
      ],
    ),
    ("delete", [], [queued_resources("delete", "k4", "--force", "--quiet")]),
  ],
)
def test_commands(programs, command, options, expected):
  ended = programs.run(LAUNCHER, command, *SLICE, "--dry_run", *options)
  assert (ended.returncode, ended.stderr) == (0, "")
  assert [parsed(line) for line in ended.stdout.splitlines()] == expected
  assert programs.calls() == []


def test_dry_run_of_all(programs):
  ended = programs.run(LAUNCHER, "all", *SLICE, "--project=p", "--dry_run", "--", *ARGUMENTS)
  assert (ended.returncode, ended.stderr) == (0, "")
  gcloud = [line for line in ended.stdout.splitlines() if line.startswith("gcloud")]
  assert len(gcloud) == 8
  assert all("--project=p" in words(line) for line in gcloud)
  assert programs.calls() == []


def test_a_run_that_ends_well_leaves_no_slice(programs):
  states = ["-", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]
  status, steps, _ = run_all(programs, states, ["not started", "ended 0"])
  assert status == 0
  assert steps == [*NEW, "log", "delete"]
  [unpacking] = [call for call in programs.calls("gcloud") if "xzf" in " ".join(call)]
  assert "--worker=all" in unpacking


def test_a_failed_run_is_restarted_on_all_workers(programs):
  runs = ["not started", "ended 134", "ended 134", "ended 0"]
  status, steps, _ = run_all(programs, ["-", *["ACTIVE"] * 4], runs)
  assert status == 0
  assert steps == [*NEW, "log", *SET_UP, "log", "delete"]


def test_restarts_are_bounded(programs):
  runs = ["not started", *["ended 137"] * 3]
  status, steps, errors = run_all(programs, ["-", *["ACTIVE"] * 5], runs, "--restarts=1")
  assert status == 137
  assert steps.count("run") == 2 and "delete" not in steps
  # The slice that is kept costs money.
  assert "launch/tpu_vm.sh delete --name=k4 --zone=us-west4-a" in errors


@pytest.mark.parametrize("status", USER_ERRORS)
def test_wrong_commands_are_not_restarted(programs, status):
  ended, steps, _ = run_all(programs, ["-", "ACTIVE"], ["not started", f"ended {status}"])
  assert ended == status
  assert steps == [*NEW, "log"]


def test_a_run_that_was_not_started_is_a_failure(programs):
  runs = ["not started", "not started"]
  status, steps, _ = run_all(programs, ["-", "ACTIVE", "ACTIVE"], runs, "--restarts=0")
  assert status == 1
  assert "delete" not in steps


@pytest.mark.parametrize("last_run", ["?", "ended 143", "ended 134"])
def test_a_preempted_slice_is_created_again(programs, last_run):
  states = ["-", "ACTIVE", "SUSPENDING", "SUSPENDED", "ACTIVE"]
  runs = ["not started", last_run, "not started", "ended 0"]
  status, steps, _ = run_all(programs, states, runs)
  assert status == 0
  # Deleted at once, and again when its state is read.
  assert steps == [*NEW, "log", "delete", "delete", *NEW, "log", "delete"]


def test_a_preemption_may_be_noticed_late(programs):
  states = ["-", *["ACTIVE"] * 3, "SUSPENDED", "-", "ACTIVE"]
  runs = ["not started", "ended 143", "?", "?", "not started", "ended 0"]
  status, steps, _ = run_all(programs, states, runs)
  assert status == 0
  assert steps.count("create") == steps.count("run") == steps.count("log") == 2


def test_recreations_are_bounded(programs):
  status, steps, _ = run_all(programs, ["-", "FAILED"] * 3, [], "--recreations=2")
  assert status == 1
  assert steps.count("create") == 3


def test_a_run_that_was_stopped_stays_stopped(programs):
  runs = ["not started", *["ended 143"] * 11]
  status, steps, _ = run_all(programs, ["-", *["ACTIVE"] * 12], runs)
  assert status == 143
  assert steps == [*NEW, "log"]


def test_a_slice_whose_worker_does_not_answer_is_kept(programs):
  runs = ["not started", *["?"] * 11]
  status, steps, _ = run_all(programs, ["-", *["ACTIVE"] * 12], runs)
  assert status == 1
  assert steps == [*NEW, "log"]


def test_a_worker_may_not_answer_for_a_while(programs):
  runs = ["not started", *["?"] * 10, "running", *["?"] * 10, "ended 0"]
  status, steps, _ = run_all(programs, ["-", *["ACTIVE"] * 22], runs)
  assert status == 0
  assert steps.count("run") == 1 and steps.count("log") == 2


def test_all_follows_a_run_that_goes_on(programs):
  status, steps, _ = run_all(programs, ["ACTIVE", "ACTIVE"], ["running", "ended 0"])
  assert status == 0
  assert steps == ["log", "delete"]


def test_a_slice_without_a_run_is_used(programs):
  status, steps, _ = run_all(programs, ["ACTIVE", "ACTIVE"], ["not started", "ended 0"])
  assert status == 0
  assert steps == [*SET_UP, "log", "delete"]


def test_a_worker_that_does_not_answer_may_have_a_run(programs):
  status, steps, _ = run_all(programs, ["ACTIVE"] * 4, ["?", "?", "running", "ended 0"])
  assert status == 0
  assert steps == ["log", "delete"]


def test_a_slice_of_unknown_state_is_not_created_again(programs):
  # Unknown before the run is found, and while it is followed.
  states = ["?", "?", "ACTIVE", "ACTIVE", "?", "ACTIVE"]
  status, steps, _ = run_all(programs, states, ["running", "running", "ended 0"])
  assert status == 0
  assert steps == ["log", "log", "delete"]


def test_a_state_that_stays_unknown_is_an_error(programs):
  states = ["-", "ACTIVE", *["?"] * 5]
  status, steps, errors = run_all(programs, states, ["not started", "running"])
  assert status == 1
  assert "delete" not in steps and "UNAVAILABLE" in errors


@pytest.mark.parametrize(
  "command, step", [(" scp ", "copy"), ("worker.sh install", "install"), ("worker.sh run", "run")]
)
def test_failed_commands_are_tried_again(programs, command, step):
  states = ["-", *["ACTIVE"] * 3]
  status, steps, _ = run_all(programs, states, ["not started", "ended 0"], failing=[command] * 2)
  assert status == 0
  assert steps.count(step) == 3 and steps.count("create") == 1
  # A run on a part of the workers is ended before the next start.
  assert steps.count("kill") == (3 if step == "run" else 1)


def test_a_command_that_keeps_failing_is_an_error(programs):
  states = ["-", *["ACTIVE"] * 6]
  status, steps, _ = run_all(programs, states, ["not started"], failing=[" scp "] * 5)
  assert status == 1
  assert steps.count("copy") == 5 and "delete" not in steps


def test_a_slice_that_is_lost_during_set_up_is_created_again(programs):
  states = ["-", "ACTIVE", "SUSPENDED", "-", "ACTIVE"]
  runs = ["not started", "not started", "ended 0"]
  status, steps, _ = run_all(programs, states, runs, failing=["worker.sh install"])
  assert status == 0
  assert steps.count("create") == 2 and steps.count("install") == 2


def test_a_slice_that_can_not_be_created_is_an_error(programs):
  status, steps, _ = run_all(programs, ["-"] * 6, [], failing=[" create "] * 5)
  assert status == 1
  assert steps == ["create"] * 5


def test_a_slice_that_was_created_despite_an_error_is_used(programs):
  states = ["-", "PROVISIONING", "ACTIVE"]
  status, steps, _ = run_all(programs, states, ["not started", "ended 0"], failing=[" create "])
  assert status == 0
  assert steps.count("create") == 1


@pytest.mark.parametrize(
  "arguments, message",
  [
    ([], "which command?"),
    (["al", *SLICE], "unknown command 'al'"),
    (["create"], "give --zone"),
    (["create", *SLICE, "--zones=a"], "unknown option '--zones=a'"),
    (["create", *SLICE, "--slices=two"], "--slices must be a whole number, got 'two'"),
    (["create", *SLICE, "--slices=0"], "--slices must be at least 1, got 0"),
    (["run", *SLICE], "give the arguments of the run after --"),
  ],
)
def test_invalid_arguments(programs, arguments, message):
  ended = programs.run(LAUNCHER, *arguments)
  assert ended.returncode == 1 and message in ended.stderr
  assert programs.calls() == []


def run_worker(programs, *arguments: str):
  return programs.run("launch/tpu_vm_worker.sh", *arguments, USER="me")


@pytest.fixture
def python(programs) -> str:
  """The name of the stand-in for the interpreter on a worker."""
  folder = programs.folder / "vswin_jax_environment" / "bin"
  folder.mkdir(parents=True)
  folder.joinpath("python").symlink_to(programs.folder / "programs" / "worker_python")
  return "worker_python"


def wait_for_end(programs) -> str:
  deadline = time.monotonic() + 20
  while (status := run_worker(programs, "status").stdout) == "running\n":
    assert time.monotonic() < deadline
    time.sleep(0.02)
  return status


def test_worker_runs_to_the_end(programs, python):
  assert run_worker(programs, "status").stdout == "not started\n"
  programs.add(python, 'echo "$PWD"; exit 134')
  assert run_worker(programs, "run", *ARGUMENTS).returncode == 0
  assert wait_for_end(programs) == "ended 134\n"
  assert str(ROOT) in run_worker(programs, "log").stdout
  [call] = programs.calls()
  assert call == [python, "-m", "vswin_jax.main", "--stop_status=143", *ARGUMENTS]


def start_training(programs, python, trap: str) -> None:
  programs.add(python, f'trap {trap} TERM; touch "$folder/training"; while :; do sleep 0.02; done')
  run_worker(programs, "run", *ARGUMENTS)
  while not (programs.folder / "training").exists():
    time.sleep(0.02)
  assert run_worker(programs, "status").stdout == "running\n"


def test_worker_stops_a_run(programs, python):
  start_training(programs, python, "'echo saved; exit ${3#--stop_status=}'")
  assert run_worker(programs, "run", *ARGUMENTS).returncode == 1
  follower = programs.start("launch/tpu_vm_worker.sh", "log")
  assert run_worker(programs, "stop").returncode == 0
  assert wait_for_end(programs) == f"ended {128 + signal.SIGTERM}\n"
  output, _ = follower.communicate(timeout=20)
  assert "saved" in output
  assert run_worker(programs, "stop").returncode == 1


def test_worker_kills_a_run(programs, python):
  start_training(programs, python, '""')
  assert run_worker(programs, "kill").returncode == 0
  assert wait_for_end(programs) == "ended 137\n"
  assert run_worker(programs, "kill").returncode == 0


def test_worker_installs_and_mounts(programs):
  environment = f"{programs.folder}/vswin_jax_environment"
  programs.add("gcsfuse", "exit 0")
  ended = run_worker(programs, "--dry_run", "install", "my-data")
  commands = [words(line) for line in ended.stdout.splitlines()]
  assert [command[:4] for command in commands] == [
    ["python3", "-m", "pip", "install"],
    ["python3", "-m", "uv", "venv"],
    ["python3", "-m", "uv", "pip"],
    ["sudo", "install", "--directory", "--owner=me"],
    ["gcsfuse", "--implicit-dirs", "-o", "ro"],
  ]
  assert commands[2][-2:] == ["--editable", f"{ROOT}[tpu,gcs]"]
  assert f"--python={environment}/bin/python" in commands[2]
  assert commands[4][-2:] == ["my-data", "/mnt/my-data"]
  assert programs.calls() == []
