"""Checkpoints of a run: written in the background, complete or not there at all.

Orbax writes each one under a temporary name and renames it when it is whole, so a run that was
killed while saving resumes from the checkpoint before.
"""

import contextlib
import os
import pathlib
import shutil

import jax
from orbax.checkpoint import v1 as ocp

from vswin_jax.local_files import local_path
from vswin_jax.models.parameters import flatten, parameter_path, unflatten
from vswin_jax.training.step import TrainState


class CheckpointError(ValueError):
  """A checkpoint that is missing or does not fit; the message says what to do."""


@contextlib.contextmanager
def open_checkpoints(
  directory: str | os.PathLike,
  *,
  keep: int = 3,
  partial_load: bool = False,
  copy_host_arrays: bool = True,
):
  """Opens the checkpoints of a run, keeping the newest `keep`; waits for the last save at exit.

  Args:
    directory: absolute.
    partial_load: loads may ask for a part of what a checkpoint holds.
    copy_host_arrays: saves copy numpy arrays, so that they may be changed at once.
  """
  context = ocp.Context()
  context.pytree.loading.partial_load = partial_load
  context.memory.deepcopy_host_arrays = copy_host_arrays
  with ocp.training.Checkpointer(
    directory,
    context=context,
    preservation_policy=ocp.training.preservation_policies.LatestN(keep),
  ) as checkpoints:
    yield checkpoints
    with _explained(checkpoints, "finish writing"):
      checkpoints.wait()


def latest_step(checkpoints: ocp.training.Checkpointer) -> int | None:
  """Step of the newest complete checkpoint."""
  latest = checkpoints.latest
  return None if latest is None else latest.step


def save(checkpoints: ocp.training.Checkpointer, state: TrainState, facts: dict) -> None:
  """Starts to save a state; returns when its arrays have been copied and may be changed.

  Args:
    facts: what is needed to use the weights besides them (model, preprocessing, labels); JSON.
  """
  with _explained(checkpoints, "write"):
    checkpoints.save_async(int(state.step), state, force=True, custom_metadata=facts)


def restore(checkpoints: ocp.training.Checkpointer, shapes: TrainState) -> tuple[TrainState, dict]:
  """Loads the newest complete checkpoint.

  Args:
    shapes: the state to restore, as `jax.ShapeDtypeStruct`s with shardings.

  Returns:
    The state, and the facts that were saved with it.

  Raises:
    CheckpointError: there is none, or it holds another model.
  """
  step = _newest(checkpoints)
  with _explained(checkpoints, "read"):
    metadata = checkpoints.metadata(step)
    _check_fit(checkpoints, step, _arrays(metadata.metadata), _arrays(shapes))
    return checkpoints.load(step, shapes), metadata.custom_metadata or {}


def write_params(directory: str | os.PathLike, params: dict, facts: dict) -> None:
  """Writes weights that were not trained here as checkpoint 0 of a folder like that of a run.

  Args:
    directory: must not exist; appears when all is written, or not at all.
    params: nested dicts of arrays.
    facts: as in `save`.

  Raises:
    LocalPathError: the name of a folder on another machine.
    CheckpointError: the folder exists, or can't be written.
  """
  directory = local_path(directory)
  check_absent(directory)
  incomplete = directory.with_name(f".{directory.name}.incomplete-{os.getpid()}")
  try:
    incomplete.mkdir(parents=True)
  except OSError as error:
    raise CheckpointError(f"can't write {directory}: {error}") from error
  try:
    with open_checkpoints(checkpoints_of(incomplete), copy_host_arrays=False) as checkpoints:
      with _explained(checkpoints, "write"):
        checkpoints.save_async(0, {"params": params}, custom_metadata=facts)
    check_absent(directory)
    os.rename(incomplete, directory)
  except OSError as error:
    raise CheckpointError(f"can't write {directory}: {error}") from error
  finally:
    shutil.rmtree(incomplete, ignore_errors=True)


def check_absent(directory: str | os.PathLike) -> None:
  """Raises CheckpointError if something is there already."""
  if os.path.lexists(directory):
    raise CheckpointError(f"{directory} exists; name another folder, or remove it first")


