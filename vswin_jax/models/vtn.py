"""Video Transformer Network (arXiv 2102.00719), equal to the reference implementation.

A 2D backbone computes features of every frame; a Longformer over these classifies the video.
"""

import dataclasses
import inspect
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from vswin_jax.attention import dense, window
from vswin_jax.attention.operations import dropout
from vswin_jax.common.checks import check_at_least, check_choices, check_heads, check_rates, fields
from vswin_jax.models.backbones import backbone_config, create_backbone
from vswin_jax.models.layers import (
  DTYPES,
  check_video,
  gelu,
  layer_norm,
  linear,
  map_chunks,
  split_key,
  symmetric_uniform,
)
from vswin_jax.models.longformer import TemporalEncoder

HEAD_LAYER_NORM_EPSILON = 1e-5
REMATERIALIZATIONS = ("none", "chunk")
CUSTOM_BACKBONE = "custom"


@dataclasses.dataclass(frozen=True)
class VTNConfig:
  """Configuration of a VTN.

  Attributes:
    num_classes: number of logits.
    backbone: a name in `backbones.BACKBONES`, or any module or function from float images `[batch,
      height, width, 3]` to features `[batch, width]`. If it has a parameter `key`, it gets a
      random key in training.
    backbone_options: fields of a named backbone's configuration to replace. Its dtypes default to
      those of the model, and so does its attention.
    width: channels of the temporal encoder and of the backbone's features.
    num_layers: layers of the temporal encoder.
    num_heads: attention heads of the temporal encoder.
    attention_window: neighbors that a frame attends to, half of them before and half after it.
    intermediate_size: hidden channels of the temporal encoder's MLPs.
    num_positions: rows of the position embedding: two more than positions of frames.
    head_width: hidden channels of the head; 0: `width`.
    dropout_rate: dropout in the temporal encoder.
    attention_dropout_rate: dropout on its attention probabilities.
    head_dropout_rate: dropout before the classifier.
    frames_per_chunk: frames of each video that the backbone computes at a time, to bound memory;
      0: all. Results do not depend on it, except for the draws of dropout in the backbone. Outside
      of `jax.jit`, every call compiles.
    dtype: dtype of the computation; LayerNorm, softmax and the head are float32.
    param_dtype: dtype of the parameters.
    rematerialization: recomputation in the backward pass: "none" or "chunk" (the backbone, chunk
      by chunk).
    attention: implementation of a named backbone's attention, see its configuration; ResNets have
      none. That of the temporal encoder is always `banded_attention`.
    init_std: standard deviation of the temporal encoder's initial linear layers.
    embedding_std: standard deviation of its initial embeddings of positions and token types. The
      default, which is the reference's, is small beside the features of a random backbone.
  """

  num_classes: int = 400
  backbone: str | Callable = "vit_b_16"
  backbone_options: tuple | dict = ()
  width: int = 768
  num_layers: int = 3
  num_heads: int = 12
  attention_window: int = 18
  intermediate_size: int = 3072
  num_positions: int = 288
  head_width: int = 0
  dropout_rate: float = 0.1
  attention_dropout_rate: float = 0.1
  head_dropout_rate: float = 0.5
  frames_per_chunk: int = 0
  dtype: str = "float32"
  param_dtype: str = "float32"
  rematerialization: str = "none"
  attention: str = "auto"
  init_std: float = 0.02
  embedding_std: float = 0.02

  def __post_init__(self):
    sizes = ("num_classes", "width", "num_layers", "num_heads", "intermediate_size")
    check_at_least(1, **fields(self, *sizes))
    check_at_least(0, **fields(self, "head_width", "frames_per_chunk"))
    check_at_least(3, **fields(self, "num_positions"))
    check_at_least(2, **fields(self, "attention_window"))
    check_rates(**fields(self, "dropout_rate", "attention_dropout_rate", "head_dropout_rate"))
    check_choices(DTYPES, **fields(self, "dtype", "param_dtype"))
    check_choices(REMATERIALIZATIONS, **fields(self, "rematerialization"))
    known = window.IMPLEMENTATIONS | dense.IMPLEMENTATIONS
    check_choices(("auto", *known), **fields(self, "attention"))
    check_heads(self.width, self.num_heads, "the temporal encoder")
    if self.attention_window % 2:
      raise ValueError(f"attention_window must be even, got {self.attention_window}")
    if not (isinstance(self.backbone, str) or callable(self.backbone)):
      raise ValueError(f"backbone must be a name, a module or a function, got {self.backbone!r}")
    try:
      given = dict(self.backbone_options)
    except (TypeError, ValueError):
      raise ValueError(f"backbone_options must be a dict, got {self.backbone_options!r}") from None
    # The configuration is a static part of the model, so it must be hashable.
    pairs = {
      name: tuple(value) if isinstance(value, list) else value for name, value in given.items()
    }
    object.__setattr__(self, "backbone_options", tuple(sorted(pairs.items())))
    if isinstance(self.backbone, str) and self.backbone != CUSTOM_BACKBONE:
      self.named_backbone()
    elif pairs:
      raise ValueError("backbone_options are for named backbones, not for a module or function")

  def named_backbone(self):
    """Returns the configuration of a backbone that is given by name."""
    options = {"dtype": self.dtype, "param_dtype": self.param_dtype, "attention": self.attention}
    if not hasattr(backbone_config(self.backbone), "attention"):
      del options["attention"]
    return backbone_config(self.backbone, **options | dict(self.backbone_options))


