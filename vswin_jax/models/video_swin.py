"""Video Swin Transformer (arXiv 2106.13230), equal to the reference implementation.

Videos are `[batch, time, height, width, 3]`. Between blocks time is the last axis of tokens,
`[batch, height, width, time, channels]`, see `attention.windows`. Modules hold parameters only.
Random keys are arguments; a call without a key is deterministic.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vswin_jax.attention import gpu, window_attention
from vswin_jax.attention.operations import dropout, on_each_device, resolve_implementation
from vswin_jax.attention.relative_position import table_rows
from vswin_jax.attention.window import IMPLEMENTATIONS
from vswin_jax.attention.windows import (
  Size3D,
  WindowLayout,
  from_windows,
  pad_grid,
  to_windows,
  window_layout,
)
from vswin_jax.common.checks import (
  check_at_least,
  check_choices,
  check_heads,
  check_rates,
  fields,
  set_sizes,
)
from vswin_jax.common.logging import log_once
from vswin_jax.models import tpu_block
from vswin_jax.models.layers import (
  DTYPES,
  MLP,
  check_video,
  drop_path,
  layer_norm,
  linear,
  normal_param,
  split_key,
  symmetric_uniform,
)

LAYER_NORM_EPSILON = 1e-5
REMATERIALIZATIONS = ("none", "block", "attention")
_RATES = ("dropout_rate", "attention_dropout_rate", "drop_path_rate", "head_dropout_rate")


@dataclasses.dataclass(frozen=True)
class VideoSwinConfig:
  """Configuration of a Video Swin; sizes are (time, height, width).

  Attributes:
    num_classes: number of logits; 0: no head, calls return the pooled features.
    embed_dim: channels of the first stage, doubled by every later one.
    depths: blocks per stage; odd blocks shift their windows.
    num_heads: attention heads per stage.
    patch_size: pixels per token.
    window_size: tokens per window.
    mlp_ratio: ratio of the hidden to the input channels of MLPs.
    dropout_rate: dropout after the patch embedding and the attention projection, and in MLPs.
    attention_dropout_rate: dropout on attention probabilities.
    drop_path_rate: stochastic depth of the last block, growing linearly from 0 at the first.
    head_dropout_rate: dropout before the classifier.
    dtype: dtype of the computation; LayerNorm, softmax, pooling and the head are float32.
    param_dtype: dtype of the parameters.
    rematerialization: recomputation in the backward pass: "none", "block" (all but the input of
      each block) or "attention" (logits and probabilities).
    attention: implementation of `window_attention`. With "pallas_tpu" blocks are kernels as a
      whole (`tpu_block`) where these can compute them. With "pallas_gpu" the backward pass of
      LayerNorm is a kernel too, and windows are not copied.
    init_std: standard deviation of the initial linear layers and bias tables. Narrow models may
      need more than the default, which is the reference's.
  """

  num_classes: int = 400
  embed_dim: int = 96
  depths: tuple[int, ...] = (2, 2, 6, 2)
  num_heads: tuple[int, ...] = (3, 6, 12, 24)
  patch_size: Size3D = (2, 4, 4)
  window_size: Size3D = (8, 7, 7)
  mlp_ratio: float = 4.0
  dropout_rate: float = 0.0
  attention_dropout_rate: float = 0.0
  drop_path_rate: float = 0.1
  head_dropout_rate: float = 0.5
  dtype: str = "float32"
  param_dtype: str = "float32"
  rematerialization: str = "none"
  attention: str = "auto"
  init_std: float = 0.02

  def __post_init__(self):
    for name in ("depths", "num_heads", "patch_size", "window_size"):
      set_sizes(self, name)
    for name in ("patch_size", "window_size"):
      if len(getattr(self, name)) != 3:
        raise ValueError(f"{name} must be (time, height, width), got {getattr(self, name)}")
    if len(self.depths) != len(self.num_heads):
      raise ValueError(
        f"depths {self.depths} and num_heads {self.num_heads} must name the same stages"
      )
    check_at_least(0, **fields(self, "num_classes"))
    check_at_least(1, **fields(self, "embed_dim"))
    check_rates(**fields(self, *_RATES))
    check_choices(DTYPES, **fields(self, "dtype", "param_dtype"))
    check_choices(REMATERIALIZATIONS, **fields(self, "rematerialization"))
    check_choices(("auto", *IMPLEMENTATIONS), **fields(self, "attention"))
    for stage, heads in enumerate(self.num_heads):
      check_heads(self.embed_dim * 2**stage, heads, f"stage {stage}")


def _implementation(config: VideoSwinConfig) -> str:
  return resolve_implementation(config.attention, IMPLEMENTATIONS, config.dtype)


class PatchEmbed(nnx.Module):
  """Linear embedding of non-overlapping patches, then LayerNorm (section 3.1).

  The rows of the kernel are (time, height, width, color) of a patch.
  """

  def __init__(self, config: VideoSwinConfig, *, rngs: nnx.Rngs):
    self.config = config
    inputs = math.prod(config.patch_size) * 3
    uniform = symmetric_uniform(inputs**-0.5)
    self.proj = linear(
      inputs, config.embed_dim, config, rngs, kernel_init=uniform, bias_init=uniform
    )
    self.norm = layer_norm(config.embed_dim, LAYER_NORM_EPSILON, config, rngs)

  @jax.named_scope("patch_embed")
  def __call__(self, video: jax.Array) -> jax.Array:
    patch = self.config.patch_size
    padding = [(0, -size % step) for size, step in zip(video.shape[1:4], patch)]
    x = jnp.pad(video, [(0, 0), *padding, (0, 0)])
    count = self._patches_per_product(x.shape[3] // patch[2])
    # One axis per reshape: the partitioner follows shardings through each of these.
    for axis, size in zip((1, 3, 5), (*patch[:2], count * patch[2])):
      x = x.reshape(*x.shape[:axis], x.shape[axis] // size, size, *x.shape[axis + 1 :])
    x = x.reshape(*x.shape[:6], -1).transpose(0, 3, 5, 1, 2, 4, 6)
    x = self.proj.repeated(x.reshape(*x.shape[:4], -1), math.prod(patch[:2]), count)
    batch, height, columns, time = x.shape[:4]
    x = x.reshape(batch, height, columns, time, count, -1).swapaxes(3, 4)
    return self.norm(x.reshape(batch, height, columns * count, time, -1))

  def _patches_per_product(self, columns: int) -> int:
    """Returns the number of neighboring patches that one product embeds.

    TPUs pad the last axis to 128 elements, and a row of a patch has only 12. A product over a block
    diagonal kernel costs more operations, but far fewer bytes.
    """
    if not _implementation(self.config).startswith("pallas_tpu"):
      return 1
    most = 128 // (3 * self.config.patch_size[2])
    return max(count for count in range(1, max(most, 1) + 1) if columns % count == 0)


class WindowAttention(nnx.Module):
  """Multi-head attention in windows `[batch, windows, tokens, channels]` (section 3.2)."""

  def __init__(self, channels: int, heads: int, config: VideoSwinConfig, *, rngs: nnx.Rngs):
    self.config = config
    self.relative_position_bias_table = normal_param(
      (table_rows(config.window_size), heads), config.init_std, config, rngs
    )
    self.qkv = linear(channels, 3 * channels, config, rngs)
    self.proj = linear(channels, channels, config, rngs)

  @jax.named_scope("attention")
  def __call__(
    self, x: jax.Array, layout: WindowLayout, *, key: jax.Array | None = None
  ) -> jax.Array:
    attention_key, proj_key = split_key(key, 2)

    def attend(qkv, table):
      return window_attention(
        qkv,
        table,
        self.config.window_size,
        layout,
        dropout_rate=self.config.attention_dropout_rate,
        dropout_key=attention_key,
        implementation=self.config.attention,
      )

    if self.config.rematerialization == "attention":
      attend = jax.checkpoint(attend)
    x = attend(self.qkv(x), self.relative_position_bias_table[...])
    return dropout(self.proj(x), self.config.dropout_rate, proj_key)

  def interprets_kernels(self, layout: WindowLayout, key: jax.Array | None) -> bool | None:
    """Returns whether the kernels of `on_grid` are interpreted; None: they can't compute it."""
    config, heads = self.config, self.relative_position_bias_table.shape[1]
    implementation = _implementation(config)
    if not implementation.startswith("pallas_gpu"):
      return None
    interpret = implementation.endswith("interpret")
    reason = gpu.why_not(layout, self.qkv.kernel.shape[0], heads, config.dtype, interpret)
    has_dropout = config.attention_dropout_rate and key is not None
    return None if reason or has_dropout else interpret

  @jax.named_scope("attention")
  def on_grid(
    self, x: jax.Array, layout: WindowLayout, interpret: bool, *, key: jax.Array | None = None
  ) -> jax.Array:
    """Returns the same for `[batch, height, width, time, channels]`, without cutting windows."""
    _, proj_key = split_key(key, 2)
    (height, width, time), channels = x.shape[1:4], x.shape[4]
    table = self.relative_position_bias_table[...]
    qkv = self.qkv(pad_grid(x, layout), factors=gpu.qkv_factors(channels, table.shape[1]))

    def attend(qkv, table):
      return gpu.attend(qkv, table, self.config.window_size, layout, interpret=interpret)

    with jax.named_scope("window_attention"):
      x = on_each_device(attend, qkv, whole=table)
    return dropout(self.proj(x[:, :height, :width, :time]), self.config.dropout_rate, proj_key)


