"""Prints how far runs of several processes differ from one: `python -m tests.tables.layouts`."""

import os
import pathlib
import signal
import tempfile

import numpy as np

from tests.helpers.process_runs import (
  process_numbers,
  run,
  start,
  wait_for,
)
from tests.helpers.runs import (
  final_arrays,
  metrics,
)
from tests.helpers.tiny_motion import prepare

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
        reference = reference or _values(workdir)
        _print_row(f"{layout[0]} x {layout[1]} | {fsdp}", workdir, reference)
    workdir = folder / "interrupted"
    _run_interrupted(folder, workdir)
    _print_row("4 x 1, then 2 x 2, then 1 x 4 | 4, then 2, then 1", workdir, reference)


def _run_interrupted(data_dir: pathlib.Path, workdir: pathlib.Path) -> None:
  """Runs with two stops, each time resuming with fewer processes."""
  for layout, fsdp, step in (((4, 1), 4, 3), ((2, 2), 2, 6)):
    process = start(data_dir, workdir, layout, f"--config.mesh.fsdp={fsdp}")
    wait_for(workdir / "checkpoints" / str(step), process)
    os.kill(process_numbers(workdir)[layout[0] - 1], signal.SIGTERM)
    output, _ = process.communicate(timeout=240)
    assert "asked to stop: saved step" in output, output
  assert "resuming from step" in run(data_dir, workdir, (1, 4))


def _print_row(layout: str, workdir: pathlib.Path, reference: list[dict]) -> None:
  differences = [
    f"{_difference(ours, theirs):.1e}" for ours, theirs in zip(_values(workdir), reference)
  ]
  print(f"| {layout} | {' | '.join(differences)} |", flush=True)


def _values(workdir: pathlib.Path) -> list[dict]:
  """Returns the losses, the validation scores and the final parameters of a run."""
  lines = metrics(workdir)
  return [
    {line["step"]: line["train/loss"] for line in lines if "train/loss" in line},
    {line["step"]: line["validation/top1"] for line in lines if "validation/top1" in line},
    {k: v for k, v in final_arrays(workdir).items() if k.startswith("params.")},
  ]


def _difference(ours: dict, theirs: dict) -> float:
  """Returns the largest difference, relative to the largest value of each entry."""
  assert ours.keys() == theirs.keys()
  return max(
    float(np.abs(np.asarray(ours[key], np.float64) - theirs[key]).max() / np.abs(theirs[key]).max())
    for key in theirs
    if np.abs(theirs[key]).max() > 0
  )


if __name__ == "__main__":
  main()
