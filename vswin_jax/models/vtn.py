"""Video Transformer Network (arXiv 2102.00719), equal to the reference implementation.

A 2D backbone turns every frame into a vector; a Longformer over these vectors classifies the video.
"""

import dataclasses
import inspect
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from vswin_jax.common.checks import (
  check_at_least,
  check_choices,
  check_heads,
  check_rates,
  fields,
)
from vswin_jax.models.backbones import backbone_config, create_backbone
from vswin_jax.models.layers import (
  DTYPES,
  check_video,
  dropout,
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
  """Everything that defines a VTN.

  Attributes:
    num_classes: logits of the head.
    backbone: a name in `backbones.BACKBONES`; or any module or function from float images `[batch,
      height, width, 3]` to features `[batch, width]`. One with a parameter `key` is given a random
      key in training.
    backbone_options: fields of a named backbone's configuration that differ. Its dtypes are the
      model's unless they are named here.
    width: channels of the temporal encoder, and features of the backbone.
    num_layers: of the temporal encoder.
    num_heads: of the temporal encoder.
    attention_window: frames that a frame sees besides itself, one half before and one after it.
    intermediate_size: hidden channels of the temporal encoder's MLPs.
    num_positions: rows of the position embedding, two of which are no frame's.
    head_width: hidden channels of the head; 0: as many as `width`.
    dropout_rate: in the temporal encoder; likewise `attention_dropout_rate`.
    head_dropout_rate: before the classifier.
    frames_per_chunk: frames of each video that the backbone computes at a time; 0: all. It bounds
      memory and changes nothing else, but for the draws of dropout in the backbone. Outside of
      `jax.jit` every call compiles anew.
    dtype: of the computation; LayerNorm, softmax and the head are float32.
    param_dtype: of the parameters; float32 unless memory forbids.
    rematerialization: what the backward pass recomputes: "none" or "chunk" (the backbone, chunk by
      chunk).
    init_std: standard deviation of the temporal encoder's initial linear layers.
    embedding_std: of its initial embeddings of positions and token types. That of the reference
      is hardly seen beside the features of a random backbone.
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
    check_heads(self.width, self.num_heads, "the temporal encoder")
    if self.attention_window % 2:
      raise ValueError(f"attention_window must be even, got {self.attention_window}")
    if not (isinstance(self.backbone, str) or callable(self.backbone)):
      raise ValueError(f"backbone must be a name, a module or a function, got {self.backbone!r}")
    try:
      given = dict(self.backbone_options)
    except (TypeError, ValueError):
      raise ValueError(f"backbone_options must be a dict, got {self.backbone_options!r}") from None
    # Hashable, as the rest of a model's static part must be.
    pairs = {
      name: tuple(value) if isinstance(value, list) else value for name, value in given.items()
    }
    object.__setattr__(self, "backbone_options", tuple(sorted(pairs.items())))
    if isinstance(self.backbone, str) and self.backbone != CUSTOM_BACKBONE:
      self.named_backbone()
    elif pairs:
      raise ValueError("backbone_options are for named backbones; build yours with its options")

  def named_backbone(self):
    """The configuration of the backbone, if it has a name."""
    dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    return backbone_config(self.backbone, **dtypes | dict(self.backbone_options))


class Head(nnx.Module):
  """LayerNorm, a hidden layer with the exact GELU, the classifier; in float32."""

  def __init__(self, config: VTNConfig, *, rngs: nnx.Rngs):
    self.config = config
    hidden = config.head_width or config.width
    self.norm = layer_norm(config.width, HEAD_LAYER_NORM_EPSILON, config, rngs)
    self.fc1 = _uniform_linear(config.width, hidden, config, rngs)
    self.fc2 = _uniform_linear(hidden, config.num_classes, config, rngs)

  def __call__(self, x: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
    x = jax.nn.gelu(self.fc1(self.norm(x)), approximate=False)
    return self.fc2(dropout(x, self.config.head_dropout_rate, key))


def _uniform_linear(inputs: int, outputs: int, config: VTNConfig, rngs: nnx.Rngs):
  """A linear layer as PyTorch initializes it by default."""
  uniform = symmetric_uniform(inputs**-0.5)
  return linear(
    inputs, outputs, config, rngs, kernel_init=uniform, bias_init=uniform, dtype="float32"
  )


class VTN(nnx.Module):
  """Video Transformer Network.

  `model(video)` is deterministic; `model(video, key=key)` drops out. Features of frames may be
  computed apart: `model(video)` is `model.classify(model.encode_frames(video))`.
  """

  def __init__(self, config: VTNConfig, *, rngs: nnx.Rngs):
    if config.backbone == CUSTOM_BACKBONE:
      raise ValueError("this model was built with a backbone of its own: give backbone=...")
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
      position_ids: int `[batch, frames]`: numbers of the frames in their video, as decoded; they
        are taken modulo `num_positions - 2`. None: 0, 1, 2 and so on, as if all frames were there.
      valid: bool `[batch, frames]`: False for the padding of videos shorter than the longest of
        the batch, which changes nothing in the result. None: all valid.
      key: random key for dropout; None for a deterministic call.

    Returns:
      float32 logits `[batch, num_classes]`.

    Raises:
      ValueError: arrays that do not fit.
    """
    backbone_key, temporal_key = split_key(key, 2)
    features = self.encode_frames(video, key=backbone_key)
    return self.classify(features, position_ids, valid, key=temporal_key)

  def encode_frames(self, video: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
    """Features of every frame by itself.

    Args:
      video: as in a call; likewise `key`.

    Returns:
      `[batch, frames, width]`, of the dtype that the backbone gives (float32 for named ones).

    Raises:
      ValueError: arrays that do not fit, or a backbone that gives others.
    """
    check_video(video)
    takes_key = "key" in inspect.signature(self.backbone).parameters

    def encode(chunk, index):
      images = chunk.reshape(-1, *chunk.shape[2:])
      chunk_key = None if key is None else jax.random.fold_in(key, index)
      features = self.backbone(images, **({"key": chunk_key} if takes_key else {}))
      if features.shape != (len(images), self.config.width):
        raise ValueError(
          f"the backbone must give features [{len(images)}, width = {self.config.width}] for "
          f"{len(images)} images, it gave {list(features.shape)}"
        )
      return features.reshape(*chunk.shape[:2], -1)

    if self.config.rematerialization == "chunk":
      encode = jax.checkpoint(encode)
    return map_chunks(encode, video, self.config.frames_per_chunk or video.shape[1])

  def frame_features(
    self, video: jax.Array, position_ids=None, *, key: jax.Array | None = None
  ) -> jax.Array:
    """`encode_frames` with the arguments of the other outputs of a model."""
    del position_ids
    return self.encode_frames(video, key=key)

  def classify(
    self,
    features: jax.Array,
    position_ids: jax.Array | None = None,
    valid: jax.Array | None = None,
    *,
    key: jax.Array | None = None,
  ) -> jax.Array:
    """Classifies videos from features of their frames.

    Args:
      features: float `[batch, frames, width]`; the rest as in a call.

    Returns:
      float32 logits `[batch, num_classes]`.

    Raises:
      ValueError: arrays that do not fit.
    """
    encoder_key, head_key = split_key(key, 2)
    return self.head(self._encode(features, position_ids, valid, encoder_key), key=head_key)

  def features(
    self,
    video: jax.Array,
    position_ids: jax.Array | None = None,
    valid: jax.Array | None = None,
    *,
    key: jax.Array | None = None,
  ) -> jax.Array:
    """Features before the head: arguments as in a call -> float32 `[batch, width]`, the class
    token after the temporal encoder."""
    backbone_key, encoder_key = split_key(key, 2)
    frames = self.encode_frames(video, key=backbone_key)
    return self._encode(frames, position_ids, valid, encoder_key)

  def feature_map(
    self, video: jax.Array, position_ids=None, *, key: jax.Array | None = None
  ) -> jax.Array:
    """`encode_frames` with the axes of a feature map: `[batch, frames, 1, 1, width]`."""
    del position_ids
    return self.encode_frames(video, key=key)[:, :, None, None]

  def _encode(self, features, position_ids, valid, key):
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
