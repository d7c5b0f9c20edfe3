"""Partition into shifted windows for TPUs, by copies between the memories of the chip.

A column of windows is those at one place in height and width. Its tokens lie in at most four
rectangles of the grid: the shift in height and width wraps around the end of the grid. Four copies
fetch them into the core's memory, where the shift in time is a roll. XLA would write the tokens
several times, for the shift and for the transposition.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from vswin_jax.attention.tpu_core import lacks_memory, memory_limit
from vswin_jax.attention.windows import WindowLayout


def why_not(layout: WindowLayout, channels: int, dtype: str) -> str | None:
  """Returns why the kernels can't cut tokens of a padded grid into windows; None if they can."""
  numbers = layout.padded_grid[0] * layout.window[1] * layout.window[2] * channels
  # The tokens of a column of windows, windows twice, and both in float32.
  return lacks_memory(numbers * (3 * jnp.dtype(dtype).itemsize + 2 * 4))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def to_windows(x: jax.Array, layout: WindowLayout, interpret: bool = False) -> jax.Array:
  """Shifts and cuts `[batch, height, width, time, channels]` into windows, as `windows.to_windows`.

  The grid must not need padding.

  Returns:
    `[batch, windows, tokens, channels]`.
  """
  shape = (x.shape[0], *_counts(layout), layout.tokens, x.shape[-1])
  windows = _call(
    _gather_kernel,
    layout,
    x,
    pl.BlockSpec(memory_space=pl.ANY),
    _column_block(shape),
    shape,
    interpret,
  )
  return windows.reshape(x.shape[0], layout.windows, layout.tokens, x.shape[-1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def from_windows(x: jax.Array, layout: WindowLayout, interpret: bool = False) -> jax.Array:
  """Inverts `to_windows`."""
  time, height, width = layout.grid
  windows = x.reshape(x.shape[0], *_counts(layout), layout.tokens, x.shape[-1])
  return _call(
    _scatter_kernel,
    layout,
    windows,
    _column_block(windows.shape),
    pl.BlockSpec(memory_space=pl.ANY),
    (x.shape[0], height, width, time, x.shape[-1]),
    interpret,
  )


to_windows.defvjp(
  lambda x, layout, interpret: (to_windows(x, layout, interpret), None),
  lambda layout, interpret, _, gradient: (from_windows(gradient, layout, interpret),),
)
from_windows.defvjp(
  lambda x, layout, interpret: (from_windows(x, layout, interpret), None),
  lambda layout, interpret, _, gradient: (to_windows(gradient, layout, interpret),),
)


def _counts(layout: WindowLayout) -> tuple[int, int, int]:
  """Returns the number of windows along height, width and time."""
  return tuple(layout.grid[axis] // layout.window[axis] for axis in (1, 2, 0))


def _column_block(shape: tuple[int, ...]) -> pl.BlockSpec:
  return pl.BlockSpec((1, 1, 1, *shape[3:]), lambda *column: (*column, 0, 0, 0))


def _call(kernel, layout, x, in_spec, out_spec, shape, interpret) -> jax.Array:
  _, height, width = layout.window
  tokens = pltpu.VMEM((height, width, layout.grid[0], x.shape[-1]), x.dtype)
  return pl.pallas_call(
    functools.partial(kernel, layout),
    grid=(x.shape[0], *_counts(layout)[:2]),
    in_specs=[in_spec],
    out_specs=out_spec,
    out_shape=jax.ShapeDtypeStruct(shape, x.dtype),
    scratch_shapes=[tokens, pltpu.SemaphoreType.DMA((4,))],
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel",) * 3, vmem_limit_bytes=memory_limit()
    ),
    cost_estimate=pl.CostEstimate(flops=0, transcendentals=0, bytes_accessed=2 * x.nbytes),
    interpret=interpret,
    name=kernel.__name__.strip("_"),
  )(x)


def _gather_kernel(layout, grid_ref, windows_ref, tokens_ref, semaphores):
  _copy(layout, grid_ref, tokens_ref, semaphores, to_core=True)
  time = layout.window[0]
  tokens = _roll_time(tokens_ref[...], -layout.shift[0])
  for index in range(windows_ref.shape[3]):
    window = tokens[:, index * time : (index + 1) * time]
    windows_ref[0, 0, 0, index] = window.reshape(windows_ref.shape[4:]).astype(windows_ref.dtype)


def _scatter_kernel(layout, windows_ref, grid_ref, tokens_ref, semaphores):
  time, height, width = layout.window
  windows = [
    windows_ref[0, 0, 0, index].astype(jnp.float32).reshape(height * width, time, -1)
    for index in range(windows_ref.shape[3])
  ]
  tokens = _roll_time(jnp.concatenate(windows, axis=1), layout.shift[0])
  tokens_ref[...] = tokens.reshape(tokens_ref.shape).astype(tokens_ref.dtype)
  _copy(layout, grid_ref, tokens_ref, semaphores, to_core=False)


def _roll_time(tokens, shift: int):
  """Rolls tokens along time, in float32: rows of 16 bits can't be rolled.

  Args:
    tokens: `[height, width, time, channels]` or `[height * width, time, channels]`.

  Returns:
    float32 `[height * width, time, channels]`.
  """
  tokens = tokens.astype(jnp.float32).reshape(-1, *tokens.shape[-2:])
  shift %= tokens.shape[1]
  return pltpu.roll(tokens, shift, 1) if shift else tokens


def _copy(layout, grid_ref, tokens_ref, semaphores, *, to_core: bool) -> None:
  """Copies the tokens of a column of windows between the grid and the core's memory."""
  example = pl.program_id(0)
  parts = [_parts(layout, axis) for axis in (1, 2)]
  copies = []
  for number, (rows, columns) in enumerate(itertools.product(*parts)):
    (row, target_row, height), (column, target_column, width) = rows, columns
    if height and width:
      source = grid_ref.at[example, pl.ds(row, height), pl.ds(column, width)]
      target = tokens_ref.at[pl.ds(target_row, height), pl.ds(target_column, width)]
      ends = (source, target) if to_core else (target, source)
      copies.append(pltpu.make_async_copy(*ends, semaphores.at[number]))
  for copy in copies:
    copy.start()
  for copy in copies:
    copy.wait()


def _parts(layout, axis: int):
  """Returns the two parts of a window along height (1) or width (2).

  Each is (first place in the grid, first place in the window, length); the second part may be
  behind the end of the grid, where it wraps around, and is empty without a shift.
  """
  size, step, shift = layout.grid[axis], layout.window[axis], layout.shift[axis]
  index = pl.program_id(axis)
  wrapped = jax.lax.rem((index + 1) * step, jnp.int32(size))
  return (index * step + shift, 0, step - shift), (wrapped, step - shift, shift)
