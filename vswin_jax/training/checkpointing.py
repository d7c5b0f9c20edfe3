"""Checkpoints of a run: written in the background, complete or not there at all.

Orbax writes each one under a temporary name and renames it when it is whole, so a run that was
killed while saving resumes from the checkpoint before.
"""

import contextlib
import os

import jax
from orbax.checkpoint import v1 as ocp

from vswin_jax.models.parameters import parameter_path
from vswin_jax.training.step import TrainState


class CheckpointError(ValueError):
  """A checkpoint that is missing or does not fit; the message says what to do."""


@contextlib.contextmanager
def open_checkpoints(directory: str | os.PathLike, *, keep: int = 3, partial_load: bool = False):
  """Opens the checkpoints of a run, keeping the newest `keep`; waits for the last save at exit.

  Args:
    partial_load: loads may ask for a part of what a checkpoint holds.
  """
  context = ocp.Context()
  context.pytree.loading.partial_load = partial_load
  with ocp.training.Checkpointer(
    os.path.abspath(os.path.expanduser(directory)),
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
    _check_fit(checkpoints, step, _flatten(metadata.metadata), _flatten(shapes))
    return checkpoints.load(step, shapes), metadata.custom_metadata or {}


def restore_params(
  directory: str | os.PathLike, shapes: dict, *, replaceable: str | None = None
) -> tuple[int, dict, dict]:
  """Loads only the parameters of the newest complete checkpoint, the averaged ones if it has any.

  Args:
    shapes: the parameters to restore, as `jax.ShapeDtypeStruct`s with shardings.
    replaceable: start of the path of parameters that need not fit.

  Returns:
    The step of the checkpoint, the parameters (replaceable ones that do not fit stay as in
    `shapes`) and the facts that were saved with them.

  Raises:
    CheckpointError: there is no checkpoint, or it holds another model.
  """
  if not os.path.isdir(directory):
    raise CheckpointError(f"no checkpoints in {directory}; train first, or name another run")
  with open_checkpoints(directory, partial_load=True) as checkpoints:
    step = _newest(checkpoints)
    with _explained(checkpoints, "read"):
      metadata = checkpoints.metadata(step)
      source = "average" if metadata.metadata.get("average") else "params"
      saved, expected = _flatten(metadata.metadata[source]), _flatten(shapes)
      for path in saved.keys() | expected.keys():
        shape, wanted_shape = (
          getattr(leaves.get(path), "shape", None) for leaves in (saved, expected)
        )
        if replaceable is not None and path.startswith(replaceable) and shape != wanted_shape:
          saved.pop(path, None)
          expected.pop(path, None)
      _check_fit(checkpoints, step, saved, expected)
      loaded = _flatten(checkpoints.load(step, {source: _unflatten(expected)})[source])
  params = jax.tree_util.tree_map_with_path(
    lambda path, leaf: loaded.get(parameter_path(path), leaf), shapes
  )
  return step, params, metadata.custom_metadata or {}


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
      f"step {step} in {checkpoints.directory} does not fit this config in {len(differences)} "
      f"places: {'; '.join(differences[:3])}. Use the config it was trained with, or another "
      "workdir"
    )


def _unflatten(leaves: dict) -> dict:
  """Nested dicts from leaves by dotted path."""
  tree: dict = {}
  for path, leaf in leaves.items():
    *parents, name = path.split(".")
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[name] = leaf
  return tree


def _flatten(tree) -> dict:
  """Arrays, or descriptions of arrays, by dotted path."""
  return {
    parameter_path(path): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    if hasattr(leaf, "shape")
  }
