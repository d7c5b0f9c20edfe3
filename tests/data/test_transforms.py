"""Resizing and cropping against the reference's rules."""

import cv2
import numpy as np
import pytest

from vswin_jax.data import transforms


def noise(*shape) -> np.ndarray:
  return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize(
  "height, width, size, expected",
  [(272, 640, 256, (256, 602)), (720, 1280, 224, (224, 398)), (340, 256, 224, (298, 224))],
)
def test_short_side_resize_rounds_as_the_reference(height, width, size, expected):
  frames = noise(2, height, width, 3)
  resized = transforms.resize_short_side(frames[1], size)
  assert resized.shape == (*expected, 3)
  reference = cv2.resize(frames[1], expected[::-1], interpolation=cv2.INTER_LINEAR)
  np.testing.assert_array_equal(resized, reference)


def test_frames_of_the_right_size_are_not_touched():
  frames = noise(1, 256, 340, 3)
  assert transforms.resize(frames, 256, 340) is frames
  np.testing.assert_array_equal(transforms.resize_short_side(frames[0], 256), frames[0])


def test_three_crops_are_first_last_middle():
  assert transforms.three_crop_boxes(224, 399, 224) == [
    (0, 0, 224, 224),
    (0, 174, 224, 224),
    (0, 87, 224, 224),
  ]
  assert transforms.three_crop_boxes(300, 224, 224) == [
    (0, 0, 224, 224),
    (76, 0, 224, 224),
    (38, 0, 224, 224),
  ]
  with pytest.raises(ValueError, match="three crops of 224 need frames of short side 224"):
    transforms.three_crop_boxes(256, 340, 224)


def test_crop_takes_the_box():
  frames = noise(2, 10, 12, 3)
  np.testing.assert_array_equal(transforms.crop(frames, (2, 3, 4, 5)), frames[:, 2:6, 3:8])


def test_random_boxes_follow_area_and_aspect_ratio():
  random = np.random.default_rng(0)
  boxes = np.array([transforms.random_resized_crop_box(256, 340, random) for _ in range(4000)])
  top, left, height, width = boxes.T
  assert top.min() == 0 and left.min() == 0
  assert (top + height).max() == 256 and (left + width).max() == 340
  assert 0.075 < (height * width).min() / (256 * 340) < 0.09
  ratio = width / height
  assert 0.72 < ratio.min() < 0.78 and 1.28 < ratio.max() < 1.38
  # Log-uniform: as many wider than high as higher than wide, up to the boxes that do not fit.
  small = height * width < 0.5 * 256 * 340
  assert abs((ratio[small] > 1).mean() - 0.5) < 0.04


def test_boxes_that_never_fit_fall_back_to_the_central_square():
  random = np.random.default_rng(0)
  box = transforms.random_resized_crop_box(20, 200, random, area_range=(0.9, 1.0))
  assert box == (0, 90, 20, 20)
