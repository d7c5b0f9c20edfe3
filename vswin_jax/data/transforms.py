"""Geometry of frames: resizing and cropping uint8 frames `[height, width, 3]` and clips of them.

Crop boxes are (top, left, height, width) in pixels. Every frame of a clip gets the same box.
"""

import math

import cv2
import numpy as np

Box = tuple[int, int, int, int]

# Parallelism is over clips; OpenCV's own threads would fight over the cores.
cv2.setNumThreads(0)


def resize(frame: np.ndarray, height: int, width: int) -> np.ndarray:
  """Bilinear resize of a frame, without antialiasing, as the reference's OpenCV does."""
  if frame.shape[:2] == (height, width):
    return frame
  return cv2.resize(frame, (width, height), interpolation=cv2.INTER_LINEAR)


def resize_short_side(frame: np.ndarray, size: int, round_down: bool = False) -> np.ndarray:
  """Resizes a frame, keeping the aspect ratio, until the shorter side has `size` pixels.

  The longer side is rounded to the nearest pixel, or down.
  """
  height, width = frame.shape[:2]
  if round_down:
    short = min(height, width)
    return resize(frame, height * size // short, width * size // short)
  scale = size / min(height, width)
  return resize(frame, int(height * scale + 0.5), int(width * scale + 0.5))


def flip(frame: np.ndarray) -> np.ndarray:
  """The frame with left and right exchanged."""
  return cv2.flip(frame, 1)


def crop(frames: np.ndarray, box: Box) -> np.ndarray:
  """The box of a frame, or of each frame of a clip."""
  top, left, height, width = box
  return frames[..., top : top + height, left : left + width, :]


def random_resized_crop_box(
  height: int,
  width: int,
  random: np.random.Generator,
  area_range: tuple[float, float] = (0.08, 1.0),
  aspect_ratio_range: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
  """A random box: area uniform in `area_range` of the frame, aspect ratio (width over height)
  log-uniform; the central square when ten draws in a row do not fit."""
  attempts = 10
  areas = random.uniform(*area_range, attempts) * height * width
  ratios = np.exp(random.uniform(*np.log(aspect_ratio_range), attempts))
  for area, ratio in zip(areas, ratios):
    box_width = round(math.sqrt(area * ratio))
    box_height = round(math.sqrt(area / ratio))
    if 0 < box_width <= width and 0 < box_height <= height:
      left = int(random.integers(width - box_width, endpoint=True))
      top = int(random.integers(height - box_height, endpoint=True))
      return top, left, box_height, box_width
  return center_crop_box(height, width, min(height, width))


def random_crop_box(height: int, width: int, size: int, random: np.random.Generator) -> Box:
  """A square anywhere but at the very end of a side (the reference never draws its last place)."""
  top = int(random.integers(max(height - size, 1)))
  left = int(random.integers(max(width - size, 1)))
  return top, left, size, size


def center_crop_box(height: int, width: int, size: int, round_up: bool = False) -> Box:
  """The central square; one that would lie between pixels moves to the top left, or down right."""
  return (height - size + round_up) // 2, (width - size + round_up) // 2, size, size


def three_crop_boxes(height: int, width: int, size: int, round_up: bool = False) -> list[Box]:
  """Square crops at both ends and in the middle of the longer side, in the order first, last,
  middle. The shorter side must have `size` pixels.

  If the middle is rounded down, the last lies as far from it as the first, as in OpenMMLab; if up,
  it ends with the frame, as in PySlowFast.
  """
  if size != min(height, width):
    raise ValueError(
      f"three crops of {size} need frames of short side {size}, got {height} x {width}"
    )
  top, left, *_ = center_crop_box(height, width, size, round_up)
  last_top, last_left = (height - size, width - size) if round_up else (2 * top, 2 * left)
  return [(0, 0, size, size), (last_top, last_left, size, size), (top, left, size, size)]
