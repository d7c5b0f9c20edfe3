"""Commands of the page are accepted, and what it computes is right."""

import re
import shlex
import sys

from tests.launch.shell import ROOT
from vswin_jax.common.cli import TRANSIENT, UNEXPECTED, USER_ERRORS

PAGE = (ROOT / "launch" / "README.md").read_text()


def commands() -> list[list[str]]:
  blocks = re.findall(r"^```bash\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
  lines = "".join(blocks).replace("\\\n", " ").splitlines()
  return [shlex.split(line) for line in lines]


def test_launchers_take_the_commands(cluster):
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
    ended = cluster.run(*words[:end], "--dry_run", *words[end:])
    assert (ended.returncode, ended.stderr) == (0, ""), words
    assert ended.stdout
  assert seen == {
    *("launch/local.py", "launch/gpu_box.sh", "launch/slurm.sh"),
    *("launch/tpu_vm.sh", "launch/gke.py"),
  }
  assert cluster.calls() == []


def test_files_that_are_named_exist():
  for name in re.findall(r"\b(?:launch|configs)/\w+\.\w+", PAGE):
    assert (ROOT / name).exists(), name


def test_statuses_are_those_of_the_library():
  said = dict(re.findall(r"^\| ([\d, ]+) \|.*\| ([^|]+) \|$", PAGE, re.MULTILINE))
  assert said[", ".join(map(str, USER_ERRORS))] == "ends everything at once"
  assert said[str(UNEXPECTED)] == said[str(TRANSIENT)] == "all are started again"


def test_what_is_computed():
  peak = 64 * 197e12
  for number, computed in {
    r"(\d+) s is what can't be undercut": 240_436 * 30 * 2 * 3 * 88.1e9 / peak,
    r"FLOP, ([\d.]+) s\. Which": 19_796 * 4 * 3 * 2 * 88.1e9 / peak,
    r"that is ([\d,]+) s or": 260_232 * 496e3 * 8 / 1e9,
    r"s or ([\d,]+) s;": 260_232 * 532e3 * 8 / 1e9,
    r"clips/s take (\d+) such cores": 1000 / 54.8,
    r"of the bucket, (\d+) MB/s a host": 1000 * 0.496 / 16,
  }.items():
    [said] = re.findall(number, PAGE)
    assert round(computed, 1 if "." in said else 0) == float(said.replace(",", "")), number
