"""Kernels of window attention for NVIDIA GPUs; `gpu` has the mathematics and calls them.

A program has a tile of tokens and a head, and takes the windows of a group one after the other. The
arrays are

  qkv         [batch * rows, 3 * channels]          and its gradient
  gradient    [batch * rows, channels]              of the output
  bias        [heads, padded_tokens, padded_tokens]
  rows        [windows, padded_tokens]              rows of the tokens of the windows of an example
  regions     [rows, 16]                            extra columns of both, forward
  keys        [rows, 16]                            extra columns of keys backward
  queries     [heads, batch * rows, 2 * 16]         those of queries, with -l and with -e

Tokens that pad a window to whole tiles have the row of its last token, and biases so small that
their probabilities are zero.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

_LN_2 = math.log(2)
# Logit of what pads a window to whole tiles.
PADDING_LOGIT = -1e30
# Extra columns: the smallest depth of a product on tensor cores.
EXTRA_COLUMNS = 16

# A row that no array has: nothing is stored there.
_NOWHERE = 2**30
# Tokens of a tile, of a tile of keys in the forward kernel, and the smallest of a last tile.
_TILE = 64
_KEY_TILE = 128
_LAST_TILE = 16
# Tiles of keys whose bias gradients fit the registers.
_TILES_AT_ONCE = 4


@dataclasses.dataclass(frozen=True)
class Sizes:
  """Sizes of a call; hashable, so that it can be a static argument.

  Attributes:
    heads: number of heads.
    head_dim: channels of a head.
    rows: tokens of an example.
    windows: windows of an example.
    tokens: tokens of a window.
    has_mask: whether some windows hold several regions.
    interpret: whether to interpret the kernels on a CPU.
  """

  heads: int
  head_dim: int
  rows: int
  windows: int
  tokens: int
  has_mask: bool
  interpret: bool

  @property
  def channels(self) -> int:
    return self.heads * self.head_dim

  @property
  def tiles(self) -> int:
    return -(-self.tokens // _TILE)

  @property
  def padded_tokens(self) -> int:
    return self.tiles * _TILE


def forward_kernel(sizes, group, qkv_ref, bias_ref, rows_ref, *refs):
  *masks, output_ref, logsum_ref = refs
  start, head, first = _program(group)
  q, k, v = _columns(sizes, head)

  def attend(index, _):
    window = first + index
    local, rows = _rows(sizes, rows_ref, window, start, _TILE)
    query = _take(sizes, qkv_ref, rows, q)
    query_regions = [_extra(ref, local) for ref in masks]

    def add_keys(key_start, size, carry):
      maximum, total, output = carry
      key_local, key_rows = _rows(sizes, rows_ref, window, key_start, size)
      logits = _pairs(bias_ref, head, start, _TILE, key_start, size)
      for ref, regions in zip(masks, query_regions):
        logits += _product(regions, _extra(ref, key_local).T)
      logits += _product(query, _take(sizes, qkv_ref, key_rows, k).T)
      larger = jnp.maximum(maximum, logits.max(1))
      correction, weights = _exp2(sizes, maximum - larger), _exp2(sizes, logits - larger[:, None])
      value = _take(sizes, qkv_ref, key_rows, v)
      output = output * correction[:, None] + _product(weights.astype(value.dtype), value)
      return larger, total * correction + weights.sum(1), output

    carry = (
      jnp.full(_TILE, 3 * PADDING_LOGIT, jnp.float32),
      jnp.zeros(_TILE, jnp.float32),
      jnp.zeros((_TILE, sizes.head_dim), jnp.float32),
    )
    maximum, total, output = _over_tiles(sizes, _KEY_TILE, add_keys, carry)
    rows = _stored_rows(sizes, rows, start)
    _put(sizes, output_ref, rows, q, output / total[:, None])
    logsum = maximum + jnp.log2(total)
    plgpu.store(logsum_ref.at[_same(head, rows), rows], logsum, mask=rows < _NOWHERE)
    return 0

  jax.lax.fori_loop(0, group, attend, 0)


def keys_kernel(
  sizes, group, qkv_ref, gradient_ref, queries_ref, bias_ref, rows_ref, keys_ref,
  qkv_gradient_ref,
):  # fmt: skip
  """Computes dk and dv. All arrays of token pairs, the bias among them, are transposed."""
  start, head, first = _program(group)
  q, k, v = _columns(sizes, head)

  def attend(index, _):
    window = first + index
    local, rows = _rows(sizes, rows_ref, window, start, _TILE)
    key, value = _take(sizes, qkv_ref, rows, k), _take(sizes, qkv_ref, rows, v)
    key_columns = _extra(keys_ref, local)

    def add_queries(query_start, size, carry):
      key_gradient, value_gradient = carry
      _, query_rows = _rows(sizes, rows_ref, window, query_start, size)
      query = _take(sizes, qkv_ref, query_rows, q)
      gradient = _take(sizes, gradient_ref, query_rows, q)
      logits = _pairs(bias_ref, head, start, _TILE, query_start, size)
      logits += _product(key_columns, _extra(queries_ref, query_rows, head).T)
      weights = _exp2(sizes, logits + _product(key, query.T))
      value_gradient += _product(weights.astype(gradient.dtype), gradient)
      excess = _product(key_columns, _extra(queries_ref, query_rows, head, EXTRA_COLUMNS).T)
      logits_gradient = weights * (excess + _product(value, gradient.T))
      key_gradient += _product(logits_gradient.astype(query.dtype), query)
      return key_gradient, value_gradient

    zero = jnp.zeros((_TILE, sizes.head_dim), jnp.float32)
    key_gradient, value_gradient = _over_tiles(sizes, _TILE, add_queries, (zero, zero))
    rows = _stored_rows(sizes, rows, start)
    _put(sizes, qkv_gradient_ref, rows, k, key_gradient * _LN_2)
    _put(sizes, qkv_gradient_ref, rows, v, value_gradient)
    return 0

  jax.lax.fori_loop(0, group, attend, 0)


def queries_kernel(
  sizes, group, qkv_ref, gradient_ref, queries_ref, bias_ref, rows_ref, keys_ref, _,
  qkv_gradient_ref, bias_gradient_ref,
):  # fmt: skip
  """Computes dq and db. As many tiles of keys at a time as have their part of db in registers."""
  start, head, first = _program(group)
  q, k, v = _columns(sizes, head)
  tiles = _tiles(sizes.tokens, _TILE)

  def add_tiles(is_first, tiles):
    def attend(index, bias_gradients):
      window = first + index
      _, rows = _rows(sizes, rows_ref, window, start, _TILE)
      query, gradient = _take(sizes, qkv_ref, rows, q), _take(sizes, gradient_ref, rows, q)
      logsums = _extra(queries_ref, rows, head)
      expected = _extra(queries_ref, rows, head, EXTRA_COLUMNS)
      query_gradient, sums = jnp.zeros((_TILE, sizes.head_dim), jnp.float32), []
      for (key_start, size), bias_gradient in zip(tiles, bias_gradients):
        key_local, key_rows = _rows(sizes, rows_ref, window, key_start, size)
        key, value = _take(sizes, qkv_ref, key_rows, k), _take(sizes, qkv_ref, key_rows, v)
        key_columns = _extra(keys_ref, key_local)
        logits = _pairs(bias_ref, head, start, _TILE, key_start, size)
        logits += _product(logsums, key_columns.T)
        weights = _exp2(sizes, logits + _product(query, key.T))
        excess = _product(expected, key_columns.T)
        logits_gradient = weights * (excess + _product(gradient, value.T))
        sums.append(bias_gradient + logits_gradient)
        query_gradient += _product(logits_gradient.astype(key.dtype), key)
      query_gradient *= _LN_2
      if not is_first:
        query_gradient += _take(sizes, qkv_gradient_ref, rows, q).astype(jnp.float32)
      _put(sizes, qkv_gradient_ref, _stored_rows(sizes, rows, start), q, query_gradient)
      return tuple(sums)

    zeros = tuple(jnp.zeros((_TILE, size), jnp.float32) for _, size in tiles)
    sums = jax.lax.fori_loop(0, group, attend, zeros)
    for (key_start, size), bias_gradient in zip(tiles, sums):
      pairs = (
        jax.lax.div(first, jnp.int32(group)),
        head,
        pl.ds(start, _TILE),
        pl.ds(key_start, size),
      )
      plgpu.store(bias_gradient_ref.at[pairs], bias_gradient)

  for done in range(0, len(tiles), _TILES_AT_ONCE):
    if done and not sizes.interpret:
      # The next tiles add to the dq that other threads have stored.
      plgpu.debug_barrier()
    add_tiles(done == 0, tiles[done : done + _TILES_AT_ONCE])


def _program(group: int):
  """Returns the first token of a program's tile, its head, and its first window."""
  return pl.program_id(0) * _TILE, pl.program_id(1), pl.program_id(2) * group


