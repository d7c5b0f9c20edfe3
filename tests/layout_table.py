"""Prints how far runs on several processes are from one process, step by step.

python -m tests.layout_table
"""

import pathlib
import tempfile

import numpy as np

from tests.test_experiment import final_arrays, metrics
from tests.test_several_processes import run
from tests.tiny_motion import prepare

LAYOUTS = ((1, 4), (2, 2), (4, 1))
GROUPS = (1, 2, 4)


def main():
  print("| processes x devices | fsdp | worst loss | worst validation score | worst parameter |")
  print("|---|---|---|---|---|")
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    prepare(folder)
    reference = None
    for layout in LAYOUTS:
      for fsdp in GROUPS:
        workdir = folder / f"{layout}_{fsdp}"
        run(folder, workdir, layout, f"--config.mesh.fsdp={fsdp}")
        values = _values(workdir)
        reference = reference or values
        errors = [f"{_difference(ours, theirs):.1e}" for ours, theirs in zip(values, reference)]
        print(f"| {layout[0]} x {layout[1]} | {fsdp} | {' | '.join(errors)} |", flush=True)


def _values(workdir: pathlib.Path) -> list[dict]:
  """Losses, validation scores and final parameters of a run."""
  lines = metrics(workdir)
  return [
    {line["step"]: line["train/loss"] for line in lines if "train/loss" in line},
    {line["step"]: line["validation/top1"] for line in lines if "validation/top1" in line},
    {k: v for k, v in final_arrays(workdir).items() if k.startswith("params.")},
  ]


def _difference(ours: dict, theirs: dict) -> float:
  """The largest difference relative to the largest value of each entry."""
  assert ours.keys() == theirs.keys()
  return max(
    float(np.abs(np.asarray(ours[key], np.float64) - theirs[key]).max() / np.abs(theirs[key]).max())
    for key in theirs
    if np.abs(theirs[key]).max() > 0
  )


if __name__ == "__main__":
  main()
