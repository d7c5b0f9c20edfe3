"""Checkpoints of a run: saved in the background, atomically, and restored.

Orbax writes a checkpoint under a temporary name and renames it when it is complete (in a bucket, it
adds a marker file). A run that was killed while saving resumes from the checkpoint before, and so
does one whose newest checkpoint was damaged later.
"""

import concurrent.futures
import contextlib
import dataclasses
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import path as orbax_path
from orbax.checkpoint import v1 as ocp

from vswin_jax.checkpoints import integrity
from vswin_jax.checkpoints.errors import (
  CheckpointError,
  in_all_processes,
  root_cause,
  storage_error,
)
from vswin_jax.checkpoints.integrity import Contents, arrays_of
from vswin_jax.checkpoints.metadata import CheckpointMetadata
from vswin_jax.checkpoints.orbax_workarounds import saving_context, without_orbax_logs
from vswin_jax.checkpoints.selection import (
  check_fit,
  complete_steps,
  load_newest,
  path_of,
)
from vswin_jax.common.logging import logger
from vswin_jax.common.paths import AnyPath, file_path, is_in_bucket, local_path
from vswin_jax.models.parameters import parameter_path, unflatten


@dataclasses.dataclass
class Checkpoints:
  """Checkpoints of a run, from `open_checkpoints`.

  A checkpoint is removed when a later one is complete and no option keeps it.

  Attributes:
    directory: local or in a bucket; the same in all processes of a run.
    keep: number of the newest checkpoints that are kept, at least 1.
    keep_best: number of those with the highest finite scores that are kept.
    keep_every: checkpoints at multiples of this step are kept; 0: none.
    scores: score by step, the higher the better; the caller adds scores to it. A checkpoint without
      one is never among the best.
    steps: of the complete checkpoints that this process saved or found.
    executor: runs the save in the background.
    saving: its result; None before the first save.
  """

  directory: AnyPath
  keep: int = 3
  keep_best: int = 0
  keep_every: int = 0
  scores: Mapping[int, float] = dataclasses.field(default_factory=dict)
  steps: set[int] = dataclasses.field(default_factory=set)
  executor: concurrent.futures.Executor = dataclasses.field(
    default_factory=lambda: concurrent.futures.ThreadPoolExecutor(1)
  )
  saving: concurrent.futures.Future | None = None


@contextlib.contextmanager
def open_checkpoints(directory: str | os.PathLike, **options) -> Iterator[Checkpoints]:
  """Opens the checkpoints of a run for saving; waits for the last save at exit.

  If a save fails in one process of a run, the context ends in all; they must then end by
  `os._exit`, because the threads of the others still wait.

  Args:
    **options: `keep`, `keep_best`, `keep_every` and `scores`, see `Checkpoints`.

  Raises:
    CheckpointError: the directory can't be written, or a save failed.
  """
  checkpoints = Checkpoints(file_path(directory), **options)
  in_all_processes(lambda: _make_directory(checkpoints.directory))
  checkpoints.steps = set(complete_steps(checkpoints.directory))
  try:
    with without_orbax_logs():
      yield checkpoints
      _finish_saving(checkpoints)
  except BaseException as error:
    # After a failure in one process, the saves of the others never finish.
    if checkpoints.saving and not (jax.process_count() > 1 and isinstance(error, CheckpointError)):
      concurrent.futures.wait([checkpoints.saving])
    raise
  finally:
    checkpoints.executor.shutdown(wait=False)


def _make_directory(directory: AnyPath) -> None:
  """Makes the folder in process 0, and removes what failed saves left in it."""
  # In a bucket there are no folders, and what is left has the name of its step.
  if jax.process_index() or is_in_bucket(directory):
    return
  with _writing(f"keep checkpoints in {directory}"):
    directory.mkdir(parents=True, exist_ok=True)
    for incomplete in directory.glob("*.orbax-checkpoint-tmp*"):
      shutil.rmtree(incomplete)


def save(checkpoints: Checkpoints, state, metadata: CheckpointMetadata) -> None:
  """Starts to save a state; returns when its arrays have been copied and may be changed.

  Waits for the save before. All processes of a run call this together.

  Args:
    state: any tree of arrays with an attribute `step`.

  Raises:
    CheckpointError: it can't be written, or the one before could not.
  """
  step, directory = int(state.step), checkpoints.directory
  _finish_saving(checkpoints)
  in_all_processes(lambda: _check_directory(checkpoints, step))
  values = integrity.custom_metadata(state, metadata)
  # In a bucket, a save that was killed left files under the final name.
  overwrite = is_in_bucket(directory)
  with _writing(f"write a checkpoint in {directory}"), saving_context(copy_host_arrays=True):
    response = ocp.save_async(
      path_of(directory, step), state, overwrite=overwrite, custom_metadata=values
    )
  checkpoints.saving = checkpoints.executor.submit(_complete_save, checkpoints, response, step)


