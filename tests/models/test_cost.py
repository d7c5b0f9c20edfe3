import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from vswin_jax import create_model
from vswin_jax.models.cost import count_macs
from vswin_jax.models.parameters import merge_model, split_model


def test_products_convolutions_and_loops_are_counted():
  image, kernel = jnp.zeros((2, 9, 9, 3)), jnp.zeros((3, 3, 3, 5))
  matrix, vectors = jnp.zeros((6, 7)), jnp.zeros((4, 7))

  def convolve(image, kernel):
    return jax.lax.conv_general_dilated(
      image, kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )

  @jax.checkpoint
  def product(vector):
    return matrix @ vector

  assert count_macs(convolve, image, kernel) == 2 * 4 * 4 * 5 * 27
  assert count_macs(lambda vectors: jax.lax.map(product, vectors), vectors) == 4 * 6 * 7
  assert count_macs(jnp.sin, vectors) == 0
  with pytest.raises(ValueError, match="a loop whose length depends on values"):
    square = matrix[:, :6]
    count_macs(lambda x: jax.lax.while_loop(lambda x: x.sum() < 1, lambda x: x @ x, x), square)


@pytest.mark.parametrize(("name", "layers"), [("vtn_vit_b", 3), ("vtn_vit_b_1layer", 1)])
def test_vtn_costs_what_the_paper_says_less_what_the_class_token_does_not_need(name, layers):
  graph, shapes = split_model(nnx.eval_shape(lambda: create_model(name)))
  frames, tokens, width = 250, 197, 768

  def run(params, video):
    return merge_model(graph, params)(video)

  macs = count_macs(run, shapes, jax.ShapeDtypeStruct((1, frames, 224, 224, 3), jnp.float32))
  # The published figure, linear layers only: 4218 (three layers).
  patches = 196 * width * width
  blocks = 12 * tokens * 12 * width**2
  temporal = layers * 251 * 12 * width**2 + layers * 251 * 2 * width**2
  head = width * (width + 400)
  published = frames * (patches + blocks) + temporal + head
  assert round(published / 1e9) == {3: 4218, 1: 4214}[layers]

  # In the last block and layer, only the class token asks and goes on.
  attention = 2 * width * tokens * (11 * tokens + 1)
  spared = (tokens - 1) * 10 * width**2
  backbone = frames * (patches + blocks + attention - spared)
  class_token = 2 * 251 * width**2 + 2 * 251 * width + (1 + 1) * width**2
  last = class_token + 8 * width**2
  # 250 queries in blocks of 32, each of which sees 9 more on both sides and the class token.
  band = 256 * (2 * (32 + 18) + 1) * width
  other = class_token - width**2 + (250 + 2 * 251 + 251 + 8 * 251) * width**2 + band
  assert macs == backbone + (layers - 1) * other + last + head
