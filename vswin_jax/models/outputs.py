"""Outputs of a model for views of videos: probabilities and features."""

import types
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from vswin_jax.models.normalization import normalize
from vswin_jax.models.parameters import merge_model


def class_probabilities(logits: jax.Array, multi_label: bool) -> jax.Array:
  """Returns the softmax of logits `[batch, num_classes]`, or their sigmoid if `multi_label`."""
  return jax.nn.sigmoid(logits) if multi_label else jax.nn.softmax(logits)


# Functions of a model, a normalized video and the position ids of its frames.
OUTPUTS = types.MappingProxyType(
  {
    "probabilities": lambda model, *inputs: class_probabilities(model(*inputs), False),
    "label_probabilities": lambda model, *inputs: class_probabilities(model(*inputs), True),
    "pooled": lambda model, *inputs: model.features(*inputs),
    "map": lambda model, *inputs: model.feature_map(*inputs),
    "frame_features": lambda model, *inputs: model.frame_features(*inputs),
  }
)


def probabilities_of(multi_label: bool) -> str:
  """Returns the key of `OUTPUTS` for the class probabilities of a model."""
  return "label_probabilities" if multi_label else "probabilities"


def make_view_step(
  graph: nnx.GraphDef, output: str, *, mean: tuple[float, ...], std: tuple[float, ...]
) -> Callable[[dict, jax.Array, jax.Array], jax.Array]:
  """Builds a function that computes an output of the model for every view, to be jitted.

  Args:
    output: a key of `OUTPUTS`: "probabilities" or "label_probabilities" `[num_classes]`, "pooled"
      features `[channels]`, the feature "map" `[time, height, width, channels]` or, of VTN only,
      "frame_features" `[time, width]`.

  Returns:
    `step(params, video, position_ids)` with video uint8 `[batch, views, time, height, width, 3]`
    and position_ids int32 `[batch, views, time]` -> float32 `[batch, views, ...]`. Views are
    computed one after the other, so memory is that of `batch` clips.

  Raises:
    ValueError: an unknown output.
  """
  if output not in OUTPUTS:
    raise ValueError(f"unknown output {output!r}; expected one of {', '.join(OUTPUTS)}")

  def step(params: dict, video: jax.Array, position_ids: jax.Array) -> jax.Array:
    model = merge_model(graph, params)

    def one_view(view) -> jax.Array:
      pixels, positions = view
      return OUTPUTS[output](model, normalize(pixels, mean, std), positions).astype(jnp.float32)

    views = (jnp.moveaxis(video, 1, 0), jnp.moveaxis(position_ids, 1, 0))
    return jnp.moveaxis(jax.lax.map(one_view, views), 0, 1)

  return step
