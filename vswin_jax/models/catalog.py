"""Names of the models that `create_model` builds."""

import dataclasses
import difflib

from flax import nnx

from vswin_jax.models.video_swin import VideoSwin, VideoSwinConfig

# Video Swin, table 1 of the paper; drop path as in the Kinetics-400 recipes.
CATALOG = {
  "video_swin_t": VideoSwinConfig(drop_path_rate=0.1),
  "video_swin_s": VideoSwinConfig(depths=(2, 2, 18, 2), drop_path_rate=0.1),
  "video_swin_b": VideoSwinConfig(
    embed_dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32), drop_path_rate=0.3
  ),
  "video_swin_l": VideoSwinConfig(
    embed_dim=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48), drop_path_rate=0.2
  ),
}

_CLASSES = {VideoSwinConfig: VideoSwin}


def closest(name: str, known) -> str:
  """The end of an error line about an unknown name: the nearest known one, or all of them."""
  match = difflib.get_close_matches(name, list(known), n=1)
  return f"did you mean {match[0]!r}?" if match else f"known: {', '.join(sorted(known))}"


def model_config(name: str, **overrides) -> VideoSwinConfig:
  """The configuration of a named model with some fields replaced.

  Raises:
    ValueError: unknown name, unknown field or a value that does not fit.
  """
  if name not in CATALOG:
    raise ValueError(f"unknown model {name!r}: {closest(name, CATALOG)}")
  fields = {field.name for field in dataclasses.fields(CATALOG[name])}
  for field in overrides:
    if field not in fields:
      raise ValueError(f"{name} has no option {field!r}: {closest(field, fields)}")
  return dataclasses.replace(CATALOG[name], **overrides)


def create_model(name: str, *, num_classes: int = 400, seed: int = 0, **overrides) -> nnx.Module:
  """Builds a model with random parameters.

  Args:
    name: a key of `CATALOG`, such as "video_swin_t".
    num_classes: logits of the head.
    seed: of the parameters.
    **overrides: fields of the model's configuration, such as `window_size=(16, 7, 7)`.

  Returns:
    An NNX module: `model(video)` with float `[batch, time, height, width, 3]` gives logits
    `[batch, num_classes]`.

  Raises:
    ValueError: unknown name, unknown field or a value that does not fit.
  """
  config = model_config(name, num_classes=num_classes, **overrides)
  return _CLASSES[type(config)](config, rngs=nnx.Rngs(seed))