def _tiles(tokens: int, size: int) -> list[tuple[int, int]]:
  """Returns the starts and sizes of the tiles of a window.

  The last one is as small as the rest allows, and a power of two, as all sizes have to be.
  """
  tiles = [(start, size) for start in range(0, tokens - size + 1, size)]
  rest = tokens % size
  if rest:
    tiles.append((tokens - rest, max(_LAST_TILE, pl.next_power_of_2(rest))))
  return tiles


def _over_tiles(sizes, size: int, body, carry):
  """Calls `body(start, size, carry)` for all tiles of a window, in a loop on the device."""
  whole = sizes.tokens // size
  carry = jax.lax.fori_loop(0, whole, lambda index, carry: body(index * size, size, carry), carry)
  for start, rest in _tiles(sizes.tokens, size)[whole:]:
    carry = body(start, rest, carry)
  return carry


def _rows(sizes, rows_ref, window, start, size: int):
  """Returns the rows of a tile's tokens within their example, and within the batch."""
  example = jax.lax.div(window, jnp.int32(sizes.windows))
  local = jax.lax.rem(window, jnp.int32(sizes.windows))
  rows = plgpu.load(rows_ref.at[local, pl.ds(start, size)])
  return rows, rows + example * jnp.int32(sizes.rows)


def _stored_rows(sizes, rows, start):
  """Returns rows with `_NOWHERE` for surplus tokens of a tile."""
  return jnp.where(start + jnp.arange(_TILE) < sizes.tokens, rows, jnp.int32(_NOWHERE))


