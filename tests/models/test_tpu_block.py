"""The TPU kernels of a block, interpreted, against the block by XLA: values and all gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vswin_jax.attention.relative_position import expand_bias
from vswin_jax.attention.tpu_core import dropout_factors
from vswin_jax.attention.windows import from_windows, region_ids, to_windows, window_layout
from vswin_jax.models import create_model, tpu_block, tpu_layers
from vswin_jax.models.parameters import merge_model, split_model
from vswin_jax.models.video_swin import LAYER_NORM_EPSILON, Block, VideoSwinConfig
from vswin_jax.training.sharding import (
  batch_sharding,
  in_context,
  make_mesh,
  replicated,
  state_shardings,
)

GRID, WINDOW = (8, 4, 4), (4, 2, 2)
# Rates of dropout of probabilities, and after linear layers.
RATES = (0.25, 0.5)


def random_block(channels, heads, shifted):
  config = VideoSwinConfig(
    embed_dim=channels, num_heads=(heads,), depths=(2,), window_size=WINDOW, init_std=0.2
  )
  graph, params = split_model(Block(channels, heads, 0.0, shifted, config, rngs=nnx.Rngs(0)))
  # Biases and scales that matter.
  keys = iter(jax.random.split(jax.random.key(1), len(jax.tree.leaves(params))))
  return graph, jax.tree.map(lambda x: x + 0.1 * jax.random.normal(next(keys), x.shape), params)


def reference_block(block, x, factors, seeds, layout, heads, rates):
  """The block by XLA in the order of windows, with given factors of dropout."""

  def dropped(layer: int, *shape: int):
    rate = rates[0] if layer == 0 else rates[1]
    rows, columns = int(np.prod(shape[:-1])), shape[-1]
    draws = [dropout_factors(s, (0, 0), (rows, columns), columns, rate) for s in seeds[:, layer]]
    return jnp.stack(draws).reshape(-1, *shape) if rate else 1.0

  attention_factor, mlp_factor = factors.T[..., None, None, None]
  windows = to_windows(block.norm1(x), layout)
  batch, count, tokens, channels = windows.shape
  qkv = block.attention.qkv(windows).reshape(batch, count, tokens, 3, heads, -1)
  query, key, value = qkv.transpose(3, 0, 1, 4, 2, 5)
  table = block.attention.relative_position_bias_table[...]
  logits = jnp.einsum("bwhnd,bwhmd->bwhnm", query, key) * query.shape[-1] ** -0.5
  logits += expand_bias(table, WINDOW, layout.window)
  ids = region_ids(layout)
  if ids is not None:
    logits += jnp.where(ids[:, None, :, None] == ids[:, None, None, :], 0.0, -100.0)
  weights = jax.nn.softmax(logits) * dropped(0, count, heads, tokens, tokens)
  attended = jnp.einsum("bwhnm,bwhmd->bwnhd", weights, value).reshape(windows.shape)
  rows = to_windows(x, layout)
  projected = block.attention.proj(attended) * dropped(1, count, tokens, channels)
  rows += attention_factor * projected
  hidden = jax.nn.gelu(block.mlp.fc1(block.norm2(rows)), approximate=False)
  hidden *= dropped(2, count, tokens, hidden.shape[-1])
  rows += mlp_factor * block.mlp.fc2(hidden) * dropped(3, count, tokens, channels)
  return from_windows(rows, layout)


# Grid, channels, heads, shifted, rates of dropout; whether two cores share the work, and the hidden
# channels are divided in two.
CASES = {
  "not shifted": (GRID, 32, 2, False, (0.0, 0.0), False),
  "shifted, a tile of lanes": (GRID, 128, 4, True, (0.0, 0.0), False),
  "padded along all axes": ((6, 5, 3), 32, 2, True, (0.0, 0.0), False),
  "dropout, in parts": (GRID, 32, 2, True, RATES, True),
}


@pytest.mark.parametrize(
  ("case", "dtype", "tolerance"),
  [
    *((case, "float32", 5e-6) for case in CASES),
    ("not shifted", "bfloat16", 3e-2),
    ("shifted, a tile of lanes", "bfloat16", 3e-2),
  ],
)
def test_kernels_equal_xla(monkeypatch, case, dtype, tolerance):
  grid, channels, heads, shifted, rates, in_parts = CASES[case]
  if in_parts:
    monkeypatch.setattr("vswin_jax.models.tpu_layers.project_mlp_step", lambda *_: (64, 2))
    for module in ("attention.tpu", "models.tpu_rows"):
      monkeypatch.setattr(f"vswin_jax.{module}.cores", lambda: 2)
  graph, params = random_block(channels, heads, shifted)
  x = jax.random.normal(jax.random.key(2), (2, *grid[1:], grid[0], channels), jnp.float32)
  weight = jnp.sin(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape)
  # Stochastic depth drops the MLP of one example and the attention of the other.
  factors = jnp.array([[1.25, 0.0], [0.0, 1.25]]) if not any(rates) else jnp.ones((2, 2))
  seeds = jax.random.bits(jax.random.key(3), (2, tpu_block.DROPOUTS)).astype(jnp.int32)
  layout = window_layout(grid, WINDOW, shifted=shifted)
  assert tpu_block.why_not(layout, WINDOW, channels, heads, 4 * channels, dtype, True) is None

  def kernels(x, params):
    return tpu_block.run_block(
      x.astype(dtype),
      factors,
      params,
      WINDOW,
      layout,
      LAYER_NORM_EPSILON,
      seeds=seeds,
      attention_dropout_rate=rates[0],
      dropout_rate=rates[1],
      interpret=True,
    )

  def xla(x, params):
    return reference_block(merge_model(graph, params), x, factors, seeds, layout, heads, rates)

  def values_and_gradients(function):
    def loss(x, params):
      output = function(x, params).astype(jnp.float32)
      return (output * weight).sum(), output

    (_, output), gradients = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(x, params)
    return jax.tree.leaves((output, gradients))

  for one, other in zip(values_and_gradients(kernels), values_and_gradients(xla), strict=True):
    scale = max(np.abs(other).max(), 1e-2)
    np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize(
  ("devices", "fsdp", "rematerialization"), [(None, 1, "attention"), (2, 2, "block")]
)
def test_a_model_of_kernels_equals_one_by_xla(monkeypatch, devices, fsdp, rematerialization):
  """Patches embedded side by side; on several devices, kernels on the clips of each one."""
  options = {
    "num_classes": 5, "embed_dim": 32, "depths": (2,), "num_heads": (2,), "window_size": WINDOW,
    "drop_path_rate": 0.5, "init_std": 0.2, "rematerialization": rematerialization,
  }  # fmt: skip
  video = jax.random.normal(jax.random.key(0), (2, 16, 16, 16, 3), jnp.float32)
  monkeypatch.setattr("vswin_jax.training.sharding._SMALLEST_SHARDED_SIZE", 2)

  def values_and_gradients(attention, mesh):
    graph, params = split_model(create_model("video_swin_t", **options, attention=attention))

    def loss(params, video):
      logits = merge_model(graph, params)(video, key=jax.random.key(1))
      return (logits * jnp.arange(5)).sum(), logits

    step = jax.value_and_grad(loss, has_aux=True)
    if mesh is None:
      return jax.tree.leaves(jax.jit(step)(params, video))
    places = state_shardings(mesh, params)
    assert (fsdp == 1) == all(place == replicated(mesh) for place in jax.tree.leaves(places))
    arguments = jax.device_put(params, places), jax.device_put(video, batch_sharding(mesh))
    return jax.tree.leaves(jax.jit(in_context(mesh, step))(*arguments))

  mesh = make_mesh(fsdp, jax.devices()[:devices]) if devices else None
  actual = values_and_gradients("pallas_tpu_interpret", mesh)
  for one, other in zip(actual, values_and_gradients("xla", None), strict=True):
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * max(np.abs(other).max(), 1e-2))


def test_a_block_that_is_not_as_kernels_is_that_of_xla(monkeypatch):
  messages = []
  for module in ("attention.window", "models.video_swin"):
    monkeypatch.setattr(f"vswin_jax.{module}.log_once", messages.append)
  options = {"embed_dim": 8, "num_heads": (2,), "depths": (2,), "window_size": (2, 4, 4)}
  x = jax.random.normal(jax.random.key(0), (1, 3, 3, 4, 8), jnp.float32)

  def values_and_gradients(attention):
    config = VideoSwinConfig(**options, attention=attention)
    graph, params = split_model(Block(8, 2, 0.0, True, config, rngs=nnx.Rngs(0)))
    loss = lambda params, x: (merge_model(graph, params)(x) ** 2).sum()  # noqa: E731
    return jax.tree.leaves(jax.jit(jax.value_and_grad(loss, (0, 1)))(params, x))

  jax.tree.map(
    np.testing.assert_array_equal,
    values_and_gradients("pallas_tpu_interpret"),
    values_and_gradients("xla"),
  )
  reason = "a window (2, 4, 4) that shrank to (2, 3, 3) has no geometric bias"
  assert messages[0] == f"blocks of 8 channels: not as kernels, because {reason}"
  assert messages[1] == f"window attention of 8 channels: xla, because {reason}"


def test_steps_fit_the_memory(monkeypatch):
  """Rows at a time and parts of the hidden channels, where weights and gradients are too large."""

  def plan(memory, rows, channels):
    monkeypatch.setattr("vswin_jax.attention.tpu_core.core_memory", lambda: memory * 2**20)
    norm_step = tpu_layers.norm_qkv_step(rows, channels, 2)
    return norm_step, tpu_layers.project_mlp_step(rows, channels, 4 * channels, 2)

  assert plan(128, 784, 1024) == (392, (392, 1))
  assert plan(128, 784, 1536) == (392, (392, 2))
  assert plan(16, 784, 1024) == (None, None)
