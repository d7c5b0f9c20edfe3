"""Checkpoints of a run: written in the background, complete or not there at all.

Orbax writes each one under a temporary name and renames it when it is whole (in a bucket: marks
it), so a run that was killed while saving resumes from the checkpoint before. One that was damaged
later is passed over for the one before, too, and said.
"""

import contextlib
import dataclasses
import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from vswin_jax.checkpoints import integrity
from vswin_jax.checkpoints.integrity import (
  CheckpointError,
  Contents,
  DamagedError,
  arrays_of,
  failure,
  in_words,
)
from vswin_jax.checkpoints.selection import (
  check_fit,
  complete_steps,
  existing_steps,
  newest_step,
  newest_whole,
  none_whole,
  path_of,
)
from vswin_jax.common.paths import AnyPath, file_path, is_in_bucket, local_path
from vswin_jax.common.progress import logger
from vswin_jax.models.parameters import parameter_path, unflatten


@dataclasses.dataclass(frozen=True)
class Checkpoints:
  """The checkpoints of a run, to be added to; from `open_checkpoints`.

  Attributes:
    directory: where they are.
    orbax: what writes them.
    scores: of those that have one, by step.
    errors: of saves in the background, as they happen in this process.
  """

  directory: AnyPath
  orbax: ocp.training.Checkpointer
  scores: dict[int, float]
  errors: list[BaseException]


@dataclasses.dataclass(frozen=True)
class _Best:
  """Keeps the checkpoints with the highest scores, of equal ones the newer."""

  count: int
  scores: dict[int, float]

  def should_preserve(self, checkpoints: Sequence, *, context) -> list[bool]:
    del context
    scored = [info.step for info in checkpoints if info.step in self.scores]
    ranking = sorted(scored, key=lambda step: (self.scores[step], step))
    best = ranking[-self.count :]
    return [info.step in best for info in checkpoints]


@contextlib.contextmanager
def open_checkpoints(
  directory: str | os.PathLike,
  *,
  keep: int = 3,
  keep_best: int = 0,
  keep_every: int = 0,
  copy_host_arrays: bool = True,
) -> Iterator[Checkpoints]:
  """Opens the checkpoints of a run for writing; waits for the last save at exit.

  A checkpoint is removed when a later one is complete and nothing asks to keep it. In a run of
  several processes a save that fails in one ends the context in all; what is left of it waits for
  the others, so that such processes end by `os._exit` alone.

  Args:
    directory: absolute, or in a bucket; in a run of several processes the same for all.
    keep: how many of the newest are kept, at least 1.
    keep_best: how many of those with the highest scores are kept.
    keep_every: those are kept whose step is a multiple of it; 0: none for that.
    copy_host_arrays: saves copy numpy arrays, so that they may be changed at once.

  Raises:
    CheckpointError: the directory can't be written, or a save failed in the background.
  """
  directory = file_path(directory)
  context = ocp.Context()
  context.memory.deepcopy_host_arrays = copy_host_arrays
  # Otherwise the threads of a save that can't even start wait for minutes, and the program with
  # them.
  context.asynchronous.create_directories_asynchronously = False
  kept = ocp.training.preservation_policies
  policies = [kept.LatestN(keep)]
  scores: dict[int, float] = {}
  if keep_best:
    scores |= _read_scores(directory)
    policies.append(_Best(keep_best, scores))
  if keep_every:
    policies.append(kept.EveryNSteps(keep_every))
  with integrity.quiet() as errors:
    with _writing(directory, "keep checkpoints"):
      orbax = ocp.training.Checkpointer(
        directory,
        context=context,
        preservation_policy=kept.AnyPreservationPolicy(policies),
        # What an attempt left that failed may fill the disk. In a bucket it bears no mark.
        cleanup_tmp_directories=not is_in_bucket(directory),
      )
    # It would tell its steps to the counter by which `StopRequest` finds one for all processes.
    orbax._manager.reached_preemption = lambda step: False
    checkpoints = Checkpoints(directory, orbax, scores, errors)
    try:
      yield checkpoints
      _finish_saving(checkpoints, "finish writing")
    except BaseException as error:
      # Of two errors the first is told.
      with contextlib.suppress(Exception):
        is_given_up = isinstance(error, CheckpointError) and orbax.is_saving_in_progress()
        if jax.process_count() == 1 or not is_given_up:
          orbax.close()
      raise
    with _writing(directory, "finish writing a checkpoint"):
      orbax.close()


def _finish_saving(checkpoints: Checkpoints, action: str) -> None:
  """Waits for the save that is under way; all processes of a run together.

  Raises:
    CheckpointError: in all of them, if it failed in one.
  """

  def check() -> None:
    with _writing(checkpoints.directory, f"{action} a checkpoint"):
      if checkpoints.errors:
        raise checkpoints.errors[0]

  # Orbax itself would wait in the processes where all is well, for up to 20 minutes.
  while jax.process_count() > 1:
    integrity.together(check)
    is_saving = np.int8(checkpoints.orbax.is_saving_in_progress())
    if not multihost_utils.process_allgather(is_saving).any():
      break
    time.sleep(0.2)
  with _writing(checkpoints.directory, f"{action} a checkpoint"):
    checkpoints.orbax.wait()


