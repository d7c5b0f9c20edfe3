import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

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


def test_gradients_and_rematerialization_are_counted():
  """One product forward, two backward, and one more if it is recomputed."""
  x, kernel = jnp.zeros((5, 6)), jnp.zeros((6, 7))

  @jax.custom_vjp
  def product(x, kernel):
    return x @ kernel

  product.defvjp(
    lambda x, kernel: (x @ kernel, (x, kernel)),
    lambda saved, change: (change @ saved[1].T, saved[0].T @ change),
  )

  def loss(x, kernel):
    return jnp.sin(jnp.cos(product(x, kernel))).sum()

  size = 5 * 6 * 7
  assert count_macs(loss, x, kernel) == size
  assert count_macs(jax.jit(jax.value_and_grad(loss, (0, 1))), x, kernel) == 3 * size
  assert count_macs(jax.value_and_grad(jax.checkpoint(loss), (0, 1)), x, kernel) == 4 * size


def test_unused_results_are_not_counted():
  def work(matrix):
    unused = matrix @ matrix
    jnp.sin(unused @ matrix)
    return matrix @ jnp.cos(matrix @ matrix)

  assert count_macs(work, jnp.zeros((3, 3))) == 2 * 27


def test_zeros_in_dilated_gradients_of_convolutions_are_not_counted():
  """Each of the two gradients of a convolution takes as many products as the convolution."""
  image, kernel = jnp.zeros((2, 8, 8, 3)), jnp.zeros((2, 2, 3, 5))

  def convolve(image, kernel):
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(image, kernel, (2, 2), "VALID", dimension_numbers=layout)

  size = 2 * 4 * 4 * 5 * 2 * 2 * 3
  gradients = jax.grad(lambda *inputs: (convolve(*inputs) ** 2).sum(), (0, 1))
  forwards, backwards = count_macs(convolve, image, kernel), count_macs(gradients, image, kernel)
  assert forwards == size
  assert backwards == 3 * size


def test_branches_and_shard_map_are_counted():
  mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
  x, kernel = jnp.zeros((16, 6)), jnp.zeros((6, 7))
  whole, parts = P(), P(("a", "b"))
  mapped = jax.shard_map(jnp.matmul, mesh=mesh, in_specs=(parts, whole), out_specs=parts)
  assert count_macs(mapped, x, kernel) == 16 * 6 * 7
  # Devices along "b" do the same, each of them.
  mapped = jax.shard_map(jnp.matmul, mesh=mesh, in_specs=(P("a"), whole), out_specs=P("a"))
  assert count_macs(mapped, x, kernel) == 4 * 16 * 6 * 7
  one_axis = jax.shard_map(
    jnp.matmul, mesh=mesh, in_specs=(P("a"), whole), out_specs=P("a"), axis_names={"a"}
  )
  assert count_macs(jax.jit(one_axis), x, kernel) == 16 * 6 * 7

  def known_loop(x, kernel):
    return jax.lax.fori_loop(0, 3, lambda _, total: total + x @ kernel, jnp.zeros((16, 7)))

  assert count_macs(known_loop, x, kernel) == 3 * 16 * 6 * 7
  square = jnp.zeros((6, 6))
  chosen = [lambda x: x, lambda x: x @ x, lambda x: x @ x @ x]
  assert count_macs(lambda x, i: jax.lax.switch(i, chosen, x), square, 0) == 2 * 6**3


@pytest.mark.parametrize(("name", "layers"), [("vtn_vit_b", 3), ("vtn_vit_b_1layer", 1)])
def test_vtn_costs_the_published_macs_without_those_of_unused_tokens(name, layers):
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
