"""Transformer blocks for TPUs as Pallas kernels: windows, attention, and the layers around it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from vswin_jax.attention import tpu, tpu_windows
from vswin_jax.attention.windows import Size3D, WindowLayout, pad_grid
from vswin_jax.models import tpu_layers
from vswin_jax.models.tpu_layers import ProjectMLP, norm_qkv, project_mlp
from vswin_jax.models.tpu_rows import Options

# Dropout of probabilities, of the projection, and in the MLP after both layers.
DROPOUTS = 4


def why_not(
  layout: WindowLayout,
  window: Size3D,
  channels: int,
  heads: int,
  hidden: int,
  dtype: str,
  interpret: bool = False,
) -> str | None:
  """Returns why the kernels can't compute a block with `hidden` channels; None if they can."""
  reason = tpu.why_not(layout, window, channels, heads, dtype, interpret)
  reason = reason or tpu_windows.why_not(layout, channels, dtype)
  rows, itemsize = layout.windows * layout.tokens, jnp.dtype(dtype).itemsize
  if rows % 8:
    reason = reason or f"{rows} tokens are no multiple of 8"
  return reason or tpu_layers.why_not(rows, channels, hidden, itemsize)


# Blocks of equal shapes are traced once.
@functools.partial(
  jax.jit,
  static_argnames=(
    "window", "layout", "epsilon", "dropout_rate", "attention_dropout_rate", "interpret"
  ),
)  # fmt: skip
def run_block(
  x: jax.Array,
  factors: jax.Array,
  parameters: dict,
  window: Size3D,
  layout: WindowLayout,
  epsilon: float,
  *,
  seeds: jax.Array | None = None,
  dropout_rate: float = 0.0,
  attention_dropout_rate: float = 0.0,
  interpret: bool = False,
) -> jax.Array:
  """Computes a block of Video Swin; see `why_not` for what it can't compute.

  Args:
    x: `[batch, height, width, time, channels]`.
    factors: float32 `[batch, 2]`, factors of both residual branches: stochastic depth.
    parameters: of the block, a tree as its modules.
    window: the configured window.
    layout: partition of the grid into windows.
    epsilon: of LayerNorm.
    seeds: int32 `[batch, DROPOUTS]`; None: no dropout.
    dropout_rate: after the projection and in the MLP.
    attention_dropout_rate: on the attention probabilities.
    interpret: whether to interpret the kernels, for tests on a CPU.
  """
  attention, mlp = parameters["attention"], parameters["mlp"]

  x, whole = pad_grid(x, layout), layout.without_padding()
  windows = tpu_windows.to_windows(x, whole, interpret)
  rows = windows.reshape(-1, x.shape[-1])

  count, itemsize = layout.windows * layout.tokens, x.dtype.itemsize
  step = tpu_layers.norm_qkv_step(count, x.shape[-1], itemsize)
  options = Options(epsilon, layout, step, interpret=interpret)
  qkv, rows = norm_qkv(options, rows, tuple(flatten(parameters["norm1"], attention["qkv"])))
  attended = tpu.attend(
    qkv.reshape(3, -1, *windows.shape[2:]),
    attention["relative_position_bias_table"],
    window,
    layout,
    seeds=None if seeds is None else seeds[:, 0],
    dropout_rate=attention_dropout_rate,
    interpret=interpret,
  )
  after = ProjectMLP(*flatten(attention["proj"], parameters["norm2"], mlp["fc1"], mlp["fc2"]))
  step, parts = tpu_layers.project_mlp_step(count, x.shape[-1], after.kernel1.shape[1], itemsize)
  rate = 0.0 if seeds is None else dropout_rate
  options = dataclasses.replace(options, step=step, parts=parts, dropout_rate=rate)
  seeds = jnp.zeros((len(x), DROPOUTS), jnp.int32) if seeds is None else seeds
  rows = project_mlp(options, attended.reshape(rows.shape), rows, factors, seeds[:, 1:], after)
  x = tpu_windows.from_windows(rows.reshape(windows.shape), whole, interpret)
  time, height, width = layout.grid
  return x[:, :height, :width, :time]


def flatten(*layers: dict) -> list[jax.Array]:
  """Returns the parameters of layers as float32 matrices, in the order that the kernels take."""
  names = ("scale", "kernel", "bias")
  values = [layer[name] for layer in layers for name in names if name in layer]
  return [jnp.atleast_2d(value.astype(jnp.float32)) for value in values]
