"""Models as pure functions: parameters as plain nested dicts, the rest as a static graph."""

import jax
from flax import nnx

# Starts of the paths of the layers that give logits.
CLASSIFIERS = ("head.kernel", "head.bias", "head.fc2.")


def split_model(model: nnx.Module) -> tuple[nnx.GraphDef, dict]:
  """Separates a model, which must hold parameters only, into its graph and its parameters.

  Returns:
    The graph, for `merge_model`, and the parameters as nested dicts of arrays with string keys,
    such as `params["stages"]["0"]["blocks"]["1"]["mlp"]["fc1"]["kernel"]`.
  """
  graph, state = nnx.split(model, nnx.Param)
  flat = {
    ".".join(map(str, path)): variable.get_value() for path, variable in nnx.to_flat_state(state)
  }
  return graph, unflatten(flat)


def merge_model(graph: nnx.GraphDef, params: dict) -> nnx.Module:
  """Inverse of `split_model`."""
  paths_and_leaves, _ = jax.tree_util.tree_flatten_with_path(params)
  flat = [(tuple(_graph_key(entry.key) for entry in path), leaf) for path, leaf in paths_and_leaves]
  return nnx.merge(graph, nnx.from_flat_state(flat))


def _graph_key(key: str) -> str | int:
  return int(key) if key.isdigit() else key


def flatten(tree) -> dict[str, object]:
  """The leaves of a tree by dotted path, see `parameter_path`."""
  return {parameter_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def unflatten(leaves: dict[str, object]) -> dict:
  """Nested dicts from leaves by dotted path."""
  tree: dict = {}
  for path, leaf in leaves.items():
    *parents, name = path.split(".")
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[name] = leaf
  return tree


def is_statistic(path: str) -> bool:
  """Whether a parameter, by dotted path, is a stored statistic of batch normalization, which is
  loaded and kept like a parameter, but never learnt."""
  return path.endswith((".running_mean", ".running_variance"))


def parameter_path(path) -> str:
  """Dotted name of a `jax.tree_util` key path: "stages.0.blocks.1.mlp.fc1.kernel"."""
  return ".".join(str(getattr(entry, "key", getattr(entry, "name", entry))) for entry in path)


def with_shardings(shapes, shardings):
  """`jax.ShapeDtypeStruct`s with shardings.

  Args:
    shapes: a tree of arrays or descriptions of arrays.
    shardings: a tree like `shapes`, or one sharding for all.
  """
  if isinstance(shardings, jax.sharding.Sharding):
    shardings = jax.tree.map(lambda _: shardings, shapes)
  return jax.tree.map(
    lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
    shapes,
    shardings,
  )