def _check_directory(checkpoints: Checkpoints, step: int) -> None:
  """Checks in process 0 that a save can start, and logs which checkpoints others have removed."""
  if jax.process_index():
    return
  directory = checkpoints.directory
  steps = set(complete_steps(directory))
  if step in steps:
    raise CheckpointError(f"{path_of(directory, step)} exists; give every run its own workdir")
  if lost := checkpoints.steps - steps:
    numbers = ", ".join(map(str, sorted(lost)))
    logger.warning(
      "the checkpoints of steps %s are gone from %s; training continues", numbers, directory
    )
    checkpoints.steps = steps
  if is_in_bucket(directory):
    return
  # A new folder would be on another disk than the old one.
  if not directory.parent.is_dir():
    raise CheckpointError(
      f"can't write a checkpoint: the folder {directory.parent} is gone. If it is on a disk that "
      "was unmounted, mount it; the same command then resumes"
    )
  with _writing(f"write a checkpoint in {directory}"):
    directory.mkdir(exist_ok=True)
    with tempfile.TemporaryFile(dir=directory) as file:
      # Empty files can still be made on a full disk.
      file.write(bytes(2**16))
      file.flush()
      os.fsync(file.fileno())


def _complete_save(checkpoints: Checkpoints, response: ocp.AsyncResponse, step: int) -> None:
  """Waits for a save, then removes checkpoints that no option keeps, in process 0."""
  response.result()
  if jax.process_index():
    return
  checkpoints.steps.add(step)
  steps, scores = complete_steps(checkpoints.directory), checkpoints.scores
  # Of equal scores, the newer comes last.
  ranking = sorted((n for n in steps if math.isfinite(scores.get(n, math.nan))), key=scores.get)
  kept = {*steps[-checkpoints.keep :], *ranking[::-1][: checkpoints.keep_best]}
  deleter = orbax_path.deleter.PathDeleter(epath.Path(checkpoints.directory))
  for old in steps:
    if old not in kept and (checkpoints.keep_every == 0 or old % checkpoints.keep_every):
      checkpoints.steps.discard(old)
      deleter.delete(epath.Path(path_of(checkpoints.directory, old)))


def _finish_saving(checkpoints: Checkpoints) -> None:
  """Waits for the save in the background; all processes of a run call this together.

  Raises:
    CheckpointError: in all processes, if it failed in one.
  """
  saving = checkpoints.saving
  if saving is None:
    return

  def is_complete() -> bool:
    with _writing(f"write a checkpoint in {checkpoints.directory}"):
      if concurrent.futures.wait([saving], timeout=0.2).done:
        saving.result()
    return saving.done()

  # If another process failed, the save of this one never completes.
  while not multihost_utils.process_allgather(np.bool_(in_all_processes(is_complete))).all():
    pass


def restore(checkpoints: Checkpoints, shapes) -> tuple[Any, CheckpointMetadata]:
  """Loads the newest complete, undamaged checkpoint; all processes of a run call this together.

  Damaged ones are quarantined: renamed, such as "20" to "damaged-20", so that their steps can be
  saved again.

  Args:
    shapes: the state to restore, as `jax.ShapeDtypeStruct`s with shardings.

  Returns:
    The state, and the metadata that were saved with it.

  Raises:
    CheckpointError: there is none, all are damaged, or the newest holds another model.
  """
  directory = checkpoints.directory

  def shapes_for(step: int, contents: Contents):
    check_fit(directory, step, contents.arrays, arrays_of(shapes))
    return shapes

  _, state, metadata, damaged = load_newest(directory, shapes_for)
  in_all_processes(lambda: _quarantine(directory, damaged))
  checkpoints.steps.difference_update(damaged)
  return state, metadata


def _quarantine(directory: AnyPath, steps: list[int]) -> None:
  """Renames damaged checkpoints, in process 0."""
  if jax.process_index():
    return
  for step in steps:
    target, number = directory / f"damaged-{step}", 1
    while target.exists():
      number += 1
      target = directory / f"damaged-{step}-{number}"
    action, advice = f"rename the damaged checkpoint {path_of(directory, step)}", "Move it away"
    with _writing(action, advice):
      path_of(directory, step).rename(target)
    logger.warning("renamed the damaged checkpoint of step %d to %s", step, target)


