"""The TPU kernels of a block, interpreted, against the block by XLA: values and all gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vswin_jax.attention.windows import from_windows, to_windows, window_layout
from vswin_jax.models import create_model, tpu_block
from vswin_jax.models.parameters import merge_model, split_model
from vswin_jax.models.video_swin import LAYER_NORM_EPSILON, Block, VideoSwinConfig
from vswin_jax.training.sharding import batch_sharding, in_context, make_mesh

GRID, WINDOW = (8, 4, 4), (4, 2, 2)


def random_block(channels, heads, shifted):
  config = VideoSwinConfig(
    embed_dim=channels, num_heads=(heads,), depths=(2,), window_size=WINDOW, init_std=0.2
  )
  graph, params = split_model(Block(channels, heads, 0.0, shifted, config, rngs=nnx.Rngs(0)))
  # Biases and scales that matter.
  keys = iter(jax.random.split(jax.random.key(1), len(jax.tree.leaves(params))))
  return graph, jax.tree.map(lambda x: x + 0.1 * jax.random.normal(next(keys), x.shape), params)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 5e-6), ("bfloat16", 3e-2)])
@pytest.mark.parametrize(("channels", "heads", "shifted"), [(32, 2, False), (128, 4, True)])
def test_kernels_equal_xla(channels, heads, shifted, dtype, tolerance):
  graph, params = random_block(channels, heads, shifted)
  x = jax.random.normal(jax.random.key(2), (2, *GRID[1:], GRID[0], channels), jnp.float32)
  weight = jnp.sin(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape)
  # Stochastic depth drops the MLP of one example and the attention of the other.
  factors = jnp.array([[1.25, 0.0], [0.0, 1.25]])
  layout = window_layout(GRID, WINDOW, shifted=shifted)

  def kernels(x, params):
    params = nnx.to_pure_dict(params) if isinstance(params, nnx.State) else params
    x = x.astype(dtype)
    return tpu_block.run_block(
      x, factors, params, WINDOW, layout, LAYER_NORM_EPSILON, interpret=True
    )

  def xla(x, params):
    block = merge_model(graph, params)
    rows = factors[:, :, None, None, None, None]
    windows = to_windows(block.norm1(x), layout)
    y = x + rows[:, 0] * from_windows(block.attention(windows, layout), layout)
    return y + rows[:, 1] * block.mlp(block.norm2(y))

  def values_and_gradients(function):
    def loss(x, params):
      output = function(x, params).astype(jnp.float32)
      return (output * weight).sum(), output

    (_, output), gradients = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(x, params)
    return jax.tree.leaves((output, gradients))

  for one, other in zip(values_and_gradients(kernels), values_and_gradients(xla), strict=True):
    scale = max(np.abs(other).max(), 1e-2)
    np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("devices", [None, 2])
def test_a_model_of_kernels_equals_one_by_xla(devices):
  """Patches embedded side by side and, with several devices, kernels on the clips of each."""
  options = {
    "num_classes": 5, "embed_dim": 32, "depths": (2,), "num_heads": (2,), "window_size": WINDOW,
    "drop_path_rate": 0.5, "init_std": 0.2,
  }  # fmt: skip
  video = jax.random.normal(jax.random.key(0), (2, 16, 16, 16, 3), jnp.float32)

  def values_and_gradients(attention, mesh):
    graph, params = split_model(create_model("video_swin_t", **options, attention=attention))

    def loss(params, video):
      logits = merge_model(graph, params)(video, key=jax.random.key(1))
      return (logits * jnp.arange(5)).sum(), logits

    step = jax.value_and_grad(loss, has_aux=True)
    if mesh is None:
      return jax.tree.leaves(jax.jit(step)(params, video))
    batch = jax.device_put(video, batch_sharding(mesh))
    return jax.tree.leaves(jax.jit(in_context(mesh, step))(params, batch))

  mesh = make_mesh(1, jax.devices()[:devices]) if devices else None
  actual = values_and_gradients("pallas_tpu_interpret", mesh)
  for one, other in zip(actual, values_and_gradients("xla", None), strict=True):
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * max(np.abs(other).max(), 1e-2))