def _read_scores(directory: AnyPath) -> dict[int, float]:
  scores = {}
  for step in complete_steps(directory):
    with contextlib.suppress(DamagedError):
      score = integrity.read_metadata(path_of(directory, step))[1].get("score")
      if score is not None:
        scores[step] = score
  return scores


def note_score(checkpoints: Checkpoints, step: int, score: float | None) -> None:
  """Keeps the score of a checkpoint, the higher the better; None or not finite: it has none."""
  if score is not None and math.isfinite(score):
    checkpoints.scores[step] = float(score)


def latest_step(checkpoints: Checkpoints) -> int | None:
  """Step of the newest complete checkpoint."""
  return newest_step(checkpoints.directory)


def save(checkpoints: Checkpoints, state, metadata: dict, score: float | None = None) -> None:
  """Starts to save a state; returns when its arrays have been copied and may be changed.

  Waits for the save before. A directory whose checkpoints were removed meanwhile is filled anew.

  Args:
    metadata: what is needed to use the weights besides them (model, preprocessing, labels); JSON.
    score: as in `note_score`; a checkpoint without one is never among the best.

  Raises:
    CheckpointError: it can't be written, or the one before could not.
  """
  step = int(state.step)
  _finish_saving(checkpoints, "write")
  integrity.together(lambda: _check_directory(checkpoints.directory))
  with _writing(checkpoints.directory, "write a checkpoint"):
    _forget_lost(checkpoints)
    checkpoints.scores.pop(step, None)
    note_score(checkpoints, step, score)
    metadata = integrity.metadata_to_write(state, metadata, checkpoints.scores.get(step))
    checkpoints.orbax.save_async(step, state, force=True, custom_metadata=metadata)


def _check_directory(directory: AnyPath) -> None:
  """Sees that a save can start, in the first process; others would wait for it.

  Raises:
    CheckpointError: the folder can't be written, or that of the run is gone. It may have been on a
      disk that is no longer mounted; what is written in its place would lie elsewhere.
  """
  if jax.process_index() or is_in_bucket(directory):
    return
  if not directory.parent.is_dir():
    raise CheckpointError(
      f"can't write a checkpoint: the folder {directory.parent} is gone. If it is on a disk that "
      "was unmounted, mount that again; the same command then resumes"
    )
  with _writing(directory, "write a checkpoint"):
    directory.mkdir(exist_ok=True)
    with tempfile.TemporaryFile(dir=directory) as file:
      # A disk that is full can still take names.
      file.write(bytes(2**16))
      file.flush()
      os.fsync(file.fileno())


def _forget_lost(checkpoints: Checkpoints) -> None:
  """Says which checkpoints somebody else removed."""
  directory = checkpoints.directory
  known = {info.step for info in checkpoints.orbax.checkpoints}
  lost = known.difference(complete_steps(directory))
  if lost:
    steps = ", ".join(map(str, sorted(lost)))
    logger.warning(
      "the checkpoints of steps %s are gone from %s; training goes on", steps, directory
    )
    checkpoints.orbax.reload()


def restore(checkpoints: Checkpoints, shapes) -> tuple[Any, dict]:
  """Loads the newest complete checkpoint that is not damaged.

  Those that are damaged are renamed, such as "20" to "damaged-20", so that their steps can be saved
  again. All processes of a run call this together.

  Args:
    shapes: the state to restore, as `jax.ShapeDtypeStruct`s with shardings.

  Returns:
    The state, and the metadata that were saved with it.

  Raises:
    CheckpointError: there is none, all are damaged, or the newest holds another model.
  """
  directory = checkpoints.directory

  def prepare(step: int, contents: Contents):
    check_fit(directory, step, contents.arrays, arrays_of(shapes))
    return shapes

  _, state, contents, damaged = newest_whole(directory, prepare)
  if damaged:
    integrity.together(lambda: _put_aside(directory, damaged))
    checkpoints.orbax.reload()
    for step in damaged:
      checkpoints.scores.pop(step, None)
  return state, contents.metadata


def _put_aside(directory: AnyPath, steps: list[int]) -> None:
  """Renames checkpoints that are damaged; the first process does, and nothing is removed."""
  if jax.process_index():
    return
  for step in steps:
    target, number = directory / f"damaged-{step}", 1
    while target.exists():
      number += 1
      target = directory / f"damaged-{step}-{number}"
    try:
      path_of(directory, step).rename(target)
    except Exception as error:
      raise failure(
        f"can't rename the damaged checkpoint {path_of(directory, step)}: {in_words(error)}. Move "
        "it away and start the same command again",
        error,
      ) from error
    logger.warning("the damaged checkpoint of step %d is now %s", step, target)


