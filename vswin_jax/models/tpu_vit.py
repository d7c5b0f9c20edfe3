"""Blocks of a Vision Transformer for TPUs: attention (`tpu_dense`), the rest (`tpu_layers`).

The tokens of an image are padded to whole tiles of rows once, before the first block. No token
attends to padding, so its gradients are zero.
"""

import functools

import jax
import jax.numpy as jnp

from vswin_jax.attention import tpu_dense
from vswin_jax.attention.windows import window_layout
from vswin_jax.models import tpu_layers
from vswin_jax.models.tpu_block import flatten
from vswin_jax.models.tpu_layers import ProjectMLP, norm_qkv, project_mlp
from vswin_jax.models.tpu_rows import Options

# Dropout of the projection, and in the MLP after both layers.
DROPOUTS = 3


def why_not(
  tokens: int, channels: int, hidden: int, dtype: str, interpret: bool = False
) -> str | None:
  """Returns why the kernels can't compute a block with `hidden` channels; None if they can."""
  reason = tpu_dense.why_not(tokens, channels, dtype, interpret)
  rows, itemsize = tpu_dense.padded(tokens), jnp.dtype(dtype).itemsize
  return reason or tpu_layers.why_not(rows, channels, hidden, itemsize)


# Blocks of equal shapes are traced once.
@functools.partial(
  jax.jit, static_argnames=("heads", "tokens", "kept", "epsilon", "dropout_rate", "interpret")
)
def run_block(
  x: jax.Array,
  factors: jax.Array | None,
  parameters: dict,
  heads: int,
  tokens: int,
  kept: int,
  epsilon: float,
  *,
  seeds: jax.Array | None = None,
  dropout_rate: float = 0.0,
  interpret: bool = False,
) -> jax.Array:
  """Computes a block of a ViT; see `why_not` for what it can't compute.

  Args:
    x: `[images, rows, channels]`, the rows of `tpu_dense.padded`.
    factors: float32 `[images, 2]`, factors of both residual branches: stochastic depth; None: 1.
    parameters: of the block, a tree as its modules.
    heads: attention heads.
    tokens: tokens of an image; the other rows are padding.
    kept: tokens to compute, the first ones; the others serve as keys and values only.
    epsilon: of LayerNorm.
    seeds: int32 `[images, DROPOUTS]`, given with `factors`; None: no dropout.
    dropout_rate: after the projection and in the MLP.
    interpret: whether to interpret the kernels, for tests on a CPU.

  Returns:
    The rows that hold the first `kept` tokens.
  """
  attention, mlp = parameters["attention"], parameters["mlp"]
  (images, rows, channels), kept = x.shape, tpu_dense.padded(kept)
  after = ProjectMLP(*flatten(attention["proj"], parameters["norm2"], mlp["fc1"], mlp["fc2"]))
  hidden, itemsize = after.kernel1.shape[1], x.dtype.itemsize
  rate = 0.0 if seeds is None else dropout_rate

  def norm_step(count):
    return tpu_layers.norm_qkv_step(count, channels, itemsize), 1

  def mlp_step(count):
    return tpu_layers.project_mlp_step(count, channels, hidden, itemsize) or (None, 1)

  def options(rows, step_of, per_image: bool):
    # Images without factors of their own can be one example, of which a step takes more rows.
    counts = [rows] if per_image else [images * rows, rows]
    count = next(count for count in counts if step_of(count)[0])
    one_window = window_layout((1, 1, count), (1, 1, count), shifted=False)
    return Options(epsilon, one_window, *step_of(count), rate, interpret)

  before = tuple(flatten(parameters["norm1"], attention["qkv"]))
  qkv, passed = norm_qkv(options(rows, norm_step, per_image=False), x.reshape(-1, channels), before)
  attended = tpu_dense.attend(qkv.reshape(3, *x.shape), heads, tokens, kept, interpret=interpret)
  x = passed.reshape(x.shape)[:, :kept]
  mlp_options = options(kept, mlp_step, per_image=factors is not None)
  examples = images * kept // mlp_options.rows
  output = project_mlp(
    mlp_options,
    attended.reshape(-1, channels),
    x.reshape(-1, channels),
    jnp.ones((examples, 2), jnp.float32) if factors is None else factors,
    jnp.zeros((examples, DROPOUTS), jnp.int32) if seeds is None else seeds,
    after,
  )
  return output.reshape(x.shape)
