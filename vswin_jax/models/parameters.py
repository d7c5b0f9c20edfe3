"""Models as pure functions: parameters as plain nested dicts, the rest as a static graph."""

import jax
from flax import nnx


def split_model(model: nnx.Module) -> tuple[nnx.GraphDef, dict]:
  """Separates a model, which must hold parameters only, into its graph and its parameters.

  Returns:
    The graph, for `merge_model`, and the parameters as nested dicts of arrays with string keys,
    such as `params["stages"]["0"]["blocks"]["1"]["mlp"]["fc1"]["kernel"]`.
  """
  graph, state = nnx.split(model, nnx.Param)
  params: dict = {}
  for path, variable in nnx.to_flat_state(state):
    node = params
    for part in path[:-1]:
      node = node.setdefault(str(part), {})
    node[str(path[-1])] = variable.get_value()
  return graph, params


def merge_model(graph: nnx.GraphDef, params: dict) -> nnx.Module:
  """Inverse of `split_model`."""
  paths_and_leaves, _ = jax.tree_util.tree_flatten_with_path(params)
  flat = [(tuple(_graph_key(entry.key) for entry in path), leaf) for path, leaf in paths_and_leaves]
  return nnx.merge(graph, nnx.from_flat_state(flat))


def _graph_key(key: str) -> str | int:
  return int(key) if key.isdigit() else key


def parameter_path(path) -> str:
  """Dotted name of a `jax.tree_util` key path: "stages.0.blocks.1.mlp.fc1.kernel"."""
  return ".".join(str(getattr(entry, "key", getattr(entry, "name", entry))) for entry in path)
