"""Window attention against a dense float64 reference, and what its program must not contain."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vswin_jax.attention import window_attention
from vswin_jax.attention.relative_position import expand_bias, table_rows
from vswin_jax.attention.window import IMPLEMENTATIONS, _chunk_size
from vswin_jax.models.parameters import merge_model, split_model
from vswin_jax.models.video_swin import Block, VideoSwinConfig


def reference_index(window) -> np.ndarray:
  """The reference's index matrix: row of the bias table for every pair of tokens."""
  coordinates = np.stack(np.meshgrid(*map(np.arange, window), indexing="ij")).reshape(3, -1)
  offset = coordinates[:, :, None] - coordinates[:, None, :]
  depth, height, width = window
  return (
    (offset[0] + depth - 1) * (2 * height - 1) * (2 * width - 1)
    + (offset[1] + height - 1) * (2 * width - 1)
    + (offset[2] + width - 1)
  )


def dense_attention(query, key, value, table, window, regions):
  """The definition, one window and head at a time, in float64."""
  query, key, value, table = (np.asarray(x, np.float64) for x in (query, key, value, table))
  tokens = query.shape[-2]
  bias = table[reference_index(window)[:tokens, :tokens]]
  output = np.zeros_like(query)
  for b, w, h in np.ndindex(query.shape[:3]):
    logits = query[b, w, h] @ key[b, w, h].T / math.sqrt(query.shape[-1]) + bias[..., h]
    if regions is not None:
      logits = logits + np.where(regions[w][:, None] == regions[w][None, :], 0.0, -100.0)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    output[b, w, h] = weights / weights.sum(-1, keepdims=True) @ value[b, w, h]
  return output


def random_inputs(window, tokens, *, batch=2, windows=18, heads=3, head_dim=8, regions=True):
  random = np.random.default_rng(0)
  qkv = random.normal(size=(3, batch, windows, heads, tokens, head_dim)).astype(np.float32)
  table = random.normal(size=(table_rows(window), heads)).astype(np.float32)
  ids = random.integers(0, 3, (windows, tokens)).astype(np.int32) if regions else None
  return (*qkv, table), ids


# Full windows, windows shrunk in time, and windows shrunk in space (fewer tokens than a plane, and
# a number that fills no whole planes).
SHAPES = [((2, 3, 4), 24), ((4, 2, 3), 12), ((3, 4, 4), 9), ((3, 4, 4), 36), ((1, 1, 1), 1)]


@pytest.mark.parametrize(("window", "tokens"), SHAPES)
def test_bias_is_the_corner_of_the_reference_index(window, tokens):
  table = np.random.default_rng(0).normal(size=(table_rows(window), 2)).astype(np.float32)
  expected = table[reference_index(window)[:tokens, :tokens]].transpose(2, 0, 1)
  np.testing.assert_array_equal(expand_bias(jnp.asarray(table), window, tokens), expected)


@pytest.fixture
def small_chunks(monkeypatch):
  """Chunks of 3 of the 18 windows of `random_inputs`, for 24 tokens and 3 heads."""
  monkeypatch.setattr("vswin_jax.attention.window._CHUNK_LOGITS", 3 * 3 * 24**2)


@pytest.mark.parametrize(
  ("windows", "logits", "size"), [(128, 2**19, 4), (8, 2**20, 2), (11, 2**20, 1), (2, 2**30, 1)]
)
def test_chunks_fit_their_budget(windows, logits, size):
  assert _chunk_size(windows, logits) == size


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("implementation", sorted(IMPLEMENTATIONS))
@pytest.mark.parametrize(("window", "tokens"), SHAPES)
def test_values_equal_dense_attention(window, tokens, implementation, regions):
  inputs, ids = random_inputs(window, tokens, regions=regions)
  output = jax.jit(
    lambda *inputs: window_attention(*inputs, window, ids, implementation=implementation)
  )(*inputs)
  np.testing.assert_allclose(output, dense_attention(*inputs, window, ids), atol=2e-6)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("implementation", sorted(IMPLEMENTATIONS))
