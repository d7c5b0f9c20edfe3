"""Temporal encoder of VTN: a Longformer (arXiv 2004.05150) over features of frames.

Sequences are `[batch, 1 + frames, channels]`. The first token is the class token, which attends to
all tokens. Frames attend to it and to the frames near them (VTN, section 3.2).
"""

import jax
import jax.numpy as jnp
from flax import nnx

from vswin_jax.attention.banded import banded_attention, global_attention
from vswin_jax.attention.operations import dropout
from vswin_jax.models.layers import gelu, layer_norm, linear, map_chunks, normal_param, split_key

LAYER_NORM_EPSILON = 1e-12
# Tokens of the MLP that are computed at a time, which bounds the memory of hidden layers.
_MLP_CHUNK = 2048


class LongformerAttention(nnx.Module):
  """Sliding-window attention of frames and global attention of the class token.

  The class token attends through projections of its own; frames attend to it through theirs.
  """

  def __init__(self, config, *, rngs: nnx.Rngs):
    self.config = config
    width = config.width
    self.query = linear(width, width, config, rngs)
    self.key = linear(width, width, config, rngs)
    self.value = linear(width, width, config, rngs)
    self.query_global = linear(width, width, config, rngs)
    self.key_global = linear(width, width, config, rngs)
    self.value_global = linear(width, width, config, rngs)
    self.proj = linear(width, width, config, rngs)

  @jax.named_scope("attention")
  def __call__(
    self,
    x: jax.Array,
    valid: jax.Array | None,
    *,
    class_token_only: bool,
    key: jax.Array | None = None,
  ) -> jax.Array:
    """Returns all tokens, or the class token only: `[batch, 1, channels]`."""
    class_key, frames_key, proj_key = split_key(key, 3)
    attended = self._class_token(x, valid, class_key)
    if not class_token_only:
      attended = jnp.concatenate([attended, self._frames(x, valid, frames_key)], axis=1)
    return dropout(self.proj(attended), self.config.dropout_rate, proj_key)

  def _class_token(self, x, valid, key):
    if valid is not None:
      valid = jnp.pad(valid, [(0, 0), (1, 0)], constant_values=True)
    query = self._heads(self._scaled(self.query_global(x[:, :1])))
    attended = global_attention(
      query[:, :, 0],
      self._heads(self.key_global(x)),
      self._heads(self.value_global(x)),
      valid,
      dropout_rate=self.config.attention_dropout_rate,
      dropout_key=key,
    )
    return attended.reshape(x.shape[0], 1, -1)

  def _frames(self, x, valid, key):
    query = self._heads(self._scaled(self.query(x[:, 1:])))
    keys, values = self._heads(self.key(x)), self._heads(self.value(x))
    attended = banded_attention(
      query,
      keys[:, :, 1:],
      values[:, :, 1:],
      keys[:, :, 0],
      values[:, :, 0],
      self.config.attention_window // 2,
      valid,
      dropout_rate=self.config.attention_dropout_rate,
      dropout_key=key,
    )
    return attended.swapaxes(1, 2).reshape(x.shape[0], -1, x.shape[2])

  def _scaled(self, query):
    return query * (self.config.width // self.config.num_heads) ** -0.5

  def _heads(self, x):
    """Splits `[batch, tokens, channels]` into `[batch, heads, tokens, head_dim]`."""
    return x.reshape(*x.shape[:2], self.config.num_heads, -1).swapaxes(1, 2)


class LongformerLayer(nnx.Module):
  """Post-norm layer: attention, then an MLP, each residual and then normalized."""

  def __init__(self, config, *, rngs: nnx.Rngs):
    self.config = config
    self.attention = LongformerAttention(config, rngs=rngs)
    self.norm1 = layer_norm(config.width, LAYER_NORM_EPSILON, config, rngs)
    self.fc1 = linear(config.width, config.intermediate_size, config, rngs)
    self.fc2 = linear(config.intermediate_size, config.width, config, rngs)
    self.norm2 = layer_norm(config.width, LAYER_NORM_EPSILON, config, rngs)

  def __call__(
    self,
    x: jax.Array,
    valid: jax.Array | None,
    *,
    class_token_only: bool = False,
    key: jax.Array | None = None,
  ) -> jax.Array:
    attention_key, mlp_key = split_key(key, 2)
    attended = self.attention(x, valid, class_token_only=class_token_only, key=attention_key)
    x = self.norm1(x[:, : attended.shape[1]] + attended)
    y = map_chunks(lambda tokens, _: self._mlp(tokens), x, _MLP_CHUNK)
    return self.norm2(x + dropout(y, self.config.dropout_rate, mlp_key))

  @jax.named_scope("mlp")
  def _mlp(self, x: jax.Array) -> jax.Array:
    return self.fc2(gelu(self.fc1(x)))


class TemporalEncoder(nnx.Module):
  """Longformer layers over a class token and frames, with position and token type embeddings.

  Attributes:
    position_embeddings: `[num_positions, channels]`. The last row is the reference's padding,
      which is not used here; the class token has the row before it.
    type_embeddings: `[2, channels]`: frames, class token.
  """

  def __init__(self, config, *, rngs: nnx.Rngs):
    self.config = config
    std = config.embedding_std
    self.class_token = normal_param((config.width,), 1.0, config, rngs)
    self.position_embeddings = normal_param((config.num_positions, config.width), std, config, rngs)
    self.type_embeddings = normal_param((2, config.width), std, config, rngs)
    self.norm = layer_norm(config.width, LAYER_NORM_EPSILON, config, rngs)
    self.layers = nnx.List([LongformerLayer(config, rngs=rngs) for _ in range(config.num_layers)])

  @jax.named_scope("temporal_encoder")
  def __call__(
    self,
    features: jax.Array,
    position_ids: jax.Array,
    valid: jax.Array | None = None,
    *,
    key: jax.Array | None = None,
  ) -> jax.Array:
    """Encodes videos; the last layer is computed for the class token only.

    Args:
      features: `[batch, frames, channels]`.
      position_ids: int `[batch, frames]`: frame numbers, taken modulo `num_positions - 2`.
      valid: bool `[batch, frames]`; False: padding, which is ignored. None: all valid.
      key: random key for dropout; None for a deterministic call.

    Returns:
      The class token after the last layer: `[batch, channels]` in the compute dtype.
    """
    if valid is not None:
      # Padding may hold NaNs, which a weight of zero would not remove.
      features = jnp.where(valid[..., None], features, 0)
    embed_key, *layer_keys = split_key(key, 1 + len(self.layers))
    positions, types = self.position_embeddings[...], self.type_embeddings[...]
    class_token = self.class_token[...] + positions[-2] + types[1]
    class_token = jnp.broadcast_to(class_token, (features.shape[0], 1, *class_token.shape))
    frames = features + positions[position_ids % (len(positions) - 2)] + types[0]
    x = self.norm(jnp.concatenate([class_token, frames], axis=1)).astype(self.config.dtype)
    x = dropout(x, self.config.dropout_rate, embed_key)
    for index, (layer, layer_key) in enumerate(zip(self.layers, layer_keys)):
      is_last = index == len(self.layers) - 1
      with jax.named_scope(f"layer{index}"):
        x = layer(x, valid, class_token_only=is_last, key=layer_key)
    return x[:, 0]