def read_facts(directory: str | os.PathLike) -> dict:
  """The facts that were saved with the newest complete checkpoint.

  Raises:
    CheckpointError: there is no checkpoint.
  """
  _check_folder(directory)
  with open_checkpoints(directory) as checkpoints:
    step = _newest(checkpoints)
    with _explained(checkpoints, "read"):
      return checkpoints.metadata(step).custom_metadata or {}


def checkpoints_of(workdir: str | os.PathLike) -> pathlib.Path:
  """Where a run, or a conversion, keeps its checkpoints."""
  return local_path(workdir) / "checkpoints"


def restore_params(
  directory: str | os.PathLike,
  shapes: dict,
  *,
  replaceable: str | None = None,
  ignored: tuple[str, ...] = (),
) -> tuple[int, dict, dict]:
  """Loads only the parameters of the newest complete checkpoint, the averaged ones if it has any.

  Args:
    shapes: the parameters to restore, as `jax.ShapeDtypeStruct`s with shardings.
    replaceable: start of the path of parameters that need not fit.
    ignored: starts of the paths of parameters that are not loaded.

  Returns:
    The step of the checkpoint, the parameters (replaceable ones that do not fit, and those
    ignored, stay as in `shapes`) and the facts that were saved with them.

  Raises:
    CheckpointError: there is no checkpoint, or it holds another model.
  """
  _check_folder(directory)
  with open_checkpoints(directory, partial_load=True) as checkpoints:
    step = _newest(checkpoints)
    with _explained(checkpoints, "read"):
      metadata = checkpoints.metadata(step)
      source = "average" if metadata.metadata.get("average") else "params"
      saved, expected = _arrays(metadata.metadata[source]), _arrays(shapes)
      for path in saved.keys() | expected.keys():
        shape, wanted_shape = (
          getattr(leaves.get(path), "shape", None) for leaves in (saved, expected)
        )
        is_replaced = replaceable and path.startswith(replaceable) and shape != wanted_shape
        if is_replaced or path.startswith(ignored):
          saved.pop(path, None)
          expected.pop(path, None)
      _check_fit(checkpoints, step, saved, expected)
      loaded = _arrays(checkpoints.load(step, {source: unflatten(expected)})[source])
  params = jax.tree_util.tree_map_with_path(
    lambda path, leaf: loaded.get(parameter_path(path), leaf), shapes
  )
  return step, params, metadata.custom_metadata or {}


def _check_folder(directory: str | os.PathLike) -> None:
  if not os.path.isdir(directory):
    raise CheckpointError(
      f"no checkpoints in {directory}; expected a run of vswin_jax.main, or what "
      "vswin_jax.convert makes of a file"
    )


@contextlib.contextmanager
def _explained(checkpoints, action: str):
  """Turns whatever Orbax raises into one line."""
  try:
    yield
  except CheckpointError:
    raise
  except Exception as error:
    newest = latest_step(checkpoints)
    kept = "no complete checkpoint is there" if newest is None else f"step {newest} is complete"
    reason = " ".join(str(error).split())[:300]
    raise CheckpointError(
      f"can't {action} a checkpoint in {checkpoints.directory} ({kept}): "
      f"{type(error).__name__}: {reason}. Check the disk, and that the folder holds checkpoints "
      "of this library"
    ) from error


def _newest(checkpoints) -> int:
  step = latest_step(checkpoints)
  if step is None:
    raise CheckpointError(f"no complete checkpoint in {checkpoints.directory}")
  return step


def _check_fit(checkpoints, step, saved: dict, expected: dict) -> None:
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
      f"step {step} in {checkpoints.directory} does not fit the model that was asked for in "
      f"{len(differences)} places: {'; '.join(differences[:3])}. Ask for the model it holds, or "
      "name another checkpoint"
    )


def _arrays(tree) -> dict:
  """Arrays, or descriptions of arrays, by dotted path."""
  return {path: leaf for path, leaf in flatten(tree).items() if hasattr(leaf, "shape")}