@pytest.mark.parametrize(("window", "tokens"), SHAPES[:4])
def test_gradients_equal_those_of_a_gathered_bias(window, tokens, implementation):
  inputs, ids = random_inputs(window, tokens)
  weight = np.random.default_rng(1).normal(size=inputs[0].shape).astype(np.float32)

  def plain(query, key, value, table):
    bias = table[reference_index(window)[:tokens, :tokens]].transpose(2, 0, 1)
    logits = jnp.einsum("bwhnd,bwhmd->bwhnm", query, key) * query.shape[-1] ** -0.5 + bias
    same = ids[:, None, :, None] == ids[:, None, None, :]
    weights = jax.nn.softmax(jnp.where(same, logits, logits - 100.0))
    return (jnp.einsum("bwhnm,bwhmd->bwhnd", weights, value) * weight).sum()

  def ours(*inputs):
    return (window_attention(*inputs, window, ids, implementation=implementation) * weight).sum()

  gradients = [jax.grad(function, argnums=(0, 1, 2, 3)) for function in (ours, plain)]
  for actual, reference in zip(*jax.jit(lambda *x: [f(*x) for f in gradients])(*inputs)):
    scale = np.abs(reference).max()
    np.testing.assert_allclose(actual / scale, reference / scale, atol=2e-6)


def test_bfloat16_keeps_the_softmax_in_float32():
  inputs, ids = random_inputs((2, 3, 4), 24)
  low = [jnp.asarray(x, jnp.bfloat16) for x in inputs[:3]]
  output = window_attention(*low, inputs[3], (2, 3, 4), ids)
  assert output.dtype == jnp.bfloat16
  exact = dense_attention(*low, inputs[3], (2, 3, 4), ids)
  np.testing.assert_allclose(np.asarray(output, np.float32), exact, atol=0.02)
  text = jax.jit(lambda *x: window_attention(*x, (2, 3, 4), ids)).lower(*low, inputs[3]).as_text()
  exponentials = re.findall(r"exponential .*", text)
  assert exponentials
  assert all("f32" in line for line in exponentials)


@pytest.mark.parametrize("implementation", sorted(IMPLEMENTATIONS))
def test_dropout_keeps_the_expected_value(implementation):
  inputs, ids = random_inputs((2, 2, 2), 8, batch=1, windows=2, heads=1)

  def attend(key):
    return window_attention(
      *inputs, (2, 2, 2), ids, dropout_rate=0.3, dropout_key=key, implementation=implementation
    )

  outputs = jax.jit(jax.vmap(attend))(jax.random.split(jax.random.key(0), 4000))
  assert outputs.std(0).min() > 0.01
  exact = dense_attention(*inputs, (2, 2, 2), ids)
  error = 5 * outputs.std(0) / math.sqrt(4000)
  assert (np.abs(outputs.mean(0) - exact) < error).all()


@pytest.mark.parametrize("implementation", sorted(IMPLEMENTATIONS))
def test_every_window_draws_its_own_dropout(monkeypatch, implementation):
  monkeypatch.setattr("vswin_jax.attention.window._CHUNK_LOGITS", 2 * 8**2)
  inputs, _ = random_inputs((2, 2, 2), 8, batch=1, windows=12, heads=1, regions=False)
  alike = [jnp.broadcast_to(x[:, :1], x.shape) for x in inputs[:3]]
  output = window_attention(
    *alike,
    inputs[3],
    (2, 2, 2),
    dropout_rate=0.5,
    dropout_key=jax.random.key(0),
    implementation=implementation,
  )
  assert len({np.asarray(window).tobytes() for window in output[0]}) == 12


def test_bfloat16_multiplies_in_bfloat16_in_both_directions():
  inputs, ids = random_inputs((2, 3, 4), 24)
  low = [jnp.asarray(x, jnp.bfloat16) for x in inputs[:3]]

  def loss(query, key, value):
    return window_attention(query, key, value, inputs[3], (2, 3, 4), ids).astype(jnp.float32).sum()

  text = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*low).as_text()
  products = [line for line in text.splitlines() if "dot_general" in line]
  attention = [line for line in products if "24x8x" in line]
  assert len(attention) >= 5
  for line in attention:
    left, right = re.search(r": \(tensor<(\S+)>, tensor<(\S+)>\)", line).groups()
    assert left.endswith("bf16"), line
    assert right.endswith("bf16"), line


