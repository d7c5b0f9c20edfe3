"""Geometry of 3D windows: effective size, padding, cyclic shift, regions, partition.

Layouts and regions depend on static shapes only and are computed with numpy at trace time. Grids,
windows and shifts are (time, height, width) in tokens. In arrays time is the last axis of tokens:
windows are then contiguous along time, and time and channels fill the tiles of TPUs.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

Size3D = tuple[int, int, int]

# The reference adds it between tokens that are neighbors only through the cyclic shift.
OTHER_REGION_LOGIT = -100.0
# A window mixes at most two regions along each axis.
REGIONS_PER_WINDOW = 8


@dataclasses.dataclass(frozen=True)
class WindowLayout:
  """Partition of a grid of tokens into windows, see `window_layout`."""

  grid: Size3D
  padded_grid: Size3D
  window: Size3D
  shift: Size3D

  @property
  def windows(self) -> int:
    return math.prod(size // window for size, window in zip(self.padded_grid, self.window))

  @property
  def tokens(self) -> int:
    return math.prod(self.window)

  def without_padding(self) -> "WindowLayout":
    """Returns the same partition for a grid that is padded already."""
    return dataclasses.replace(self, grid=self.padded_grid)


@functools.cache
def window_layout(grid: Size3D, window: Size3D, *, shifted: bool) -> WindowLayout:
  """Returns the partition of a grid into windows, as in the reference.

  Along an axis that is not larger than the window, the window becomes the axis and does not
  shift. The grid is then padded at its end to whole windows.
  """
  effective = tuple(min(size, limit) for size, limit in zip(grid, window))
  shift = tuple(limit // 2 if shifted and size > limit else 0 for size, limit in zip(grid, window))
  padded = tuple(-(-size // step) * step for size, step in zip(grid, effective))
  return WindowLayout(tuple(grid), padded, effective, shift)


@functools.cache
def region_ids(layout: WindowLayout) -> np.ndarray | None:
  """Returns the regions of a shifted grid: int32 `[windows, tokens]`; None if it is not shifted.

  A cyclic shift brings together tokens from opposite ends of the grid. Along each shifted axis
  the last window mixes two regions; tokens of different regions do not attend to each other.
  """
  if not any(layout.shift):
    return None
  ids = np.zeros(layout.padded_grid, np.int32)
  for axis, (size, window, shift) in enumerate(
    zip(layout.padded_grid, layout.window, layout.shift)
  ):
    along = np.zeros(size, np.int32)
    if shift:
      along[size - window :] = 1
      along[size - shift :] = 2
    ids = ids * 3 + along.reshape([-1 if i == axis else 1 for i in range(3)])
  counts = [size // window for size, window in zip(layout.padded_grid, layout.window)]
  split = [n for pair in zip(counts, layout.window) for n in pair]
  ids = ids.reshape(split).transpose(2, 4, 0, 3, 5, 1).reshape(layout.windows, layout.tokens)
  ids.flags.writeable = False  # shared by all callers
  return ids


def token_regions(layout: WindowLayout) -> jax.Array:
  """Returns the regions of a shifted grid, numbered from 0 in each window.

  It is computed on the device: as a constant for each block it would be much of the program.

  Returns:
    int32 `[1, height, width, time, 1]`, for the tokens of the padded grid.
  """
  time, height, width = layout.padded_grid
  regions = jnp.zeros((1, height, width, time, 1), jnp.int32)
  for axis, shift in zip((3, 1, 2), layout.shift):
    # The last window along an axis holds its first tokens too, and no other window holds them.
    position = jax.lax.broadcasted_iota(jnp.int32, regions.shape, axis)
    regions = 2 * regions + (position < shift)
  return regions


def pad_grid(x: jax.Array, layout: WindowLayout) -> jax.Array:
  """Pads `[batch, height, width, time, channels]` with zeros to the padded grid."""
  grid, padded_grid, *_ = _time_last(layout)
  padding = [(0, after - before) for before, after in zip(grid, padded_grid)]
  return jnp.pad(x, [(0, 0), *padding, (0, 0)]) if any(after for _, after in padding) else x


@jax.named_scope("to_windows")
def to_windows(x: jax.Array, layout: WindowLayout) -> jax.Array:
  """Pads, shifts and cuts tokens into windows.

  Windows and the tokens of one are ordered by height, width and time. Padding is zero.

  Args:
    x: `[batch, height, width, time, channels]`.

  Returns:
    `[batch, windows, tokens, channels]`.
  """
  _, _, window, shift = _time_last(layout)
  x = pad_grid(x, layout)
  if any(shift):
    x = jnp.roll(x, [-size for size in shift], axis=(1, 2, 3))
  # One axis per reshape: the partitioner follows shardings through each of these.
  for axis, size in zip((1, 3, 5), window):
    x = x.reshape(*x.shape[:axis], x.shape[axis] // size, size, *x.shape[axis + 1 :])
  x = x.transpose(0, 1, 3, 5, 2, 4, 6, 7)
  return x.reshape(x.shape[0], layout.windows, layout.tokens, x.shape[-1])


@jax.named_scope("from_windows")
def from_windows(x: jax.Array, layout: WindowLayout) -> jax.Array:
  """Inverts `to_windows`: returns `[batch, height, width, time, channels]` without padding."""
  grid, padded_grid, window, shift = _time_last(layout)
  batch, channels = x.shape[0], x.shape[-1]
  counts = [size // step for size, step in zip(padded_grid, window)]
  x = x.reshape(batch, *counts, *window, channels)
  x = x.transpose(0, 1, 4, 2, 5, 3, 6, 7)
  for axis, size in zip((1, 2, 3), padded_grid):
    x = x.reshape(*x.shape[:axis], size, *x.shape[axis + 2 :])
  if any(shift):
    x = jnp.roll(x, shift, axis=(1, 2, 3))
  height, width, time = grid
  return x[:, :height, :width, :time]


def _time_last(layout: WindowLayout) -> list[Size3D]:
  """Returns the sizes of a layout in the order of the axes of tokens: height, width, time."""
  return [(size[1], size[2], size[0]) for size in dataclasses.astuple(layout)]
