"""Inflation of 2D Swin weights to Video Swin, and resizing of bias tables to another window.

As in section 3.3 of Video Swin, the patch embedding is repeated over time, and every temporal
offset gets the 2D bias table.
"""

import math
from collections.abc import Mapping

import numpy as np

from vswin_jax.attention.windows import Size3D
from vswin_jax.common.checks import check_choices
from vswin_jax.conversion.matching import ConversionError
from vswin_jax.models.video_swin import VideoSwinConfig

INFLATIONS = ("mean", "center")
_PATCH = "patch_embed.proj.weight"
_PATCH_FRAMES = VideoSwinConfig.patch_size[0]
# Bias between frames under "center": at first, tokens attend mostly to their own frame.
_CROSS_FRAME_BIAS = -4.6
# Parameter of the cubic convolution kernel, as in PyTorch; jax.image uses another.
_CUBIC = -0.75


def inflate(
  tensors: Mapping[str, np.ndarray], window: Size3D | None, how: str
) -> tuple[dict[str, np.ndarray], Size3D]:
  """Inflates the weights of a 2D Swin to those of a Video Swin, as the reference does.

  Args:
    tensors: tensors under the names of the 2D reference; the patch embedding is `[channels, 3,
      height, width]`, bias tables, one at least, are `[(2 height - 1) (2 width - 1), heads]`.
    window: attention window of the result, in tokens; None: (8, side, side).
    how: "mean" as in the reference: the same patch kernel in every frame, and the same bias for
      every temporal offset. "center": the whole kernel in one frame, and a constant negative bias
      between frames.

  Returns:
    The tensors by name, without index buffers, and the attention window.

  Raises:
    ConversionError: bias tables that are not those of square windows.
  """
  check_choices(INFLATIONS, inflation=how)
  inflated = {name: t for name, t in tensors.items() if not name.endswith("_position_index")}
  tables = {name: table for name, table in tensors.items() if name.endswith("_bias_table")}
  sides = {name: _window_side(table) for name, table in tables.items()}
  malformed = [f"{name} {list(tables[name].shape)}" for name, side in sides.items() if not side]
  if malformed:
    raise ConversionError(
      f"bias tables that are not those of square windows: {', '.join(malformed)}"
    )
  if window is None:
    side = next(iter(sides.values()))
    window = (8, side, side)

  def repeat(frame: np.ndarray, count: int, elsewhere: float) -> np.ndarray:
    repeated = np.repeat(frame[None], count, axis=0)
    if how == "center":
      repeated[np.arange(count) != count // 2] = elsewhere
    return repeated

  for name, side in sides.items():
    table = resize_table(tables[name], (1, side, side), (1, *window[1:]))
    inflated[name] = repeat(table, 2 * window[0] - 1, _CROSS_FRAME_BIAS).reshape(-1, table.shape[1])
  kernel = np.asarray(tensors[_PATCH], np.float32) / (_PATCH_FRAMES if how == "mean" else 1)
  inflated[_PATCH] = np.moveaxis(repeat(kernel, _PATCH_FRAMES, 0.0), 0, 2)
  return inflated, window


def _window_side(table: np.ndarray) -> int | None:
  """Returns the side of the square window of a 2D bias table; None if there is no such window."""
  if table.ndim != 2 or table.size == 0:
    return None
  offsets = math.isqrt(table.shape[0])
  return (offsets + 1) // 2 if offsets**2 == table.shape[0] and offsets % 2 else None


def resize_table(table: np.ndarray, window: Size3D, target: Size3D) -> np.ndarray:
  """Resizes a 3D bias table: bicubic in space, linear in time, as PyTorch interpolates.

  Args:
    table: float `[rows of window, heads]`.
    window: attention window (time, height, width) of `table`, in tokens.
    target: attention window of the result.

  Returns:
    float32 `[rows of target, heads]`.
  """
  table = np.asarray(table, np.float32).reshape(*(2 * size - 1 for size in window), -1)
  for axis, (size, kernel) in enumerate(zip(target, (_linear, _cubic, _cubic))):
    table = _resize(table, axis, 2 * size - 1, kernel)
  return table.reshape(-1, table.shape[-1])


def _resize(array: np.ndarray, axis: int, size: int, kernel) -> np.ndarray:
  """Interpolates along an axis, pixel centers at halves, edges repeated, no antialiasing."""
  before = array.shape[axis]
  if before == size:
    return array
  # In float32, as PyTorch places them.
  scale = np.float32(before) / np.float32(size)
  position = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5)
  first = np.floor(position).astype(int)
  weights = np.zeros((size, before))
  for tap in range(-1, 3):
    column = np.clip(first + tap, 0, before - 1)
    np.add.at(weights, (np.arange(size), column), kernel(np.abs(position - (first + tap))))
  resized = np.tensordot(weights, array.astype(np.float64), (1, axis))
  return np.moveaxis(resized, 0, axis).astype(array.dtype)


def _linear(distance: np.ndarray) -> np.ndarray:
  return np.maximum(1.0 - distance, 0.0)


def _cubic(distance: np.ndarray) -> np.ndarray:
  near = ((_CUBIC + 2) * distance - (_CUBIC + 3)) * distance**2 + 1
  far = ((_CUBIC * distance - 5 * _CUBIC) * distance + 8 * _CUBIC) * distance - 4 * _CUBIC
  return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))