def test_tokens_and_tables_must_fit_the_window():
  inputs, _ = random_inputs((2, 2, 2), 12, regions=False)
  with pytest.raises(ValueError, match="expected at most 8 tokens"):
    window_attention(*inputs, (2, 2, 2))
  with pytest.raises(ValueError, match=r"do not fit the window \(2, 2, 3\)"):
    window_attention(*inputs, (2, 2, 3))


def test_unknown_implementation_is_refused():
  inputs, ids = random_inputs((1, 1, 2), 2)
  with pytest.raises(ValueError, match="unknown attention implementation 'xlaa'; choose one of"):
    window_attention(*inputs, (1, 1, 2), ids, implementation="xlaa")


def shifted_block(attention="xla"):
  """Graph and parameters of a shifted block: window (4, 4, 4), 16 channels, 2 heads."""
  config = VideoSwinConfig(
    embed_dim=16, num_heads=(2,), depths=(2,), window_size=(4, 4, 4), attention=attention
  )
  return split_model(Block(16, 2, 0.0, True, config, rngs=nnx.Rngs(0)))


def compiled_block(batch, grid, *, gradient, devices=1, attention="xla"):
  """Optimized HLO of `shifted_block`, with the batch sharded over devices."""
  graph, params = shifted_block(attention)

  def run(params, x):
    return (merge_model(graph, params)(x) ** 2).sum()

  function = jax.grad(run) if gradient else run
  mesh = jax.make_mesh((devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  shards = jax.NamedSharding(mesh, jax.P("data"))
  copies = jax.NamedSharding(mesh, jax.P())
  x = jax.ShapeDtypeStruct((batch, *grid, 16), jnp.float32, sharding=shards)
  params = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=copies), params
  )
  return jax.jit(function, out_shardings=copies).lower(params, x).compile().as_text()


def array_sizes(lines) -> list[int]:
  """Elements of every array named in lines of HLO."""
  shapes = re.findall(r"\b(?:pred|[fsu]\d+|bf16)\[([\d,]*)\]", "\n".join(lines))
  return [math.prod(map(int, filter(None, shape.split(",")))) for shape in shapes]


@pytest.mark.parametrize("attention", sorted(IMPLEMENTATIONS))
@pytest.mark.parametrize("gradient", [False, True])
def test_compiled_block_has_no_gather_scatter_or_large_constant(gradient, attention):
  text = compiled_block(2, (8, 8, 8), gradient=gradient, attention=attention)
  tokens, windows = 64, 8
  assert not re.search(r"= \S+ (gather|scatter)\(", text)
  constants = [line for line in text.splitlines() if re.search(r"= \S+ constant\(", line)]
  assert constants
  # The largest constant is the region of every token; nothing is of size tokens x tokens.
  assert max(array_sizes(constants)) <= windows * tokens < tokens * tokens


def test_bias_is_expanded_once_a_call_and_not_once_a_window():
  """The products that expand the bias are the same for more clips and more windows."""

  def expanding_products(batch, grid):
    text = compiled_block(batch, grid, gradient=False)
    results = [
      re.search(r"= \(?\w+\[([\d,]+)\]", line)[1].split(",")
      for line in text.splitlines()
      if re.search(r"= \S+ (dot|custom-call)\(", line)
    ]
    sizes = sorted(math.prod(map(int, result)) for result in results)
    # Every product over tokens is larger than the bias: 2 heads of 64 x 64.
    return [size for size in sizes if size <= 2 * 64 * 64]

  few = expanding_products(2, (8, 8, 8))
  assert few
  assert expanding_products(4, (8, 8, 8)) == few
  assert expanding_products(2, (8, 8, 16)) == few


@pytest.mark.parametrize("attention", sorted(IMPLEMENTATIONS))
def test_devices_exchange_gradients_of_the_size_of_the_parameters(attention):
  text = compiled_block(8, (8, 8, 8), gradient=True, devices=8, attention=attention)
  assert not re.search(r"(all-gather|all-to-all|collective-permute|reduce-scatter)\(", text)
  exchanged = [line for line in text.splitlines() if re.search(r"= .* all-reduce\(", line)]
  assert exchanged
  results = [line.split("all-reduce(")[0] for line in exchanged]
  _, params = shifted_block()
  assert sum(array_sizes(results)) <= sum(leaf.size for leaf in jax.tree.leaves(params))
