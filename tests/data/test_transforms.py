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


def test_the_long_side_can_be_rounded_down():
  """To 256: 340 x 256 / 272 is 320 exactly; 271 x 256 / 181 is 383.3 and 274 x 256 / 181 387.5."""
  assert transforms.resize_short_side(noise(272, 340, 3), 256, True).shape == (256, 320, 3)
  assert transforms.resize_short_side(noise(271, 181, 3), 256, True).shape == (383, 256, 3)
  assert transforms.resize_short_side(noise(181, 274, 3), 256, True).shape == (256, 387, 3)
  assert transforms.resize_short_side(noise(181, 274, 3), 256).shape == (256, 388, 3)


def test_frames_of_the_right_size_are_not_touched():
  frame = noise(256, 340, 3)
  assert transforms.resize(frame, 256, 340) is frame
  assert transforms.resize_short_side(frame, 256) is frame


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


def test_crop_takes_the_box():
  frames = noise(2, 10, 12, 3)
  np.testing.assert_array_equal(transforms.crop(frames, (2, 3, 4, 5)), frames[:, 2:6, 3:8])
  np.testing.assert_array_equal(transforms.crop(frames[1], (2, 3, 4, 5)), frames[1, 2:6, 3:8])


def test_flip_exchanges_left_and_right():
  frame = noise(10, 12, 3)
  np.testing.assert_array_equal(transforms.flip(frame), frame[:, ::-1])


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


def test_random_crops_never_take_the_last_place_unless_it_is_the_only_one():
  random = np.random.default_rng(0)
  boxes = {transforms.random_crop_box(12, 10, 8, random) for _ in range(200)}
  assert boxes == {(top, left, 8, 8) for top in range(4) for left in range(2)}
  assert {transforms.random_crop_box(8, 9, 8, random) for _ in range(20)} == {(0, 0, 8, 8)}


def test_central_crops_between_pixels_go_either_way():
  assert transforms.center_crop_box(10, 13, 8) == (1, 2, 8, 8)
  assert transforms.center_crop_box(10, 13, 8, round_up=True) == (1, 3, 8, 8)
  lefts = [[box[1] for box in transforms.three_crop_boxes(8, 13, 8, up)] for up in (False, True)]
  assert lefts == [[0, 4, 2], [0, 5, 3]]


def test_boxes_that_never_fit_fall_back_to_the_central_square():
  random = np.random.default_rng(0)
  box = transforms.random_resized_crop_box(20, 200, random, area_range=(0.9, 1.0))
  assert box == (0, 90, 20, 20)
