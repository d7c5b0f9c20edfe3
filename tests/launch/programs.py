"""Stand-ins for the programs of clusters, which record their calls and do what a test says."""

import os
import pathlib
import shlex
import subprocess

ROOT = pathlib.Path(__file__).parents[2]
# Arguments of a run, some with characters that are special to shells.
ARGUMENTS = ("--config=c.py", "--workdir=my runs/a", "--config.model.num_heads=(1,1,2,2)", "$'d")

_NAMES = ("gcloud", "git", "kubectl", "scancel", "scontrol", "srun")
_PROGRAM = """#!/usr/bin/env bash
set -u
folder={folder}
name={name}
# How many times it was called before.
call=$(grep --count "^$name " "$folder/calls" || true)
# In one piece, since others are called at the same time.
printf -v arguments ' %q' "$@"
echo "$name$arguments" >>"$folder/calls"
# take FILE: the next line of a file of answers.
take() {{ head -n 1 "$folder/$1"; sed -i 1d "$folder/$1"; }}
{body}
"""


class FakePrograms:
  """Programs in a folder that is the first on the PATH."""

  def __init__(self, folder: pathlib.Path):
    self.folder = folder
    (folder / "programs").mkdir()
    (folder / "calls").touch()
    for name in _NAMES:
      self.add(name, "exit 0")

  def add(self, name: str, body: str) -> str:
    """Adds a program of shell commands, which may use $call, $folder and `take`."""
    path = self.folder / "programs" / name
    path.write_text(_PROGRAM.format(folder=shlex.quote(str(self.folder)), name=name, body=body))
    path.chmod(0o755)
    return str(path)

  def calls(self, name: str = "") -> list[list[str]]:
    """Returns the calls of a program, or of all, as words."""
    lines = (self.folder / "calls").read_text().splitlines()
    return [words(line) for line in lines if line.startswith(name)]

  def environment(self, **variables: str) -> dict[str, str]:
    kept = {
      name: value
      for name, value in os.environ.items()
      if not name.startswith(("SLURM_", "JAX_", "CUDA_"))
    }
    path = f"{self.folder / 'programs'}:{os.environ['PATH']}"
    return {**kept, "PATH": path, "HOME": str(self.folder), **variables}

  def start(self, *command: str, **variables: str) -> subprocess.Popen:
    return subprocess.Popen(
      command,
      cwd=ROOT,
      env=self.environment(**variables),
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )

  def run(self, *command: str, **variables: str) -> subprocess.CompletedProcess:
    process = self.start(*command, **variables)
    output, errors = process.communicate(timeout=60)
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def words(line: str) -> list[str]:
  """Returns the words of a command that was printed for bash."""
  ended = subprocess.run(
    ["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, text=True, check=True
  )
  return ended.stdout.split("\0")[:-1]
