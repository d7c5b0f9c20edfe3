"""launch/README.md: its commands, files, exit statuses and computed numbers."""

import re
import shlex
import sys

from tests.launch.programs import ROOT
from vswin_jax.common.cli import TRANSIENT, UNEXPECTED, USER_ERRORS

PAGE = (ROOT / "launch" / "README.md").read_text()
TEXT = " ".join(PAGE.split())
STATUSES = (ROOT / "docs" / "many_hosts.md").read_text()


def commands() -> list[list[str]]:
  blocks = re.findall(r"^```bash\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
  lines = "".join(blocks).replace("\\\n", " ").splitlines()
  return [shlex.split(line) for line in lines]


def test_launchers_accept_the_commands(programs):
  seen = set()
  for words in commands():
    if words[0] == "sbatch":
      words = words[words.index("launch/slurm.sh") :]
    program = next((word for word in words[:2] if word.startswith("launch/")), None)
    if program is None:
      continue
    seen.add(program)
    if words[0] == "python":
      words[0] = sys.executable
    end = words.index("--") if "--" in words else len(words)
    ended = programs.run(*words[:end], "--dry_run", *words[end:])
    assert (ended.returncode, ended.stderr) == (0, ""), words
    assert ended.stdout
  assert seen == {
    *("launch/local.py", "launch/gpu_box.sh", "launch/slurm.sh"),
    *("launch/tpu_vm.sh", "launch/gke.py"),
  }
  assert programs.calls() == []


def test_named_files_exist():
  for name in re.findall(r"\b(?:launch|configs)/\w+\.\w+", PAGE):
    assert (ROOT / name).exists(), name


def test_exit_statuses_are_those_of_the_library():
  restarted = dict(re.findall(r"^\| ([\d, ]+) \|.*\| ([^|]+) \|$", STATUSES, re.MULTILINE))
  assert restarted[", ".join(map(str, USER_ERRORS))] == "no"
  assert restarted[str(UNEXPECTED)] == restarted[str(TRANSIENT)] == "yes"


def test_computed_numbers():
  peak = 64 * 197e12
  for number, computed in {
    r"(\d+) s is a lower bound": 240_436 * 30 * 2 * 3 * 88.1e9 / peak,
    r"FLOP, ([\d.]+) s\. \[": 19_796 * 4 * 3 * 2 * 88.1e9 / peak,
    r"that is ([\d,]+) s or": 260_232 * 496e3 * 8 / 1e9,
    r"s or ([\d,]+) s;": 260_232 * 532e3 * 8 / 1e9,
    r"clips/s take (\d+) such cores": 1000 / 54.8,
    r"of the bucket, (\d+) MB/s a host": 1000 * 0.496 / 16,
  }.items():
    [stated] = re.findall(number, TEXT)
    assert round(computed, 1 if "." in stated else 0) == float(stated.replace(",", "")), number
