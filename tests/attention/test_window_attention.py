"""Window attention against a dense float64 reference, and what its program must not contain."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.test_util import check_grads

from vswin_jax.attention import window_attention
from vswin_jax.attention.chunked import _chunk_size
from vswin_jax.attention.relative_position import expand_bias, table_rows
from vswin_jax.attention.windows import region_ids, window_layout
from vswin_jax.models.parameters import merge_model, split_model
from vswin_jax.models.video_swin import Block, VideoSwinConfig

# Those that a CPU can run.
XLA_IMPLEMENTATIONS = ("chunked", "xla")


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


def reference_bias(table, window, effective):
  """The reference's bias `[tokens, tokens, heads]`, tokens ordered by height, width and time."""
  tokens = math.prod(effective)
  order = np.arange(tokens).reshape(effective).transpose(1, 2, 0).reshape(-1)
  return table[reference_index(window)[:tokens, :tokens][np.ix_(order, order)]]


def split_heads(qkv, heads):
  """`[batch, windows, tokens, 3 * channels]` -> `[3, batch, windows, heads, tokens, head_dim]`."""
  return qkv.reshape(*qkv.shape[:3], 3, heads, -1).transpose(3, 0, 1, 4, 2, 5)


def dense_attention(qkv, table, window, layout):
  """The definition, one window and head at a time, in float64."""
  qkv, table = (np.asarray(x, np.float64) for x in (qkv, table))
  query, key, value = split_heads(qkv, table.shape[1])
  bias, regions = reference_bias(table, window, layout.window), region_ids(layout)
  output = np.zeros_like(query)
  for b, w, h in np.ndindex(query.shape[:3]):
    logits = query[b, w, h] @ key[b, w, h].T / math.sqrt(query.shape[-1]) + bias[..., h]
    if regions is not None:
      logits = logits + np.where(regions[w][:, None] == regions[w][None, :], 0.0, -100.0)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    output[b, w, h] = weights / weights.sum(-1, keepdims=True) @ value[b, w, h]
  return output.swapaxes(2, 3).reshape(*qkv.shape[:3], -1)


def random_inputs(window, layout, *, batch=2, heads=3, head_dim=8):
  random = np.random.default_rng(0)
  qkv = random.normal(size=(batch, layout.windows, layout.tokens, 3 * heads * head_dim))
  table = random.normal(size=(table_rows(window), heads))
  return qkv.astype(np.float32), table.astype(np.float32)


# Grids and windows: full ones, 18 of them; shrunk in time; and shrunk in space to fewer tokens than
# a plane of the window, and to a number of tokens that fills no whole planes.
SHAPES = [
  ((4, 9, 12), (2, 3, 4)),
  ((2, 4, 6), (4, 2, 3)),
  ((1, 3, 3), (3, 4, 4)),
  ((6, 3, 8), (3, 4, 4)),
  ((1, 1, 1), (1, 1, 1)),
]
SMALL_GRID, SMALL_WINDOW = SHAPES[0]
SMALL = window_layout(SMALL_GRID, SMALL_WINDOW, shifted=True)


@pytest.mark.parametrize(("grid", "window"), SHAPES)
def test_bias_is_the_corner_of_the_reference_index(grid, window):
  table = np.random.default_rng(0).normal(size=(table_rows(window), 2)).astype(np.float32)
  effective = window_layout(grid, window, shifted=False).window
  expected = reference_bias(table, window, effective).transpose(2, 0, 1)
  np.testing.assert_array_equal(expand_bias(jnp.asarray(table), window, effective), expected)


@pytest.fixture
def small_chunks(monkeypatch):
  """Chunks of 3 of the 18 windows of `random_inputs`, for 24 tokens and 3 heads."""
  monkeypatch.setattr("vswin_jax.attention.chunked._CHUNK_LOGITS", 3 * 3 * 24**2)