def write_params(directory: str | os.PathLike, params: dict, metadata: dict) -> None:
  """Writes weights that were not trained here as checkpoint 0 of a folder like that of a run.

  Args:
    directory: must not exist; appears when all is written, or not at all.
    params: nested dicts of arrays.
    metadata: as in `save`.

  Raises:
    LocalPathError: the name of a folder on another machine.
    CheckpointError: the folder exists, or can't be written.
  """
  directory = local_path(directory)
  check_absent(directory)
  incomplete = directory.with_name(f".{directory.name}.incomplete-{os.getpid()}")
  state = {"params": params}
  metadata = integrity.metadata_to_write(state, metadata, None)
  try:
    with _making(directory):
      incomplete.mkdir(parents=True)
      with open_checkpoints(checkpoints_of(incomplete), copy_host_arrays=False) as checkpoints:
        with _writing(checkpoints.directory, "write a checkpoint"):
          checkpoints.orbax.save_async(0, state, custom_metadata=metadata)
    check_absent(directory)
    with _making(directory):
      os.rename(incomplete, directory)
  finally:
    shutil.rmtree(incomplete, ignore_errors=True)


@contextlib.contextmanager
def _making(directory: AnyPath) -> Iterator[None]:
  """Errors name the folder that is to be; what is written first has another name, and goes."""
  try:
    yield
  except (OSError, CheckpointError) as error:
    raise failure(f"can't write {directory}: {in_words(error)}", error) from error


def check_absent(directory: str | os.PathLike) -> None:
  """Raises CheckpointError if something is there already."""
  if os.path.lexists(directory):
    raise CheckpointError(f"{directory} exists; name another folder, or remove it first")


def read_metadata(directory: str | os.PathLike) -> dict:
  """Returns the metadata of the newest complete checkpoint whose metadata is not damaged.

  Raises:
    CheckpointError: there is no checkpoint, or none says anything about itself.
  """
  directory = file_path(directory)
  damaged = {}
  for step in reversed(existing_steps(directory)):
    try:
      return integrity.read_metadata(path_of(directory, step))[0]
    except DamagedError as error:
      damaged[step] = str(error)
  raise none_whole(directory, damaged)


def checkpoints_of(workdir: str | os.PathLike) -> AnyPath:
  """Where a run, or a conversion, keeps its checkpoints."""
  return file_path(workdir) / "checkpoints"


def restore_params(
  directory: str | os.PathLike,
  shapes: dict,
  *,
  replaceable: str | None = None,
  ignored: tuple[str, ...] = (),
) -> tuple[int, dict, dict]:
  """Loads only the parameters of the newest complete checkpoint that is not damaged, the averaged
  ones if it has any. All processes of a run call this together.

  Args:
    shapes: the parameters to restore, as `jax.ShapeDtypeStruct`s with shardings.
    replaceable: start of the path of parameters that need not fit.
    ignored: starts of the paths of parameters that are not loaded.

  Returns:
    The step of the checkpoint, the parameters (replaceable ones that do not fit, and those
    ignored, stay as in `shapes`) and the metadata that were saved with them.

  Raises:
    CheckpointError: there is no checkpoint, all are damaged, or the newest holds another model.
  """
  directory = file_path(directory)

  def prepare(step: int, contents: Contents):
    averages = any(path.startswith("average.") for path in contents.arrays)
    start = "average." if averages else "params."
    saved = {
      path.removeprefix(start): leaf
      for path, leaf in contents.arrays.items()
      if path.startswith(start)
    }
    expected = arrays_of(shapes)
    for path in saved.keys() | expected.keys():
      shape, wanted_shape = (
        getattr(leaves.get(path), "shape", None) for leaves in (saved, expected)
      )
      is_replaced = replaceable and path.startswith(replaceable) and shape != wanted_shape
      if is_replaced or path.startswith(ignored):
        saved.pop(path, None)
        expected.pop(path, None)
    check_fit(directory, step, saved, expected)
    return {start.rstrip("."): unflatten(expected)}

  step, loaded, contents, _ = newest_whole(directory, prepare)
  arrays = arrays_of(next(iter(loaded.values())))
  params = jax.tree_util.tree_map_with_path(
    lambda path, leaf: arrays.get(parameter_path(path), leaf), shapes
  )
  return step, params, contents.metadata


@contextlib.contextmanager
def _writing(directory: AnyPath, action: str) -> Iterator[None]:
  """Turns whatever Orbax raises into one line."""
  try:
    yield
  except CheckpointError:
    raise
  except Exception as error:
    raise failure(
      f"can't {action} in {directory}: {in_words(error)}. {_what_is_left(directory)}", error
    ) from error


def _what_is_left(directory: AnyPath) -> str:
  try:
    newest = newest_step(directory)
  except CheckpointError:
    return "See that the folder can be written to; the same command then resumes"
  kept = "no complete checkpoint is" if newest is None else f"the checkpoint of step {newest} is"
  return (
    f"{kept[0].upper()}{kept[1:]} there; make room and see that the folder can be written to, the "
    "same command then resumes"
  )
