"""Resizing and cropping of uint8 frames `[height, width, 3]`.

Crop boxes are (top, left, height, width) in pixels.
"""

import math

import cv2
import numpy as np

Box = tuple[int, int, int, int]

# Workers run in parallel; OpenCV's threads would only add overhead.
cv2.setNumThreads(0)


def resize(frame: np.ndarray, height: int, width: int) -> np.ndarray:
  """Resizes a frame bilinearly without antialiasing, as the reference does with OpenCV."""
  if frame.shape[:2] == (height, width):
    return frame
  return cv2.resize(frame, (width, height), interpolation=cv2.INTER_LINEAR)


def resize_short_side(frame: np.ndarray, size: int, round_down: bool = False) -> np.ndarray:
  """Resizes the shorter side of a frame to `size`; the longer one is rounded to nearest or down."""
  height, width = frame.shape[:2]
  short = min(height, width)
  if round_down:
    return resize(frame, height * size // short, width * size // short)
  scale = size / short
  return resize(frame, int(height * scale + 0.5), int(width * scale + 0.5))


def flip(frame: np.ndarray) -> np.ndarray:
  """Flips a frame horizontally."""
  return cv2.flip(frame, 1)


def crop(frames: np.ndarray, box: Box) -> np.ndarray:
  """Crops a frame, or each frame of a clip `[time, height, width, 3]`."""
  top, left, height, width = box
  return frames[..., top : top + height, left : left + width, :]


def random_resized_crop_box(
  height: int,
  width: int,
  random: np.random.Generator,
  area_range: tuple[float, float] = (0.08, 1.0),
  aspect_ratio_range: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
  """Draws a box of random area and aspect ratio; the center square if ten draws do not fit.

  Areas are uniform, as fractions of the frame; aspect ratios (width over height) log-uniform.
  """
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
  """Draws a square of `size`; like the reference, never at the end of a longer side."""
  top = int(random.integers(max(height - size, 1)))
  left = int(random.integers(max(width - size, 1)))
  return top, left, size, size


def center_crop_box(height: int, width: int, size: int, round_up: bool = False) -> Box:
  """Returns the center square of `size`; half pixels are rounded down unless `round_up`."""
  return (height - size + round_up) // 2, (width - size + round_up) // 2, size, size


def three_crop_boxes(height: int, width: int, size: int, round_up: bool = False) -> list[Box]:
  """Returns squares along the longer side of a frame whose shorter side is `size`.

  The order is first, last, middle. The last one starts at twice the offset of the middle, as in
  OpenMMLab, or with `round_up` ends with the frame, as in PySlowFast.
  """
  top, left, *_ = center_crop_box(height, width, size, round_up)
  last_top, last_left = (height - size, width - size) if round_up else (2 * top, 2 * left)
  return [(0, 0, size, size), (last_top, last_left, size, size), (top, left, size, size)]
