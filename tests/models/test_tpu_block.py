"""The TPU kernels of a block, interpreted, against the block by XLA: values and all gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vswin_jax.attention.windows import from_windows, to_windows, window_layout
from vswin_jax.models import tpu_block
from vswin_jax.models.parameters import merge_model, split_model
from vswin_jax.models.video_swin import LAYER_NORM_EPSILON, Block, VideoSwinConfig

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