def _columns(sizes, head):
  """Returns the first columns of the queries, keys and values of a head."""
  return [part * sizes.channels + head * sizes.head_dim for part in range(3)]


def _take(sizes, ref, rows, column):
  return plgpu.load(ref.at[_cells(rows, column, sizes.head_dim)])


def _put(sizes, ref, rows, column, x):
  cells = _cells(rows, column, sizes.head_dim)
  plgpu.store(ref.at[cells], x.astype(ref.dtype), mask=cells[0] < _NOWHERE)


def _extra(ref, rows, head=None, first: int = 0):
  """Returns the extra columns of rows, of a head if there are some for each."""
  cells = _cells(rows, first, EXTRA_COLUMNS)
  return plgpu.load(ref.at[cells if head is None else (_same(head, cells[0]), *cells)])


def _cells(rows, column, width: int):
  """Returns the indices of a matrix: rows, and columns from the first one on."""
  columns = column + jnp.arange(width, dtype=jnp.int32)
  shape = (len(rows), width)
  return jnp.broadcast_to(rows[:, None], shape), jnp.broadcast_to(columns[None, :], shape)


def _same(number, like):
  return jnp.broadcast_to(number, like.shape)


def _pairs(ref, head, start, size, other_start, other_size):
  """Returns the float32 biases of a tile of token pairs."""
  tile = ref.at[head, pl.ds(start, size), pl.ds(other_start, other_size)]
  return plgpu.load(tile).astype(jnp.float32)


def _product(left, right):
  """Returns a product of matrices in float32."""
  precision = jax.lax.Precision.HIGHEST if left.dtype == jnp.float32 else None
  return jnp.dot(left, right, precision=precision, preferred_element_type=jnp.float32)


def _exp2(sizes, x):
  """Returns 2^x by one instruction, which rounds subnormal numbers to zero."""
  if sizes.interpret:
    return jnp.exp2(x)
  shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
  return plgpu.elementwise_inline_asm(
    "ex2.approx.ftz.f32 $0, $1;",
    args=[x],
    constraints="=f,f",
    pack=1,
    result_shape_dtypes=[shape],
  )[0]
