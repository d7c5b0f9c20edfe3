"""Programs of clusters that note how they are called and answer as a test says."""

import os
import pathlib
import shlex
import subprocess

ROOT = pathlib.Path(__file__).parents[2]
_PROGRAMS = ("docker", "gcloud", "git", "kubectl", "scancel", "scontrol", "srun", "xpk")
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


class Cluster:
  """A folder of such programs, first on the PATH."""

  def __init__(self, folder: pathlib.Path):
    self.folder = folder
    (folder / "programs").mkdir()
    (folder / "calls").touch()
    for name in _PROGRAMS:
      self.answer(name, "exit 0")

  def answer(self, name: str, body: str) -> None:
    """What a program does: shell commands that may use $call, $folder and `take`."""
    path = self.folder / "programs" / name
    path.write_text(_PROGRAM.format(folder=shlex.quote(str(self.folder)), name=name, body=body))
    path.chmod(0o755)

  def write(self, name: str, *lines: str) -> None:
    (self.folder / name).write_text("".join(f"{line}\n" for line in lines))

  def calls(self, name: str = "") -> list[str]:
    lines = (self.folder / "calls").read_text().splitlines()
    return [line for line in lines if line.startswith(name)]

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
