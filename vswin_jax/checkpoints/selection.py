"""Which of the checkpoints in a folder is read: the newest that is complete and not damaged."""

import gc
import os
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from vswin_jax.checkpoints import integrity
from vswin_jax.checkpoints.integrity import (
  CheckpointError,
  Contents,
  DamagedError,
  failure,
  in_words,
)
from vswin_jax.common.paths import AnyPath, file_path
from vswin_jax.common.progress import logger

_NAMES = ocp.path.step.standard_name_format()


def complete_steps(directory: str | os.PathLike) -> list[int]:
  """Steps of the complete checkpoints in a folder, sorted: none if there is no such folder.

  Looks at names alone and waits for no other process.

  Raises:
    CheckpointError: the folder can't be read.
  """
  directory = file_path(directory)
  try:
    return sorted(found.step for found in _NAMES.find_all(directory))
  except Exception as error:
    raise failure(f"can't read {directory}: {in_words(error)}", error) from error


def newest_step(directory: str | os.PathLike) -> int | None:
  """Step of the newest complete checkpoint in a folder; see `complete_steps`."""
  return max(complete_steps(directory), default=None)


def existing_steps(directory: AnyPath) -> list[int]:
  """Steps of the complete checkpoints of a folder in which there must be some."""
  steps = complete_steps(directory)
  if steps:
    return steps
  # In a bucket there are no folders without files.
  if directory.is_dir():
    raise CheckpointError(f"no complete checkpoint in {directory}")
  raise CheckpointError(
    f"no checkpoints in {directory}; expected a run of vswin_jax.main, or what "
    "vswin_jax.convert makes of a file"
  )


def path_of(directory: AnyPath, step: int) -> AnyPath:
  return directory / _NAMES.build_name(step)


def newest_whole(
  directory: AnyPath, prepare: Callable[[int, Contents], object]
) -> tuple[int, object, Contents, list[int]]:
  """Loads from the newest checkpoint that is not damaged; all processes take the same.

  Args:
    prepare: from a step and what the checkpoint says about itself to the shapes to load.

  Returns:
    The step, the arrays, what the checkpoint says about itself, and the steps of newer ones, which
    are damaged.

  Raises:
    CheckpointError: as `prepare` does, there is none, or all are damaged.
  """
  with integrity.quiet():
    return _newest_whole(directory, prepare)


def _newest_whole(directory: AnyPath, prepare: Callable):
  damaged = {}
  for step in _steps_to_try(directory):
    path = path_of(directory, step)

    def read(step=step, path=path):
      contents = integrity.read_contents(path)
      wanted = prepare(step, contents)
      return integrity.load_arrays(path, contents, wanted), wanted, contents

    try:
      loaded, wanted, contents = integrity.together(read)
      integrity.check_arrays(contents, loaded)
    except DamagedError as error:
      damaged[step] = str(error)
      logger.warning("the checkpoint of step %d in %s is damaged: %s", step, directory, error)
      # What was begun to be read is dropped, and complains, before the end of the context.
      gc.collect()
      continue
    if damaged:
      logger.warning("step %d of %s is the newest that is whole; using it", step, directory)
    arrays = jax.tree.map(
      lambda leaf, shape: leaf if leaf.dtype == shape.dtype else leaf.astype(shape.dtype),
      loaded,
      wanted,
    )
    return step, arrays, contents, list(damaged)
  raise none_whole(directory, damaged)


def none_whole(directory: AnyPath, damaged: dict[int, str]) -> CheckpointError:
  reasons = "; ".join(f"step {step}: {reason}" for step, reason in list(damaged.items())[:3])
  return CheckpointError(
    f"none of the {len(damaged)} checkpoints in {directory} can be read: {reasons}. Restore "
    "one from a copy, or start anew in another folder"
  )


def _steps_to_try(directory: AnyPath) -> list[int]:
  """Newest first, as process 0 sees them: other hosts may be shown an older state."""
  steps = integrity.together(lambda: existing_steps(directory))[::-1]
  if jax.process_count() == 1:
    return steps
  count = int(multihost_utils.broadcast_one_to_all(np.int32(len(steps))))
  own = np.zeros(count, np.int32)
  own[: len(steps)] = steps[:count]
  return [int(step) for step in multihost_utils.broadcast_one_to_all(own)]


def check_fit(directory: AnyPath, step: int, saved: dict, expected: dict) -> None:
  """Raises CheckpointError unless both hold arrays of the same shapes under the same paths."""

  def describe(leaves, path):
    return str(list(leaves[path].shape)) if path in leaves else "absent"

  differences = [
    f"{path} is {describe(saved, path)}, expected {describe(expected, path)}"
    for path in sorted(saved.keys() | expected.keys())
    if describe(saved, path) != describe(expected, path)
  ]
  if differences:
    raise CheckpointError(
      f"step {step} in {directory} does not fit the model that was asked for in "
      f"{len(differences)} places: {'; '.join(differences[:3])}. Ask for the model it holds, or "
      "name another checkpoint"
    )