def restore_params(
  directory: str | os.PathLike,
  shapes: dict | Callable[[CheckpointMetadata], dict],
  *,
  replaceable: tuple[str, ...] = (),
  ignored: tuple[str, ...] | Callable[[CheckpointMetadata], tuple[str, ...]] = (),
) -> tuple[int, dict, CheckpointMetadata]:
  """Loads the parameters of the newest complete, undamaged checkpoint, those of the EMA if saved.

  All processes of a run call this together.

  Args:
    shapes: the parameters to restore, as `jax.ShapeDtypeStruct`s with shardings. It and `ignored`
      may be functions of the metadata.
    replaceable: prefixes of the paths of parameters that may have other shapes, or be absent.
    ignored: prefixes of the paths of parameters that are not loaded.

  Returns:
    The step of the checkpoint, the parameters (replaceable ones that do not fit, and ignored ones,
    stay `jax.ShapeDtypeStruct`s) and the metadata that were saved with them.

  Raises:
    CheckpointError: there is no checkpoint, all are damaged, or the newest holds another model.
  """
  directory = file_path(directory)
  wanted: dict = {}

  def shapes_for(step: int, contents: Contents):
    nonlocal wanted
    wanted = shapes(contents.metadata) if callable(shapes) else shapes
    unwanted = ignored(contents.metadata) if callable(ignored) else ignored
    saved_trees = unflatten(contents.arrays)
    name = "ema_params" if "ema_params" in saved_trees else "params"
    saved = arrays_of(saved_trees.pop(name, {}))
    for other in saved_trees.keys() - {"params"}:
      if arrays_of(saved_trees[other]).keys() == saved.keys():
        raise CheckpointError(
          f"step {step} in {directory} was saved by another version of vswin_jax: it holds the "
          f"parameters a second time, as {other!r}. Use that version"
        )
    expected = arrays_of(wanted)
    for path in saved.keys() | expected.keys():
      found = {getattr(leaves.get(path), "shape", None) for leaves in (saved, expected)}
      if path.startswith(unwanted) or (len(found) == 2 and path.startswith(replaceable)):
        saved.pop(path, None)
        expected.pop(path, None)
    check_fit(directory, step, saved, expected)
    return {name: unflatten(expected)}

  step, loaded, metadata, _ = load_newest(directory, shapes_for)
  (arrays,) = map(arrays_of, loaded.values())
  params = jax.tree_util.tree_map_with_path(
    lambda path, leaf: arrays.get(parameter_path(path), leaf), wanted
  )
  return step, params, metadata


def write_params(directory: str | os.PathLike, params: dict, metadata: CheckpointMetadata) -> None:
  """Writes weights atomically, as checkpoint 0 of a folder like the workdir of a run.

  Args:
    directory: local; must not exist.
    params: nested dicts of arrays.

  Raises:
    LocalPathError: `directory` names a folder on another machine.
    CheckpointError: the folder exists, or can't be written.
  """
  directory = local_path(directory)
  check_absent(directory)
  incomplete = directory.with_name(f".{directory.name}.incomplete-{os.getpid()}")
  state = {"params": params}
  values = integrity.custom_metadata(state, metadata)
  try:
    with _writing(f"write {directory}"), without_orbax_logs():
      checkpoint = path_of(checkpoints_of(incomplete), 0)
      checkpoint.parent.mkdir(parents=True)
      with saving_context(copy_host_arrays=False):
        ocp.save(checkpoint, state, custom_metadata=values)
      check_absent(directory)
      incomplete.rename(directory)
  finally:
    shutil.rmtree(incomplete, ignore_errors=True)


def check_absent(directory: str | os.PathLike) -> None:
  """Checks that nothing exists under a name; raises CheckpointError otherwise."""
  if os.path.lexists(directory):
    raise CheckpointError(f"{directory} exists; name another folder, or remove it first")


def checkpoints_of(workdir: str | os.PathLike) -> AnyPath:
  """Returns the folder of the checkpoints of a run, or of converted weights."""
  return file_path(workdir) / "checkpoints"


@contextlib.contextmanager
def _writing(
  action: str, advice: str = "Free disk space and check that the folder can be written to"
) -> Iterator[None]:
  """Converts errors of an action that writes to a CheckpointError."""
  try:
    yield
  except CheckpointError:
    raise
  except Exception as error:
    raise storage_error(
      f"can't {action}: {root_cause(error)}. {advice}, then run the same command again", error
    ) from error
