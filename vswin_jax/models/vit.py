"""Vision Transformer for single images (arXiv 2010.11929) and DeiT (arXiv 2012.12877).

Equal to timm's `VisionTransformer`, with its fused query, key and value.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vswin_jax.attention.dense import IMPLEMENTATIONS, dense_attention, padded
from vswin_jax.attention.operations import dropout, on_each_device, resolve_implementation
from vswin_jax.common.checks import check_at_least, check_choices, check_heads, check_rates, fields
from vswin_jax.common.logging import log_once
from vswin_jax.models import tpu_vit
from vswin_jax.models.layers import (
  BLOCK_REMATERIALIZATIONS,
  DTYPES,
  MLP,
  drop_path,
  layer_norm,
  linear,
  normal_param,
  split_key,
)

LAYER_NORM_EPSILON = 1e-6


@dataclasses.dataclass(frozen=True)
class ViTConfig:
  """Configuration of a Vision Transformer.

  Attributes:
    image_size: height and width of an image in pixels.
    patch_size: height and width of a patch in pixels.
    width: channels of a token.
    depth: blocks.
    num_heads: attention heads.
    mlp_ratio: ratio of the hidden channels of MLPs to `width`.
    distilled: adds a distillation token; features are then the mean of both tokens.
    dropout_rate: dropout after the position embedding and the attention projection, and in MLPs.
    drop_path_rate: stochastic depth of the last block, growing linearly from 0 at the first.
    dtype: dtype of the computation; LayerNorm and softmax are float32.
    param_dtype: dtype of the parameters.
    rematerialization: recomputation in the backward pass: "none" or "block".
    attention: implementation of `dense_attention`. With "pallas_tpu" blocks are kernels as a
      whole (`tpu_vit`).
    init_std: standard deviation of the initial linear layers.
    embedding_std: standard deviation of the initial class tokens and position embeddings.
  """

  image_size: int = 224
  patch_size: int = 16
  width: int = 768
  depth: int = 12
  num_heads: int = 12
  mlp_ratio: float = 4.0
  distilled: bool = False
  dropout_rate: float = 0.0
  drop_path_rate: float = 0.0
  dtype: str = "float32"
  param_dtype: str = "float32"
  rematerialization: str = "none"
  attention: str = "auto"
  init_std: float = 0.02
  embedding_std: float = 0.02

  def __post_init__(self):
    sizes = ("image_size", "patch_size", "width", "depth", "num_heads", "mlp_ratio")
    check_at_least(1, **fields(self, *sizes))
    check_rates(**fields(self, "dropout_rate", "drop_path_rate"))
    check_choices(DTYPES, **fields(self, "dtype", "param_dtype"))
    check_choices(BLOCK_REMATERIALIZATIONS, **fields(self, "rematerialization"))
    check_choices(("auto", *IMPLEMENTATIONS), **fields(self, "attention"))
    check_heads(self.width, self.num_heads, "the image backbone")
    if self.image_size % self.patch_size:
      raise ValueError(
        f"image_size {self.image_size} is not divisible by patch_size {self.patch_size}"
      )


class SelfAttention(nnx.Module):
  """Multi-head attention from the first `queries` of `[batch, rows, channels]` to all tokens."""

  def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
    self.config = config
    self.qkv = linear(config.width, 3 * config.width, config, rngs)
    self.proj = linear(config.width, config.width, config, rngs)

  @jax.named_scope("attention")
  def __call__(self, x: jax.Array, queries: int, tokens: int, implementation: str) -> jax.Array:
    width, heads = self.config.width, self.config.num_heads

    def split(y):
      return y.reshape(*y.shape[:2], -1, heads, width // heads)

    query = split(self.qkv(x[:, :queries], slice(0, width)))
    key_and_value = split(self.qkv(x, slice(width, None)))
    attended = dense_attention(
      query[:, :, 0],
      key_and_value[:, :, 0],
      key_and_value[:, :, 1],
      tokens,
      implementation=implementation,
    )
    return self.proj(attended.reshape(x.shape[0], queries, -1))


class Block(nnx.Module):
  """Pre-norm block: attention, then an MLP, each residual."""

  def __init__(self, drop_path_rate: float, config: ViTConfig, *, rngs: nnx.Rngs):
    self.config = config
    self.drop_path_rate = drop_path_rate
    self.norm1 = layer_norm(config.width, LAYER_NORM_EPSILON, config, rngs)
    self.attention = SelfAttention(config, rngs=rngs)
    self.norm2 = layer_norm(config.width, LAYER_NORM_EPSILON, config, rngs)
    self.mlp = MLP(config.width, config, rngs=rngs)

  def __call__(
    self,
    x: jax.Array,
    kept: int,
    tokens: int,
    implementation: str,
    *,
    key: jax.Array | None = None,
  ) -> jax.Array:
    """Computes the first `kept` rows of images; the others serve as keys and values only.

    Args:
      x: `[images, rows, channels]`.
      kept: rows to compute.
      tokens: rows that are not padding, the first ones.
      implementation: of attention, not "auto".
      key: random key for dropout; None for a deterministic call.

    Returns:
      `[images, kept, channels]`; kernels return some more rows.
    """
    if self._fits_kernels(implementation, tokens):
      return self._run_kernels(x, kept, tokens, implementation.endswith("interpret"), key)
    proj_key, path1_key, mlp_key, path2_key = split_key(key, 4)
    attended = self.attention(self.norm1(x), kept, tokens, implementation)
    attended = dropout(attended, self.config.dropout_rate, proj_key)
    x = x[:, :kept] + drop_path(attended, self.drop_path_rate, path1_key)
    return x + drop_path(self.mlp(self.norm2(x), key=mlp_key), self.drop_path_rate, path2_key)

  def _fits_kernels(self, implementation: str, tokens: int) -> bool:
    """Returns whether the block is computed by `tpu_vit`."""
    if not implementation.startswith("pallas_tpu"):
      return False
    width, hidden = self.mlp.fc1.kernel.shape
    interpret = implementation.endswith("interpret")
    reason = tpu_vit.why_not(tokens, width, hidden, self.config.dtype, interpret)
    if reason:
      log_once(f"blocks of {width} channels: not as kernels, because {reason}")
    return not reason

  def _run_kernels(self, x, kept: int, tokens: int, interpret: bool, key) -> jax.Array:
    dropout_key, *path_keys = (split_key(key, 4)[index] for index in (0, 1, 3))
    per_image = []
    if key is not None and (self.drop_path_rate or self.config.dropout_rate):
      one = jnp.ones((len(x), 1), jnp.float32)
      factors = [drop_path(one, self.drop_path_rate, path_key) for path_key in path_keys]
      seeds = jax.random.bits(dropout_key, (len(x), tpu_vit.DROPOUTS)).astype(jnp.int32)
      per_image = [jnp.concatenate(factors, axis=1), seeds]

    def run(x, *arguments):
      *per_image, parameters = arguments
      factors, seeds = per_image or (None, None)
      return tpu_vit.run_block(
        x,
        factors,
        parameters,
        self.config.num_heads,
        tokens,
        kept,
        LAYER_NORM_EPSILON,
        seeds=seeds,
        dropout_rate=self.config.dropout_rate,
        interpret=interpret,
      )

    parameters = nnx.to_pure_dict(nnx.state(self, nnx.Param))
    return on_each_device(run, x, *per_image, whole=parameters)


class ViT(nnx.Module):
  """Vision Transformer without a classifier: `model(images)` returns features."""

  def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
    self.config = config
    self.num_features = config.width
    self.patch_embed = linear(config.patch_size**2 * 3, config.width, config, rngs)
    self.class_token = normal_param((config.width,), config.embedding_std, config, rngs)
    self.distillation_token = (
      normal_param((config.width,), config.embedding_std, config, rngs)
      if config.distilled
      else None
    )
    tokens = (config.image_size // config.patch_size) ** 2 + self.class_tokens
    self.position_embedding = normal_param(
      (tokens, config.width), config.embedding_std, config, rngs
    )
    rates = np.linspace(0.0, config.drop_path_rate, config.depth).tolist()
    self.blocks = nnx.List([Block(rate, config, rngs=rngs) for rate in rates])
    self.norm = layer_norm(config.width, LAYER_NORM_EPSILON, config, rngs)

  @property
  def class_tokens(self) -> int:
    """Number of tokens before the patches."""
    return 2 if self.config.distilled else 1

  def __call__(self, images: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
    """Returns features of images.

    The last block and LayerNorm are computed for the class tokens only.

    Args:
      images: float `[batch, height, width, 3]`, normalized RGB of `image_size`.
      key: random key for dropout; None for a deterministic call.

    Returns:
      float32 `[batch, channels]`: the class token after the last LayerNorm; with a distillation
      token the mean of both.

    Raises:
      ValueError: wrong shape of `images`.
    """
    size = self.config.image_size
    if images.shape[1:] != (size, size, 3):
      raise ValueError(
        f"images must be [batch, {size}, {size}, 3], the size of the position embeddings; got "
        f"{list(images.shape)}"
      )
    embed_key, *block_keys = split_key(key, 1 + len(self.blocks))
    x = self._embed(images.astype(self.config.dtype))
    x = dropout(x, self.config.dropout_rate, embed_key)

    tokens = x.shape[1]
    implementation = resolve_implementation(self.config.attention, IMPLEMENTATIONS, x.dtype)
    rows = padded(tokens, implementation)
    # No token attends to padding, and features do not contain it.
    x = jnp.pad(x, [(0, 0), (0, rows - tokens), (0, 0)])

    def run(block, x, key, kept):
      return block(x, kept, tokens, implementation, key=key)

    if self.config.rematerialization == "block":
      run = jax.checkpoint(run, static_argnums=3)
    for index, block_key in enumerate(block_keys):
      is_last = index == len(self.blocks) - 1
      with jax.named_scope(f"block{index}"):
        x = run(self.blocks[index], x, block_key, self.class_tokens if is_last else rows)
    return self.norm(x[:, : self.class_tokens]).mean(1, dtype=jnp.float32)

  @jax.named_scope("patch_embed")
  def _embed(self, images: jax.Array) -> jax.Array:
    """Returns class tokens and embedded patches, with position embeddings."""
    patch = self.config.patch_size
    grid = images.shape[1] // patch
    # A row of a patch stays one axis: TPUs would pad an axis of three colors to 128.
    patches = images.reshape(-1, grid, patch, grid, patch * 3).swapaxes(2, 3)
    patches = self.patch_embed(patches.reshape(-1, grid * grid, patch * patch * 3))
    class_tokens = [
      jnp.broadcast_to(token[...], (len(patches), 1, patches.shape[-1]))
      for token in (self.class_token, self.distillation_token)
      if token is not None
    ]
    # In float32, so that the gradients of the embeddings are summed over images in float32.
    tokens = jnp.concatenate([*class_tokens, patches.astype(jnp.float32)], axis=1)
    return (tokens + self.position_embedding[...]).astype(patches.dtype)
