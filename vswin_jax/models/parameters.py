"""Models as pure functions: parameters as plain nested dicts, the rest as a static graph."""

import jax
from flax import nnx

# Prefixes of the paths of the last layer, which computes the logits.
CLASSIFIERS = ("head.kernel", "head.bias", "head.fc2.")


def split_model(model: nnx.Module) -> tuple[nnx.GraphDef, dict]:
  """Separates a model into its graph and its parameters.

  Args:
    model: its variables must be `nnx.Param`s and `nnx.BatchStat`s only.

  Returns:
    The graph, for `merge_model`, and the parameters as nested dicts of arrays with string keys,
    such as `params["stages"]["0"]["blocks"]["1"]["mlp"]["fc1"]["kernel"]`. They include the
    statistics of batch normalization, see `batch_statistics`.
  """
  graph, state = nnx.split(model, (nnx.Param, nnx.BatchStat))
  return graph, unflatten(_by_path(state))


def batch_statistics(model: nnx.Module) -> frozenset[str]:
  """Returns the dotted paths of the statistics of batch normalization, which are stored with the
  parameters but not trained."""
  return frozenset(_by_path(nnx.state(model, nnx.BatchStat)))


def _by_path(state: nnx.State) -> dict[str, jax.Array]:
  return {
    ".".join(map(str, path)): variable.get_value() for path, variable in nnx.to_flat_state(state)
  }


def merge_model(graph: nnx.GraphDef, params: dict) -> nnx.Module:
  """Returns the model of a graph and parameters from `split_model`."""
  paths_and_leaves, _ = jax.tree_util.tree_flatten_with_path(params)
  flat = [(tuple(_graph_key(entry.key) for entry in path), leaf) for path, leaf in paths_and_leaves]
  return nnx.merge(graph, nnx.from_flat_state(flat))


def _graph_key(key: str) -> str | int:
  return int(key) if key.isdigit() else key


def flatten(tree) -> dict[str, object]:
  """Returns the leaves of a tree by dotted path, see `parameter_path`."""
  return {parameter_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def unflatten(leaves: dict[str, object]) -> dict:
  """Returns nested dicts from leaves by dotted path."""
  tree: dict = {}
  for path, leaf in leaves.items():
    *parents, name = path.split(".")
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[name] = leaf
  return tree


def parameter_path(path) -> str:
  """Returns the dotted name of a key path, such as "stages.0.blocks.1.mlp.fc1.kernel"."""
  return ".".join(str(getattr(entry, "key", getattr(entry, "name", entry))) for entry in path)


def with_shardings(shapes, shardings):
  """Returns a tree of `jax.ShapeDtypeStruct`s with shardings.

  Args:
    shapes: a tree of arrays or `jax.ShapeDtypeStruct`s.
    shardings: a tree like `shapes`, or one sharding for all leaves.
  """
  if isinstance(shardings, jax.sharding.Sharding):
    shardings = jax.tree.map(lambda _: shardings, shapes)
  return jax.tree.map(
    lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
    shapes,
    shardings,
  )