class Block(nnx.Module):
  """Pre-norm block: (shifted) window attention, then an MLP, each residual (section 3.1)."""

  def __init__(
    self,
    channels: int,
    heads: int,
    drop_path_rate: float,
    shifted: bool,
    config: VideoSwinConfig,
    *,
    rngs: nnx.Rngs,
  ):
    self.config = config
    self.shifted = shifted
    self.drop_path_rate = drop_path_rate
    self.norm1 = layer_norm(channels, LAYER_NORM_EPSILON, config, rngs)
    self.attention = WindowAttention(channels, heads, config, rngs=rngs)
    self.norm2 = layer_norm(channels, LAYER_NORM_EPSILON, config, rngs)
    self.mlp = MLP(channels, config, rngs=rngs)

  def __call__(self, x: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
    attention_key, path1_key, mlp_key, path2_key = split_key(key, 4)
    height, width, time = x.shape[1:4]
    layout = window_layout((time, height, width), self.config.window_size, shifted=self.shifted)
    if self._fits_kernels(layout):
      return self._run_kernels(x, layout, attention_key, path1_key, path2_key)
    interpret = self.attention.interprets_kernels(layout, key)
    normal, x = self.norm1.with_input(x, interpret)
    if interpret is None:
      windows = self.attention(to_windows(normal, layout), layout, key=attention_key)
      attended = from_windows(windows, layout)
    else:
      attended = self.attention.on_grid(normal, layout, interpret, key=attention_key)
    x = x + drop_path(attended, self.drop_path_rate, path1_key)
    normal, x = self.norm2.with_input(x, interpret)
    return x + drop_path(self.mlp(normal, key=mlp_key), self.drop_path_rate, path2_key)

  def _fits_kernels(self, layout: WindowLayout) -> bool:
    """Returns whether the block is computed by `tpu_block`."""
    config, (channels, hidden) = self.config, self.mlp.fc1.kernel.shape
    implementation = _implementation(config)
    if not implementation.startswith("pallas_tpu"):
      return False
    heads = self.attention.relative_position_bias_table.shape[1]
    interpret = implementation.endswith("interpret")
    sizes = (layout, config.window_size, channels, heads, hidden)
    reason = tpu_block.why_not(*sizes, config.dtype, interpret)
    if reason:
      log_once(f"blocks of {channels} channels: not as kernels, because {reason}")
    return not reason

  def _run_kernels(self, x: jax.Array, layout: WindowLayout, dropout_key, *path_keys) -> jax.Array:
    config = self.config
    one = jnp.ones((len(x), 1), jnp.float32)
    factors = [drop_path(one, self.drop_path_rate, key) for key in path_keys]
    seeds = jnp.zeros((len(x), tpu_block.DROPOUTS), jnp.int32)
    has_dropout = dropout_key is not None and (config.dropout_rate or config.attention_dropout_rate)
    if has_dropout:
      seeds = jax.random.bits(dropout_key, seeds.shape).astype(jnp.int32)

    def run(x, factors, seeds, parameters):
      return tpu_block.run_block(
        x,
        factors,
        parameters,
        config.window_size,
        layout,
        LAYER_NORM_EPSILON,
        seeds=seeds if has_dropout else None,
        dropout_rate=config.dropout_rate,
        attention_dropout_rate=config.attention_dropout_rate,
        interpret=_implementation(config).endswith("interpret"),
      )

    parameters = nnx.to_pure_dict(nnx.state(self, nnx.Param))
    return on_each_device(run, x, jnp.concatenate(factors, axis=1), seeds, whole=parameters)


class PatchMerging(nnx.Module):
  """Patch merging: halves height and width, doubles channels (section 3.1)."""

  def __init__(self, channels: int, config: VideoSwinConfig, *, rngs: nnx.Rngs):
    self.norm = layer_norm(4 * channels, LAYER_NORM_EPSILON, config, rngs)
    self.reduction = linear(4 * channels, 2 * channels, config, rngs, use_bias=False)

  @jax.named_scope("patch_merging")
  def __call__(self, x: jax.Array) -> jax.Array:
    height, width = x.shape[1:3]
    x = jnp.pad(x, [(0, 0), (0, height % 2), (0, width % 2), (0, 0), (0, 0)])
    x = x.reshape(x.shape[0], -(-height // 2), 2, *x.shape[2:])
    x = x.reshape(*x.shape[:3], -(-width // 2), 2, *x.shape[4:])
    # The reference's order of the four corners: the row varies fastest.
    corners = [x[:, :, row, :, column] for column in range(2) for row in range(2)]
    return self.reduction(self.norm(jnp.concatenate(corners, axis=-1)))


class Stage(nnx.Module):
  """Blocks at one resolution, then patch merging except in the last stage."""

  def __init__(
    self,
    index: int,
    drop_path_rates: list[float],
    config: VideoSwinConfig,
    *,
    rngs: nnx.Rngs,
  ):
    self.config = config
    channels = config.embed_dim * 2**index
    self.blocks = nnx.List(
      [
        Block(channels, config.num_heads[index], rate, number % 2 == 1, config, rngs=rngs)
        for number, rate in enumerate(drop_path_rates)
      ]
    )
    is_last = index == len(config.depths) - 1
    self.downsample = None if is_last else PatchMerging(channels, config, rngs=rngs)

  def __call__(self, x: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
    def run(block, x, key):
      return block(x, key=key)

    if self.config.rematerialization == "block":
      run = jax.checkpoint(run)
    for index, block_key in enumerate(split_key(key, len(self.blocks))):
      with jax.named_scope(f"block{index}"):
        x = run(self.blocks[index], x, block_key)
    return x if self.downsample is None else self.downsample(x)


class VideoSwin(nnx.Module):
  """Video Swin Transformer with a linear classifier on globally pooled features.

  `model(video)` is deterministic; `model(video, key=key)` applies dropout and stochastic depth.
  """

  def __init__(self, config: VideoSwinConfig, *, rngs: nnx.Rngs):
    self.config = config
    rates = np.linspace(0.0, config.drop_path_rate, sum(config.depths)).tolist()
    starts = np.cumsum([0, *config.depths])
    self.patch_embed = PatchEmbed(config, rngs=rngs)
    self.stages = nnx.List(
      [
        Stage(index, rates[starts[index] : starts[index + 1]], config, rngs=rngs)
        for index in range(len(config.depths))
      ]
    )
    channels = config.embed_dim * 2 ** (len(config.depths) - 1)
    self.num_features = channels
    self.norm = layer_norm(channels, LAYER_NORM_EPSILON, config, rngs)
    normal = nnx.initializers.normal(0.01)
    # In float32: logits rounded to bfloat16 would often tie.
    self.head = (
      linear(channels, config.num_classes, config, rngs, kernel_init=normal, dtype="float32")
      if config.num_classes
      else None
    )

  def feature_map(
    self, video: jax.Array, position_ids=None, *, key: jax.Array | None = None
  ) -> jax.Array:
    """Returns the normalized features of the last stage.

    Args:
      video: float `[batch, time, height, width, 3]`, normalized RGB, of any size.
      position_ids: not used; every model takes them.
      key: random key for dropout; None for a deterministic call.

    Returns:
      `[batch, time', height', width', channels]` in the compute dtype. Time is divided by the
      patch size, height and width also by the patch mergings, all rounded up.

    Raises:
      ValueError: wrong shape or dtype of `video`.
    """
    del position_ids
    check_video(video)
    embed_key, *stage_keys = split_key(key, 1 + len(self.stages))
    x = self.patch_embed(video.astype(self.config.dtype))
    x = dropout(x, self.config.dropout_rate, embed_key)
    for index, stage_key in enumerate(stage_keys):
      with jax.named_scope(f"stage{index}"):
        x = self.stages[index](x, key=stage_key)
    return self.norm(x).transpose(0, 3, 1, 2, 4)

  def features(
    self, video: jax.Array, position_ids=None, *, key: jax.Array | None = None
  ) -> jax.Array:
    """Returns the mean of `feature_map` over its grid: float32 `[batch, channels]`."""
    return self.feature_map(video, key=key).mean((1, 2, 3), dtype=jnp.float32)

  def __call__(
    self, video: jax.Array, position_ids=None, *, key: jax.Array | None = None
  ) -> jax.Array:
    """Returns float32 logits `[batch, num_classes]`; arguments as in `feature_map`."""
    backbone_key, head_key = split_key(key, 2)
    features = self.features(video, key=backbone_key)
    features = dropout(features, self.config.head_dropout_rate, head_key)
    return features if self.head is None else self.head(features)
