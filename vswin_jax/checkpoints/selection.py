"""Checkpoint selection: the newest complete, undamaged step of a folder."""

import os
from collections.abc import Callable

import jax
from orbax.checkpoint import v1 as ocp

from vswin_jax.checkpoints import integrity
from vswin_jax.checkpoints.errors import (
  CheckpointError,
  DamagedError,
  in_all_processes,
  root_cause,
  storage_error,
)
from vswin_jax.checkpoints.integrity import Contents
from vswin_jax.checkpoints.metadata import CheckpointMetadata
from vswin_jax.checkpoints.orbax_workarounds import without_orbax_logs
from vswin_jax.common.logging import logger
from vswin_jax.common.paths import AnyPath, file_path
from vswin_jax.distributed.consistency import broadcast_from_first

_NAMES = ocp.path.step.standard_name_format()


def complete_steps(directory: str | os.PathLike) -> list[int]:
  """Returns the steps of the complete checkpoints in a folder, sorted; [] if there is no folder.

  Does not read arrays; in a run of several processes, each looks for itself.

  Raises:
    CheckpointError: the folder can't be read.
  """
  directory = file_path(directory)
  try:
    with without_orbax_logs():
      return sorted(found.step for found in _NAMES.find_all(directory))
  except Exception as error:
    raise storage_error(f"can't read {directory}: {root_cause(error)}", error) from error


def newest_step(directory: str | os.PathLike) -> int | None:
  """Returns the step of the newest complete checkpoint; None if there is none."""
  return max(complete_steps(directory), default=None)


def path_of(directory: AnyPath, step: int) -> AnyPath:
  return directory / _NAMES.build_name(step)


def read_metadata(directory: str | os.PathLike) -> CheckpointMetadata:
  """Returns the metadata of the newest complete checkpoint with undamaged metadata.

  Raises:
    CheckpointError: there is none, or another program wrote it.
  """
  directory, damaged = file_path(directory), {}
  for step in reversed(_existing_steps(directory)):
    try:
      return integrity.read_metadata(path_of(directory, step))[0]
    except DamagedError as error:
      damaged[step] = str(error)
  raise _all_damaged(directory, damaged)


def load_newest(
  directory: AnyPath, shapes_for: Callable[[int, Contents], object]
) -> tuple[int, object, CheckpointMetadata, list[int]]:
  """Loads the newest undamaged checkpoint; all processes of a run call this together.

  Args:
    shapes_for: takes a step and the contents of its checkpoint, and returns the arrays to load as
      a tree of `jax.ShapeDtypeStruct`s with shardings.

  Returns:
    The step, the arrays, the metadata, and the steps of newer checkpoints, which are damaged.

  Raises:
    CheckpointError: `shapes_for` raised it, there is no checkpoint, or all are damaged.
  """
  damaged = {}
  steps = in_all_processes(lambda: _existing_steps(directory))
  # Process 0 decides, because other hosts may see an older state of the folder.
  while (step := broadcast_from_first(max(steps, default=-1))) >= 0:
    steps = [other for other in steps if other < step]
    path = path_of(directory, step)

    def load(step=step, path=path):
      contents = integrity.read_contents(path)
      shapes = shapes_for(step, contents)
      return contents, shapes, integrity.load_arrays(path, contents, shapes)

    try:
      with without_orbax_logs():
        contents, shapes, loaded = in_all_processes(load)
        integrity.check_arrays(contents, loaded)
    except DamagedError as error:
      damaged[step] = str(error)
      logger.warning("the checkpoint of step %d in %s is damaged: %s", step, directory, error)
      continue
    if damaged:
      logger.warning("using step %d of %s, the newest undamaged checkpoint", step, directory)
    arrays = jax.tree.map(lambda leaf, shape: leaf.astype(shape.dtype), loaded, shapes)
    return step, arrays, contents.metadata, list(damaged)
  raise _all_damaged(directory, damaged)


def _existing_steps(directory: AnyPath) -> list[int]:
  """Returns the steps of the complete checkpoints; raises CheckpointError if there are none."""
  steps = complete_steps(directory)
  if not steps:
    raise CheckpointError(
      f"no complete checkpoint in {directory}; expected a workdir of vswin_jax.main, or a folder "
      "that vswin_jax.convert wrote"
    )
  return steps


def _all_damaged(directory: AnyPath, damaged: dict[int, str]) -> CheckpointError:
  reasons = "; ".join(f"step {step}: {reason}" for step, reason in list(damaged.items())[:3])
  return CheckpointError(
    f"all {len(damaged)} checkpoints in {directory} are damaged: {reasons}. Restore one from a "
    "backup, or start a new run in another folder"
  )


def check_fit(directory: AnyPath, step: int, saved: dict, expected: dict) -> None:
  """Checks that saved and expected arrays have the same paths and shapes.

  Raises:
    CheckpointError: they differ.
  """

  def describe(leaves, path):
    return str(list(leaves[path].shape)) if path in leaves else "absent"

  differences = [
    f"{path} is {describe(saved, path)}, expected {describe(expected, path)}"
    for path in sorted(saved.keys() | expected.keys())
    if describe(saved, path) != describe(expected, path)
  ]
  if differences:
    raise CheckpointError(
      f"step {step} in {directory} does not fit the model in {len(differences)} places: "
      f"{'; '.join(differences[:3])}. Use the config of that model, or name another checkpoint"
    )
