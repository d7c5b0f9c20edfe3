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


def latest_step(checkpoints: ocp.training.Checkpointer) -> int | None:
  """Step of the newest complete checkpoint."""
  latest = checkpoints.latest
  return None if latest is None else latest.step


def save(checkpoints: ocp.training.Checkpointer, state: TrainState, facts: dict) -> None:
  """Starts to save a state; returns when its arrays have been copied and may be changed.

  Args:
    facts: what is needed to use the weights besides them (model, preprocessing, labels); JSON.
  """
  step = int(state.step)
  if latest_step(checkpoints) != step:
    checkpoints.save_async(step, state, force=True, custom_metadata=facts)


def restore(checkpoints: ocp.training.Checkpointer, shapes: TrainState) -> TrainState:
  """Loads the newest complete checkpoint.

  Args:
    shapes: the state to restore, as `jax.ShapeDtypeStruct`s with shardings.

  Raises:
    CheckpointError: there is none, or it holds another model.
  """
  step = _newest(checkpoints)
  saved = _flatten(checkpoints.metadata(step).metadata)
  _check_fit(checkpoints, step, saved, _flatten(shapes))
  return checkpoints.load(step, shapes)


def restore_params(
  directory: str | os.PathLike, shapes: dict, *, replaceable: str | None = None
) -> tuple[int, dict]:
  """Loads only the parameters of the newest complete checkpoint, the averaged ones if it has any.

  Args:
    shapes: the parameters to restore, as `jax.ShapeDtypeStruct`s with shardings.
    replaceable: start of the path of parameters that need not fit.

  Returns:
    The step of the checkpoint and the parameters; those that do not fit stay as in `shapes`.

  Raises:
    CheckpointError: there is no checkpoint, or it holds another model.
  """
  if not os.path.isdir(directory):
    raise CheckpointError(f"no checkpoints in {directory}; train first, or name another run")
  with open_checkpoints(directory, partial_load=True) as checkpoints:
    step = _newest(checkpoints)
    metadata = checkpoints.metadata(step).metadata
    source = "average" if metadata.get("average") else "params"
    saved, expected = _flatten(metadata[source]), _flatten(shapes)
    for path in saved.keys() | expected.keys():
      if replaceable is not None and path.startswith(replaceable):
        if path in saved and path in expected and saved[path].shape == expected[path].shape:
          continue
        saved.pop(path, None)
        expected.pop(path, None)
    _check_fit(checkpoints, step, saved, expected)
    wanted: dict = {}
    for path, leaf in expected.items():
      *parents, name = path.split(".")
      node = wanted
      for parent in parents:
        node = node.setdefault(parent, {})
      node[name] = leaf
    loaded = _flatten(checkpoints.load(step, {source: wanted})[source])
  return step, jax.tree_util.tree_map_with_path(
    lambda path, leaf: loaded.get(parameter_path(path), leaf), shapes
  )


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


def _flatten(tree) -> dict:
  """Arrays, or descriptions of arrays, by dotted path."""
  return {
    parameter_path(path): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    if hasattr(leaf, "shape")
  }
