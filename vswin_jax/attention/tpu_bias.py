"""Expansion of a table of relative position biases on a TPU, axis by axis, and its transpose.

The biases of a query are those of all offsets along an axis from its own on (see
`relative_position`), so each axis is expanded by slices: first time, then width, then height.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from vswin_jax.attention.tpu_core import LANES, SUBLANES, round_up
from vswin_jax.attention.windows import Size3D, WindowLayout


def kernel_table(bias_table: jax.Array, window: Size3D, time: int) -> jax.Array:
  """Returns the table as `[heads, offsets in time, offsets in height and width x time]`.

  The offsets in height and width are descending, and each is there for every key in time.
  """
  heads = bias_table.shape[1]
  offsets = bias_table.astype(jnp.float32).reshape(2 * window[0] - 1, -1, heads)
  offsets = offsets[window[0] - time : window[0] + time - 1]
  # Reversed and repeated by a product: an axis of `time` elements would be padded to a tile.
  columns = offsets.shape[1]
  width = round_up(columns * time, LANES)
  source = columns - 1 - jnp.arange(width) // time
  repeat = source[None, :] == jnp.arange(columns)[:, None]
  table = jnp.einsum(
    "tch,cw->htw", offsets, repeat.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST
  )
  return jnp.pad(table, [(0, 0), (0, -table.shape[1] % SUBLANES), (0, 0)])


def table_size(layout: WindowLayout) -> int:
  """Returns the numbers of a head in `kernel_table`."""
  time, height, width = layout.window
  columns = round_up((2 * height - 1) * (2 * width - 1) * time, LANES)
  return round_up(2 * time - 1, SUBLANES) * columns


def scratch(layout: WindowLayout, table_columns: int) -> list:
  """Returns the scratch memory of an expansion: `times_ref` and `strip_ref`."""
  columns = round_up((2 * layout.window[1] - 1) * _row(layout), LANES)
  shapes = (layout.window[0], table_columns), (_row(layout), columns)
  return [pltpu.VMEM(shape, jnp.float32) for shape in shapes]


def expand_table(layout: WindowLayout, table_ref, times_ref, strip_ref, bias_ref) -> None:
  """Writes the biases of all token pairs.

  Args:
    layout: partition of the grid into windows.
    table_ref: see `kernel_table`, of some heads.
    times_ref: scratch: queries in time -> keys in time, at all offsets in height and width.
    strip_ref: scratch: queries of a row -> keys of a row, at all offsets in height. A row of
      tokens is along width and time.
    bias_ref: queries of a window -> keys of a window, for each head.
  """
  time, row, tokens = layout.window[0], _row(layout), layout.tokens

  @pl.loop(0, bias_ref.shape[0])
  def _(head):
    table, times = table_ref[head], jnp.zeros(times_ref.shape, jnp.float32)
    for key, own in _key_times(times_ref.shape[1], time):
      times = jnp.where(own, table[time - 1 - key : 2 * time - 1 - key], times)
    times_ref[...] = times
    for target, source in _strip_parts(layout):
      strip_ref[target] = times_ref[source]
    for index, offset in _rows(layout):
      biases = pltpu.roll(strip_ref[...], strip_ref.shape[1] - offset, 1)
      bias_ref[head, pl.ds(index * row, row), :] = biases[:, :tokens]


def reduce_to_table(layout: WindowLayout, bias_ref, strip_ref, times_ref, table_ref) -> None:
  """Sums the gradients of all token pairs that share an offset: transposes `expand_table`."""
  time, row = layout.window[0], _row(layout)
  padding = strip_ref.shape[1] - layout.tokens

  @pl.loop(0, bias_ref.shape[0])
  def _(head):
    strip = jnp.zeros(strip_ref.shape, jnp.float32)
    for index, offset in _rows(layout):
      gradients = bias_ref[head, pl.ds(index * row, row), :]
      strip += pltpu.roll(jnp.pad(gradients, ((0, 0), (0, padding))), offset, 1)
    strip_ref[...] = strip
    times_ref[...] = jnp.zeros_like(times_ref)
    for target, source in _strip_parts(layout):
      times_ref[source] += strip_ref[target]
    times = times_ref[...]
    table_ref[head] = jnp.zeros(table_ref.shape[1:], jnp.float32)
    for key, own in _key_times(times_ref.shape[1], time):
      offsets = pl.ds(time - 1 - key, time)
      table_ref[head, offsets, :] += jnp.where(own, times, 0.0)


def _row(layout: WindowLayout) -> int:
  """Returns the tokens of a row: width x time."""
  return layout.window[2] * layout.window[0]


def _key_times(columns: int, time: int):
  """Yields every key in time, and which columns of a table belong to it."""
  column = jax.lax.broadcasted_iota(jnp.int32, (1, columns), 1)
  for key in range(time):
    yield key, jax.lax.rem(column, jnp.int32(time)) == key


def _strip_parts(layout: WindowLayout):
  """Yields the parts of a strip, and those of the biases in time that they consist of."""
  time, height, width = layout.window
  for column in range(width):
    for offset in range(2 * height - 1):
      first = (offset * (2 * width - 1) + width - 1 - column) * time
      target = (pl.ds(column * time, time), pl.ds(offset * _row(layout), _row(layout)))
      yield target, (slice(None), pl.ds(first, _row(layout)))


def _rows(layout: WindowLayout):
  """Yields the rows of a window, and where the biases of each begin in a strip."""
  height = layout.window[1]
  for row in range(height):
    yield row, (height - 1 - row) * _row(layout)