@pytest.mark.parametrize(
  ("windows", "logits", "size"), [(128, 2**19, 4), (8, 2**20, 2), (11, 2**20, 1), (2, 2**30, 1)]
)
def test_chunks_fit_their_budget(windows, logits, size):
  layout = window_layout((1, 1, windows), (1, 1, 1), shifted=False)
  # Windows of one token have as many logits as heads.
  assert _chunk_size(layout, heads=logits) == size


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("implementation", XLA_IMPLEMENTATIONS)
@pytest.mark.parametrize(("grid", "window"), SHAPES)
def test_values_equal_dense_attention(grid, window, implementation, shifted):
  layout = window_layout(grid, window, shifted=shifted)
  inputs = random_inputs(window, layout)
  output = jax.jit(
    lambda *inputs: window_attention(*inputs, window, layout, implementation=implementation)
  )(*inputs)
  np.testing.assert_allclose(output, dense_attention(*inputs, window, layout), atol=2e-6)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("implementation", XLA_IMPLEMENTATIONS)
@pytest.mark.parametrize(("grid", "window"), SHAPES[:4])
def test_gradients_equal_those_of_a_gathered_bias(grid, window, implementation):
  layout = window_layout(grid, window, shifted=True)
  qkv, table = random_inputs(window, layout)
  weight = np.random.default_rng(1).normal(size=(*qkv.shape[:3], qkv.shape[3] // 3))
  weight = weight.astype(np.float32)

  def plain(qkv, table):
    query, key, value = split_heads(qkv, table.shape[1])
    bias = reference_bias(table, window, layout.window).transpose(2, 0, 1)
    logits = jnp.einsum("bwhnd,bwhmd->bwhnm", query, key) * query.shape[-1] ** -0.5 + bias
    ids = region_ids(layout)
    if ids is not None:
      same = ids[:, None, :, None] == ids[:, None, None, :]
      logits = jnp.where(same, logits, logits - 100.0)
    output = jnp.einsum("bwhnm,bwhmd->bwnhd", jax.nn.softmax(logits), value)
    return (output.reshape(weight.shape) * weight).sum()

  def ours(qkv, table):
    output = window_attention(qkv, table, window, layout, implementation=implementation)
    return (output * weight).sum()

  gradients = [jax.grad(function, argnums=(0, 1)) for function in (ours, plain)]
  for actual, reference in zip(*jax.jit(lambda *x: [f(*x) for f in gradients])(qkv, table)):
    scale = np.abs(reference).max()
    np.testing.assert_allclose(actual / scale, reference / scale, atol=2e-6)


def test_bfloat16_keeps_the_softmax_in_float32():
  qkv, table = random_inputs(SMALL_WINDOW, SMALL)
  low = jnp.asarray(qkv, jnp.bfloat16)
  output = window_attention(low, table, SMALL_WINDOW, SMALL)
  assert output.dtype == jnp.bfloat16
  exact = dense_attention(low, table, SMALL_WINDOW, SMALL)
  np.testing.assert_allclose(np.asarray(output, np.float32), exact, atol=0.02)
  attend = jax.jit(lambda qkv: window_attention(qkv, table, SMALL_WINDOW, SMALL))
  exponentials = re.findall(r"exponential .*", attend.lower(low).as_text())
  assert exponentials
  assert all("f32" in line for line in exponentials)


@pytest.mark.parametrize("implementation", XLA_IMPLEMENTATIONS)
def test_dropout_keeps_the_expected_value(implementation):
  window = (2, 2, 2)
  layout = window_layout((4, 2, 2), window, shifted=True)
  inputs = random_inputs(window, layout, batch=1, heads=1)

  def attend(key):
    return window_attention(
      *inputs, window, layout, dropout_rate=0.3, dropout_key=key, implementation=implementation
    )

  outputs = jax.jit(jax.vmap(attend))(jax.random.split(jax.random.key(0), 4000))
  assert outputs.std(0).min() > 0.01
  exact = dense_attention(*inputs, window, layout)
  error = 5 * outputs.std(0) / math.sqrt(4000)
  assert (np.abs(outputs.mean(0) - exact) < error).all()


@pytest.mark.parametrize("implementation", XLA_IMPLEMENTATIONS)
def test_every_window_draws_its_own_dropout(monkeypatch, implementation):
  monkeypatch.setattr("vswin_jax.attention.chunked._CHUNK_LOGITS", 2 * 8**2)
  window = (2, 2, 2)
  layout = window_layout((4, 4, 6), window, shifted=False)
  qkv, table = random_inputs(window, layout, batch=1, heads=1)
  output = window_attention(
    jnp.broadcast_to(qkv[:, :1], qkv.shape),
    table,
    window,
    layout,
    dropout_rate=0.5,
    dropout_key=jax.random.key(0),
    implementation=implementation,
  )
  assert len({np.asarray(window).tobytes() for window in output[0]}) == 12


@pytest.mark.usefixtures("small_chunks")
def test_chunked_gradients_with_dropout_equal_finite_differences():
  inputs = random_inputs(SMALL_WINDOW, SMALL)

  def attend(qkv, table):
    return window_attention(
      qkv,
      table,
      SMALL_WINDOW,
      SMALL,
      dropout_rate=0.3,
      dropout_key=jax.random.key(0),
      implementation="chunked",
    )

  check_grads(jax.jit(attend), inputs, order=1, modes=["rev"], eps=1e-2, rtol=2e-3)


def test_bfloat16_multiplies_in_bfloat16_in_both_directions():
  qkv, table = random_inputs(SMALL_WINDOW, SMALL)

  def loss(qkv):
    return window_attention(qkv, table, SMALL_WINDOW, SMALL).astype(jnp.float32).sum()

  text = jax.jit(jax.grad(loss)).lower(jnp.asarray(qkv, jnp.bfloat16)).as_text()
  products = [line for line in text.splitlines() if "dot_general" in line]
  attention = [line for line in products if "24x8x" in line]
  assert len(attention) >= 5
  for line in attention:
    left, right = re.search(r": \(tensor<(\S+)>, tensor<(\S+)>\)", line).groups()
    assert left.endswith("bf16"), line
    assert right.endswith("bf16"), line


def test_tokens_and_tables_must_fit_the_window():
  qkv, table = random_inputs(SMALL_WINDOW, SMALL)
  with pytest.raises(ValueError, match="expected 27 rows"):
    window_attention(qkv, table, (2, 2, 2), SMALL)
  with pytest.raises(ValueError, match="do not fit 18 windows of 24 tokens and 3 heads"):
    window_attention(qkv[:, 1:], table, SMALL_WINDOW, SMALL)


def test_unknown_implementation_is_refused():
  qkv, table = random_inputs(SMALL_WINDOW, SMALL)
  with pytest.raises(ValueError, match="unknown attention implementation 'xlaa'; choose one of"):
    window_attention(qkv, table, SMALL_WINDOW, SMALL, implementation="xlaa")


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


@pytest.mark.parametrize("attention", XLA_IMPLEMENTATIONS)
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
  """Only the sum of logits and bias grows with the number of clips and windows."""

  def expansions(batch, grid):
    text = compiled_block(batch, grid, gradient=False)
    lines = [line for line in text.splitlines() if "relative_position_bias" in line]
    return sorted(array_sizes(line.split("(")[0] for line in lines))

  few = expansions(2, (8, 8, 8))
  assert few
  assert expansions(4, (8, 8, 8)) == few
  assert expansions(2, (8, 8, 16)) == few


@pytest.mark.parametrize("attention", XLA_IMPLEMENTATIONS)
def test_devices_exchange_gradients_of_the_size_of_the_parameters(attention):
  text = compiled_block(8, (8, 8, 8), gradient=True, devices=8, attention=attention)
  assert not re.search(r"(all-gather|all-to-all|collective-permute|reduce-scatter)\(", text)
  exchanged = [line for line in text.splitlines() if re.search(r"= .* all-reduce\(", line)]
  assert exchanged
  results = [line.split("all-reduce(")[0] for line in exchanged]
  _, params = shifted_block()
  assert sum(array_sizes(results)) <= sum(leaf.size for leaf in jax.tree.leaves(params))
