"""Blocks of a Vision Transformer for TPUs: attention (`tpu_dense`) and the rest (`tpu_block`).

The tokens of an image are padded to whole tiles of rows once, before the first block. No token
attends to padding, so its gradients are zero.
"""

import jax
import jax.numpy as jnp

from vswin_jax.attention import tpu_dense
from vswin_jax.models import tpu_block


def why_not(tokens: int, channels: int, mlp_ratio: float) -> str | None:
  """Returns why the kernels can't compute a block; None if they can."""
  return tpu_block.lacks_memory(channels, mlp_ratio) or tpu_dense.why_not(tokens, channels)


def run_block(
  x: jax.Array,
  factors: jax.Array | None,
  parameters: dict,
  heads: int,
  tokens: int,
  kept: int,
  epsilon: float,
  *,
  interpret: bool = False,
) -> jax.Array:
  """Computes a block of a ViT without dropout; see `why_not` for what it can't compute.

  Args:
    x: `[images, rows, channels]`, the rows of `tpu_dense.padded`.
    factors: float32 `[images, 2]`, factors of both residual branches: stochastic depth; None: 1.
    parameters: of the block, a tree as its modules.
    heads: attention heads.
    tokens: tokens of an image; the other rows are padding.
    kept: tokens to compute, the first ones; the others serve as keys and values only.
    epsilon: of LayerNorm.
    interpret: whether to interpret the kernels, for tests on a CPU.

  Returns:
    The rows that hold the first `kept` tokens.
  """
  attention, mlp = parameters["attention"], parameters["mlp"]
  images, channels, kept = len(x), x.shape[2], tpu_dense.padded(kept)

  def images_of(rows):
    return rows.reshape(images, -1, channels)

  # Images that share their factors count as one example, of which a kernel takes more rows.
  together = images if factors is None else 1
  options = tpu_block.Options(epsilon, together * x.shape[1], interpret)
  kept_options = tpu_block.Options(epsilon, together * kept, interpret)
  before = tpu_block.flatten_parameters(parameters["norm1"], attention["qkv"])
  after = tpu_block.flatten_parameters(
    attention["proj"], parameters["norm2"], mlp["fc1"], mlp["fc2"]
  )
  flat = x.reshape(-1, channels)
  *qkv, flat = tpu_block.norm_qkv(options, flat, before)
  query, key, value, x = map(images_of, (*qkv, flat))
  query, x = query[:, :kept], x[:, :kept]
  attended = tpu_dense.attend(query, key, value, heads, tokens, interpret=interpret)
  rows = [array.reshape(-1, channels) for array in (attended, x)]
  ones = jnp.ones((1, 2), jnp.float32)
  factors = ones if factors is None else factors
  return images_of(tpu_block.project_mlp(kept_options, *rows, factors, after))
