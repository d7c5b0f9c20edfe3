"""Inflation of 2D Swin weights to Video Swin, and resizing of bias tables to another window.

As in section 3.3 of Video Swin, the patch embedding is repeated over time, and every temporal
offset gets the 2D bias table.
"""

import math
from collections.abc import Mapping

import numpy as np

from vswin_jax.attention.windows import Size3D
from vswin_jax.conversion.matching import ConversionError

INFLATIONS = ("mean", "center")
# Bias between frames under "center": at first, tokens attend mostly to their own frame.
_CROSS_FRAME_BIAS = -4.6
# Parameter of the cubic convolution kernel, as in PyTorch; jax.image uses another.
_CUBIC = -0.75


def inflate(
  tensors: Mapping[str, np.ndarray], window: Size3D, patch_time: int, how: str
) -> dict[str, np.ndarray]:
  """Inflates the weights of a 2D Swin to those of a Video Swin, as the reference does.

  Args:
    tensors: tensors under the names of the 2D reference; the patch embedding is `[channels, 3,
      height, width]`, bias tables are `[(2 height - 1) (2 width - 1), heads]`.
    window: attention window of the result, in tokens.
    patch_time: frames of a patch of the result.
    how: "mean" as in the reference: the same patch kernel in every frame, and the same bias for
      every temporal offset. "center": the whole kernel in one frame, and a constant negative bias
      between frames.

  Returns:
    The tensors by name; index buffers are unchanged.

  Raises:
    ConversionError: bias tables that are not those of square windows.
  """
  if how not in INFLATIONS:
    raise ValueError(f"unknown inflation {how!r}; expected one of {', '.join(INFLATIONS)}")
  inflated, malformed = {}, []
  for name, tensor in tensors.items():
    if name == "patch_embed.proj.weight" and tensor.ndim == 4:
      tensor = _inflate_patch(np.asarray(tensor, np.float32), patch_time, how)
    elif name.endswith("relative_position_bias_table"):
      if table_side(tensor) is None:
        malformed.append(f"{name} {list(tensor.shape)}")
        continue
      tensor = _inflate_table(np.asarray(tensor, np.float32), window, how)
    inflated[name] = tensor
  if malformed:
    raise ConversionError(
      f"bias tables that are not those of square windows: {', '.join(malformed)}"
    )
  return inflated


def table_side(table: np.ndarray) -> int | None:
  """Returns the side of the square window of a 2D bias table; None if there is no such window."""
  if table.ndim != 2 or table.size == 0:
    return None
  offsets = math.isqrt(table.shape[0])
  return (offsets + 1) // 2 if offsets**2 == table.shape[0] and offsets % 2 else None


def _inflate_patch(kernel: np.ndarray, patch_time: int, how: str) -> np.ndarray:
  if how == "mean":
    return np.repeat(kernel[:, :, None], patch_time, axis=2) / np.float32(patch_time)
  inflated = np.zeros((*kernel.shape[:2], patch_time, *kernel.shape[2:]), kernel.dtype)
  inflated[:, :, patch_time // 2] = kernel
  return inflated


def _inflate_table(table: np.ndarray, window: Size3D, how: str) -> np.ndarray:
  offsets = 2 * table_side(table) - 1
  table = table.reshape(offsets, offsets, -1)
  for axis in (0, 1):
    table = _resize(table, axis, 2 * window[axis + 1] - 1, _cubic)
  if how == "mean":
    inflated = np.broadcast_to(table, (2 * window[0] - 1, *table.shape))
  else:
    inflated = np.full((2 * window[0] - 1, *table.shape), _CROSS_FRAME_BIAS, table.dtype)
    inflated[window[0] - 1] = table
  return inflated.reshape(-1, table.shape[-1])


def resize_table(table: np.ndarray, window: Size3D, target: Size3D) -> np.ndarray:
  """Resizes a 3D bias table: bicubic in space, linear in time.

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