class Head(nnx.Module):
  """Head in float32: LayerNorm, a hidden layer with the exact GELU, the classifier."""

  def __init__(self, config: VTNConfig, *, rngs: nnx.Rngs):
    self.config = config
    hidden = config.head_width or config.width
    self.norm = layer_norm(config.width, HEAD_LAYER_NORM_EPSILON, config, rngs)
    self.fc1 = _uniform_linear(config.width, hidden, config, rngs)
    self.fc2 = _uniform_linear(hidden, config.num_classes, config, rngs)

  @jax.named_scope("head")
  def __call__(self, x: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
    x = gelu(self.fc1(self.norm(x)))
    return self.fc2(dropout(x, self.config.head_dropout_rate, key))


def _uniform_linear(inputs: int, outputs: int, config: VTNConfig, rngs: nnx.Rngs):
  """Returns a float32 linear layer with the default initialization of PyTorch."""
  uniform = symmetric_uniform(inputs**-0.5)
  return linear(
    inputs, outputs, config, rngs, kernel_init=uniform, bias_init=uniform, dtype="float32"
  )


class VTN(nnx.Module):
  """Video Transformer Network.

  `model(video)` is deterministic; `model(video, key=key)` applies dropout. Features of frames may
  be computed separately: `model(video)` equals `model.classify(model.frame_features(video))`.
  """

  def __init__(self, config: VTNConfig, *, rngs: nnx.Rngs):
    if config.backbone == CUSTOM_BACKBONE:
      raise ValueError("the model has a custom backbone: pass it as backbone=...")
    if isinstance(config.backbone, str):
      self.backbone = create_backbone(config.named_backbone(), rngs=rngs)
      if self.backbone.num_features != config.width:
        raise ValueError(
          f"the backbone {config.backbone} has {self.backbone.num_features} features, but width is "
          f"{config.width}; set width={self.backbone.num_features}"
        )
    else:
      self.backbone = config.backbone
      config = dataclasses.replace(config, backbone=CUSTOM_BACKBONE)
    self.config = config
    self.temporal_encoder = TemporalEncoder(config, rngs=rngs)
    self.head = Head(config, rngs=rngs)

  def __call__(
    self,
    video: jax.Array,
    position_ids: jax.Array | None = None,
    valid: jax.Array | None = None,
    *,
    key: jax.Array | None = None,
  ) -> jax.Array:
    """Classifies videos.

    Args:
      video: float `[batch, frames, height, width, 3]`, normalized RGB.
      position_ids: int `[batch, frames]`: indices of the frames in their video, taken modulo
        `num_positions - 2`. None: 0, 1, 2, ...
      valid: bool `[batch, frames]`; False: padding, which is ignored. None: all valid.
      key: random key for dropout; None for a deterministic call.

    Returns:
      float32 logits `[batch, num_classes]`.

    Raises:
      ValueError: wrong shape or dtype of an argument.
    """
    backbone_key, temporal_key = split_key(key, 2)
    features = self.frame_features(video, key=backbone_key)
    return self.classify(features, position_ids, valid, key=temporal_key)

  def frame_features(
    self, video: jax.Array, position_ids=None, *, key: jax.Array | None = None
  ) -> jax.Array:
    """Returns the features of each frame, computed independently.

    Args:
      video: as in a call.
      position_ids: not used; all methods with a video take them.
      key: as in a call.

    Returns:
      `[batch, frames, width]` in the dtype of the backbone's features (float32 for named ones).

    Raises:
      ValueError: wrong shape or dtype of `video`, or of the features of a custom backbone.
    """
    del position_ids
    check_video(video)
    takes_key = "key" in inspect.signature(self.backbone).parameters

    def encode(chunk, index):
      images = chunk.reshape(-1, *chunk.shape[2:])
      chunk_key = None if key is None else jax.random.fold_in(key, index)
      with jax.named_scope("backbone"):
        features = self.backbone(images, **({"key": chunk_key} if takes_key else {}))
      if features.shape != (len(images), self.config.width):
        raise ValueError(
          f"the backbone must return features [{len(images)}, width = {self.config.width}] for "
          f"{len(images)} images, got {list(features.shape)}"
        )
      return features.reshape(*chunk.shape[:2], -1)

    if self.config.rematerialization == "chunk":
      encode = jax.checkpoint(encode)
    return map_chunks(encode, video, self.config.frames_per_chunk or video.shape[1])

  def classify(
    self,
    features: jax.Array,
    position_ids: jax.Array | None = None,
    valid: jax.Array | None = None,
    *,
    key: jax.Array | None = None,
  ) -> jax.Array:
    """Returns float32 logits `[batch, num_classes]` from the features of frames.

    Args:
      features: float `[batch, frames, width]`, from `frame_features`; the rest as in a call.

    Raises:
      ValueError: wrong shape or dtype of an argument.
    """
    encoder_key, head_key = split_key(key, 2)
    return self.head(self._encode(features, position_ids, valid, encoder_key), key=head_key)

  def features(
    self,
    video: jax.Array,
    position_ids: jax.Array | None = None,
    valid: jax.Array | None = None,
  ) -> jax.Array:
    """Returns the class token after the temporal encoder: float32 `[batch, width]`."""
    return self._encode(self.frame_features(video), position_ids, valid)

  def feature_map(self, video: jax.Array, position_ids: jax.Array | None = None) -> jax.Array:
    """Returns `frame_features` as a feature map: `[batch, frames, 1, 1, width]`."""
    return self.frame_features(video, position_ids)[:, :, None, None]

  def _encode(self, features, position_ids, valid, key=None):
    if features.ndim != 3 or features.shape[2] != self.config.width or not features.size:
      raise ValueError(
        f"features must be [batch, frames, {self.config.width}], got {list(features.shape)}"
      )
    batch, frames = features.shape[:2]
    if position_ids is None:
      position_ids = jnp.broadcast_to(jnp.arange(frames), (batch, frames))
    for name, array in (("position_ids", position_ids), ("valid", valid)):
      if array is not None and array.shape != (batch, frames):
        raise ValueError(
          f"{name} must be [batch, frames] = {[batch, frames]}, got {list(array.shape)}"
        )
    if not jnp.issubdtype(position_ids.dtype, jnp.integer):
      raise ValueError(f"position_ids must be integers, got {position_ids.dtype}")
    encoded = self.temporal_encoder(features, position_ids, valid, key=key)
    return encoded.astype(jnp.float32)
