"""RandAugment against Pillow and timm, frame by frame, and its draws against their definitions."""

import math

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from tests.conversion.timm_without_torchvision import import_timm
from vswin_jax.augmentation import pixel_operations as pixels
from vswin_jax.augmentation.rand_augment import STYLES, Style, draw_arguments, rand_augment

FILL = (128, 128, 128)
HEIGHT, WIDTH = 72, 56


def natural_image(random, height=HEIGHT, width=WIDTH) -> np.ndarray:
  coarse = random.normal(size=(9, 7, 3))
  smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
  noise = random.normal(size=(height, width, 3))
  return np.clip(120 + 45 * smooth + 3 * noise, 0, 255).astype(np.uint8)


def make_clips() -> dict[str, np.ndarray]:
  random = np.random.default_rng(0)
  shape = (HEIGHT, WIDTH, 3)
  images = {
    "natural": natural_image(random),
    "noise": random.integers(0, 256, shape, dtype=np.uint8),
    "black and white": random.integers(0, 2, shape, dtype=np.uint8) * 255,
    "one color": np.full(shape, (3, 90, 255), np.uint8),
    "narrow range": random.integers(60, 131, shape, dtype=np.uint8),
  }
  few_pixels = random.integers(0, 256, (2, 4, 11, 3), dtype=np.uint8)
  return {"usual": np.stack(list(images.values())), "few pixels": few_pixels}


# Frames of very different content, so that statistics over more than one frame would be seen.
CLIPS = make_clips()
CLIP = CLIPS["usual"]


def run(operation, clip: np.ndarray, *arguments) -> np.ndarray:
  result = jax.jit(operation)(jnp.moveaxis(jnp.asarray(clip), -1, 1), *arguments)
  return np.moveaxis(np.asarray(result), 1, -1)


def frame_by_frame(reference, clip: np.ndarray) -> np.ndarray:
  return np.stack([np.asarray(reference(Image.fromarray(frame))) for frame in clip])


def crop_and_resize(clip: np.ndarray, top: int, left: int, bottom: int, right: int) -> np.ndarray:
  return np.stack(
    [
      cv2.resize(frame[top:bottom, left:right], (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR)
      for frame in clip
    ]
  )


def check_close(result, expected, *, share: float, difference: int = 255) -> None:
  """At most `share` of the values differ, and by at most `difference`."""
  distance = np.abs(result.astype(int) - np.asarray(expected).astype(int))
  assert distance.max() <= difference
  assert (distance > 0).mean() <= share


LOOK_UPS = {
  "posterize 0": (pixels.posterize, (0,), lambda image: Image.new("RGB", image.size)),
  "invert": (pixels.invert, (), ImageOps.invert),
  "equalize": (pixels.equalize, (), ImageOps.equalize),
  "blur": (pixels.blur, (), lambda image: image.filter(ImageFilter.BLUR)),
  "smooth": (pixels.smooth, (), lambda image: image.filter(ImageFilter.SMOOTH)),
  **{
    f"posterize {bits}": (
      pixels.posterize,
      (bits,),
      lambda image, bits=bits: ImageOps.posterize(image, bits),
    )
    for bits in (1, 4, 7, 8)
  },
  **{
    f"solarize {threshold}": (
      pixels.solarize,
      (threshold,),
      lambda image, threshold=threshold: ImageOps.solarize(image, threshold),
    )
    for threshold in (0, 128, 197, 256)
  },
  "solarize_add": (
    pixels.solarize_add,
    (77,),
    lambda image: image.point([min(i + 77, 255) if i < 128 else i for i in range(256)] * 3),
  ),
}


@pytest.mark.parametrize("kind", CLIPS)
@pytest.mark.parametrize("name", LOOK_UPS)
def test_values_are_exactly_those_of_pillow(name, kind):
  operation, arguments, reference = LOOK_UPS[name]
  result = run(operation, CLIPS[kind], *arguments)
  np.testing.assert_array_equal(result, frame_by_frame(reference, CLIPS[kind]))


@pytest.mark.parametrize("kind", CLIPS)
@pytest.mark.parametrize("name", ["color", "contrast", "brightness", "sharpness"])
def test_enhancements_are_exactly_those_of_pillow(name, kind):
  enhancer = getattr(ImageEnhance, name.capitalize())
  for factor in (0.0, 0.1, 0.37, 0.79, 1.0, 1.21, 1.63, 1.9):
    result = run(getattr(pixels, name), CLIPS[kind], jnp.float32(factor))
    expected = frame_by_frame(lambda image, by=factor: enhancer(image).enhance(by), CLIPS[kind])
    np.testing.assert_array_equal(result, expected)


def test_every_pair_of_values_blends_as_in_pillow():
  start, end = (x.astype(np.uint8) for x in np.meshgrid(np.arange(256), np.arange(256)))
  start_image, end_image = Image.fromarray(start), Image.fromarray(end)
  blend = jax.jit(pixels._blend)
  for factor in np.random.default_rng(1).uniform(0.1, 1.9, 50):
    expected = Image.blend(start_image, end_image, factor)
    np.testing.assert_array_equal(blend(start, end, np.float32(factor)), expected)


@pytest.mark.parametrize("kind", CLIPS)
def test_autocontrast_stretches_every_color(kind):
  clip = CLIPS[kind].astype(int)
  low, high = clip.min((1, 2), keepdims=True), clip.max((1, 2), keepdims=True)
  numerator, spread = (clip - low) * 255, np.maximum(high - low, 1)
  result = run(pixels.autocontrast, CLIPS[kind])
  np.testing.assert_array_equal(result, np.where(high > low, numerator // spread, clip))
  # Pillow may only fall short of whole numbers.
  difference = result - frame_by_frame(ImageOps.autocontrast, CLIPS[kind]).astype(int)
  np.testing.assert_array_equal(difference, (difference != 0) & (numerator % spread == 0))


def matrices(height: int, width: int) -> dict[str, tuple[float, ...]]:
  angle = 0.3
  cosine, sine, x, y = math.cos(angle), math.sin(angle), width / 2, height / 2
  turn = (cosine, sine, x - cosine * x - sine * y, -sine, cosine, y + sine * x - cosine * y)
  return {
    "rotate": turn,
    "shear x": (1, 0.21, 0, 0, 1, 0),
    "shear y": (1, 0, 0, -0.07, 1, 0),
    "translate x": (1, 0, 0.077 * width, 0, 1, 0),
    "translate y": (1, 0, 0, 0, 1, -0.315 * height),
    "whole pixels": (1, 0, -3, 0, 1, 2),
  }


@pytest.mark.parametrize("kind", CLIPS)
@pytest.mark.parametrize("interpolation", ["nearest", "bicubic"])
def test_warps_are_those_of_pillow(interpolation, kind):
  warp = {"nearest": pixels.warp_nearest, "bicubic": pixels.warp_bicubic}[interpolation]
  limits = {"nearest": {}, "bicubic": {"difference": 1}}[interpolation]
  for matrix in matrices(*CLIPS[kind].shape[1:3]).values():

    def reference(image, matrix=matrix):
      resampling = Image.Resampling[interpolation.upper()]
      affine = Image.Transform.AFFINE
      return image.transform(image.size, affine, matrix, resample=resampling, fillcolor=FILL)

    result = run(warp, CLIPS[kind], *map(jnp.float32, matrix))
    check_close(result, frame_by_frame(reference, CLIPS[kind]), share=0.002, **limits)


def test_crops_are_resized_as_in_opencv():
  for top, left, height, width in ((0, 0, HEIGHT, WIDTH), (2, 1, 69, 50), (9, 8, 61, 41)):
    result = run(pixels.crop_and_resize, CLIP, top, left, height, width)
    expected = crop_and_resize(CLIP, top, left, top + height, left + width)
    check_close(result, expected, difference=1, share=0.01)


def imgaug_matrix(*, turn=0.0, shear=(0.0, 0.0), shift=(0.0, 0.0), middle=(0.0, 0.0)) -> np.ndarray:
  """Returns the matrix that imgaug passes to Pillow, the inverse of its affine transformation.

  Args:
    turn: degrees.
    shear: degrees, along x and y.
    shift: pixels.
    middle: pixels.
  """
  angle = -math.radians(turn)
  x_shear, y_shear = np.tanh(np.deg2rad(shear))
  cosine, sine = math.cos(angle), math.sin(angle)
  forward = np.eye(3)
  for step in (
    [[1, 0, -middle[0]], [0, 1, -middle[1]], [0, 0, 1]],
    [[cosine, sine, 0], [-sine, cosine, 0], [0, 0, 1]],
    [[1, x_shear, 0], [y_shear, 1, 0], [0, 0, 1]],
    [[1, 0, shift[0]], [0, 1, shift[1]], [0, 0, 1]],
    [[1, 0, middle[0]], [0, 1, middle[1]], [0, 0, 1]],
  ):
    forward = np.array(step) @ forward
  return np.linalg.inv(forward)[:2].reshape(-1)


def imgaug_reference(name: str, image: Image.Image, magnitude: float, sign: int):
  """One operation of imgaug's RandAugment, from the formulas of its documentation and Pillow."""
  level = magnitude / 30
  width, height = image.size
  shear = sign * level * math.degrees(0.3)
  warps = {
    "rotate": {"turn": sign * level * 30, "middle": (width / 2, height / 2)},
    "shear_x": {"shear": (shear, 0.0)},
    "shear_y": {"shear": (0.0, shear)},
    "translate_x": {"shift": (sign * level * 0.33 * width, 0.0)},
    "translate_y": {"shift": (0.0, sign * level * 0.33 * height)},
  }
  if name in warps:
    matrix = imgaug_matrix(**warps[name])
    return image.transform(image.size, Image.Transform.AFFINE, matrix, fillcolor=FILL)
  if name in ("color", "contrast", "brightness", "sharpness"):
    factor = np.clip(1 + sign * level * 0.9, 0.1, 1.9)
    return getattr(ImageEnhance, name.capitalize())(image).enhance(factor)
  others = {
    "identity": lambda: image,
    "autocontrast": lambda: ImageOps.autocontrast(image),
    "equalize": lambda: ImageOps.equalize(image),
    "invert": lambda: ImageOps.invert(image),
    "posterize": lambda: ImageOps.posterize(image, 8 - min(int(magnitude * 6 / 30), 6)),
    "solarize": lambda: ImageOps.solarize(image, max(256 - int(magnitude * 256 / 30), 0)),
    "blur": lambda: image.filter(ImageFilter.BLUR),
    "smooth": lambda: image.filter(ImageFilter.SMOOTH),
  }
  return others[name]()


def check_both_signs(style: Style, name: str, magnitude: float, reference, share: float, **limits):
  """Each result is that of one sign, and both occur."""
  expected = {
    sign: frame_by_frame(lambda image, sign=sign: reference(image, sign), CLIP) for sign in (1, -1)
  }

  def apply(planes, key):
    arguments = draw_arguments(style, magnitude, key, HEIGHT, WIDTH)[name]
    return style.operations[name](planes, *arguments)

  seen = set()
  for key in jax.random.split(jax.random.key(0), 12):
    result = run(apply, CLIP, key)
    closest = min(expected, key=lambda sign: (result != expected[sign]).mean())
    check_close(result, expected[closest], share=share, **limits)
    seen.add(closest)
  depends_on_sign = not np.array_equal(expected[1], expected[-1])
  assert seen == ({1, -1} if depends_on_sign else {1})


@pytest.mark.parametrize("name", [name for name in STYLES["imgaug"].operations if name != "cutout"])
def test_operations_of_imgaug(name):
  # Coordinates on the edge between two pixels, and whole quotients of autocontrast.
  is_inexact = name.startswith(("rotate", "shear", "translate", "autocontrast"))

  def reference(image, sign):
    return imgaug_reference(name, image, 7, sign)

  check_both_signs(STYLES["imgaug"], name, 7.0, reference, share=0.005 if is_inexact else 0)


TIMM_NAMES = {
  "autocontrast": "AutoContrast",
  "equalize": "Equalize",
  "invert": "Invert",
  "rotate": "Rotate",
  "posterize": "PosterizeIncreasing",
  "solarize": "SolarizeIncreasing",
  "solarize_add": "SolarizeAdd",
  "color": "ColorIncreasing",
  "contrast": "ContrastIncreasing",
  "brightness": "BrightnessIncreasing",
  "sharpness": "SharpnessIncreasing",
  "shear_x": "ShearX",
  "shear_y": "ShearY",
  "translate_x": "TranslateXRel",
  "translate_y": "TranslateYRel",
}


@pytest.mark.parametrize("name", STYLES["timm"].operations)
def test_operations_of_timm(name, monkeypatch):
  timm = import_timm()
  hparams = {"img_mean": FILL, "interpolation": Image.Resampling.BICUBIC}
  make = timm.data.auto_augment.AugmentOp

  def reference(image, sign):
    monkeypatch.setattr("random.random", lambda: 0.0 if sign > 0 else 1.0)
    return make(TIMM_NAMES[name], prob=1.0, magnitude=7, hparams=hparams)(image)

  # Float64 there: values that are whole numbers, or nearly so, are rounded down to another one.
  is_inexact = name.startswith(("rotate", "shear", "translate", "autocontrast"))
  limits = {"share": 0.02, "difference": 1} if is_inexact else {"share": 0}
  check_both_signs(STYLES["timm"], name, 7.0, reference, **limits)


def test_timm_draws_among_the_same_operations():
  timm = import_timm()
  names = timm.data.auto_augment.rand_augment_choices("", increasing=True)
  assert sorted(TIMM_NAMES[name] for name in STYLES["timm"].operations) == sorted(names)


def arguments_of_many(style, name, magnitude, count=2000) -> list[np.ndarray]:
  def draw(key):
    return draw_arguments(STYLES[style], magnitude, key, HEIGHT, WIDTH)[name]

  keys = jax.random.split(jax.random.key(3), count)
  return [np.asarray(argument) for argument in jax.jit(jax.vmap(draw))(keys)]


def test_strengths_of_the_published_recipe():
  def value(name):
    return abs(float(arguments_of_many("imgaug", name, 7.0, count=1)[0][0]))

  assert value("posterize") == 7
  assert value("solarize") == 197
  assert abs(value("brightness") - 1) == pytest.approx(0.21, abs=1e-6)
  turn = arguments_of_many("imgaug", "rotate", 7.0, count=1)
  assert abs(math.degrees(math.asin(turn[1][0]))) == pytest.approx(7, abs=1e-4)


@pytest.mark.parametrize(("style", "largest"), [("imgaug", 30.0), ("timm", 10.0)])
def test_the_scale_ends_at_the_strengths_of_the_references(style, largest):
  (factors,) = arguments_of_many(style, "contrast", largest)
  np.testing.assert_array_equal(np.unique(factors), np.float32([0.1, 1.9]))
  sines = arguments_of_many(style, "rotate", largest)[1]
  np.testing.assert_allclose(np.unique(sines), [-0.5, 0.5], rtol=1e-6)
  shifts = arguments_of_many(style, "translate_x", largest)[2]
  share = {"imgaug": 0.33, "timm": 0.45}[style]
  np.testing.assert_allclose(np.unique(shifts), [-share * WIDTH, share * WIDTH], rtol=1e-6)
  shears = arguments_of_many(style, "shear_y", largest)[3]
  shear = {"imgaug": math.tanh(0.3), "timm": 0.3}[style]
  np.testing.assert_allclose(np.unique(shears), [-shear, shear], rtol=1e-6)


def test_whole_magnitudes_are_rounded_as_in_the_references():
  def value(style, name, magnitude) -> float:
    return float(draw_arguments(STYLES[style], magnitude, jax.random.key(0), 8, 8)[name][0])

  for magnitude in range(31):
    assert value("imgaug", "posterize", magnitude) == 8 - min(int(magnitude * (6 / 30)), 6)
    assert value("imgaug", "solarize", magnitude) == 256 - int(magnitude * (256 / 30))
  for magnitude in range(11):
    assert value("timm", "posterize", magnitude) == 4 - int(magnitude / 10 * 4)
    assert value("timm", "solarize", magnitude) == 256 - min(256, int(magnitude / 10 * 256))
    assert value("timm", "solarize_add", magnitude) == min(128, int(magnitude / 10 * 110))


def test_signs_are_even():
  for style, name in (("imgaug", "shear_y"), ("timm", "shear_y")):
    shears = arguments_of_many(style, name, 5.0)[3]
    np.testing.assert_allclose(np.abs(shears), np.abs(shears[0]), rtol=1e-6)
    assert abs((shears > 0).mean() - 0.5) < 0.05


def test_cutout_is_a_square_of_the_height_anywhere():
  top, left, bottom, right = arguments_of_many("imgaug", "cutout", 7.0)
  side = 7 / 30 * 20 / 32 * HEIGHT
  for start, end, size in ((top, bottom, HEIGHT), (left, right, WIDTH)):
    np.testing.assert_allclose(end - start, side, rtol=1e-5)
    counts, _ = np.histogram((start + end) / 2, bins=5, range=(0, size))
    np.testing.assert_allclose(counts / len(start), 0.2, atol=0.04)

  style = STYLES["imgaug"]
  for key in jax.random.split(jax.random.key(4), 8):
    box = draw_arguments(style, 7.0, key, HEIGHT, WIDTH)["cutout"]
    result = run(style.operations["cutout"], CLIP, *box)
    top, left, bottom, right = (max(int(x), 0) for x in box)
    expected = CLIP.copy()
    expected[:, top:bottom, left:right] = 128
    np.testing.assert_array_equal(result, expected)


def make_style(operations, **changes) -> Style:
  """A style of these operations, which get the magnitude."""
  return Style(
    **{"largest_magnitude": 10.0, "flips_and_crops": False, "repeats": False, "probability": 1.0}
    | changes,
    operations=operations,
    arguments=lambda magnitude, *_: dict.fromkeys(operations, (magnitude,)),
  )


def run_many(planes, style: Style, count=400, **options) -> np.ndarray:
  keys = jax.random.split(jax.random.key(5), count)
  options = {"num_operations": 1, "magnitude": 5.0} | options
  return np.asarray(
    jax.jit(jax.vmap(lambda key: rand_augment(planes, key, style=style, **options)))(keys)
  )


def test_operations_are_drawn_without_repetition_in_random_order():
  def stamp(index):
    return lambda planes, _: planes.at[..., index].set(planes.max() + 1)

  style = make_style({str(index): stamp(index) for index in range(6)})
  orders = run_many(jnp.zeros((1, 3, 1, 6), jnp.uint8), style, num_operations=4)[:, 0, 0, 0]
  np.testing.assert_array_equal(np.sort(orders), np.tile([0, 0, 1, 2, 3, 4], (len(orders), 1)))
  for place in range(1, 5):
    np.testing.assert_allclose((orders == place).mean(0), 1 / 6, atol=0.08)


def test_operations_may_repeat_and_be_left_out():
  def count(index):
    return lambda planes, _: planes.at[..., index].add(1)

  style = make_style({str(i): count(i) for i in range(4)}, repeats=True, probability=0.5)
  counts = run_many(jnp.zeros((1, 3, 1, 4), jnp.uint8), style, count=2000, num_operations=3)[
    :, 0, 0, 0
  ]
  np.testing.assert_allclose(counts.mean(0), 3 * 0.5 / 4, atol=0.05)
  # Binomial: three draws, each of this operation and applied with probability 1/8.
  expected = [math.comb(3, k) * 0.125**k * 0.875 ** (3 - k) for k in range(4)]
  np.testing.assert_allclose([(counts == k).mean() for k in range(4)], expected, atol=0.02)


def test_noise_on_the_magnitude_stays_on_the_scale():
  def show(planes, magnitude):
    return jnp.full_like(planes, jnp.round(20 * magnitude))

  style = make_style({"show": show})
  planes = jnp.zeros((1, 3, 1, 1), jnp.uint8)
  assert set(run_many(planes, style).ravel()) == {100}
  noisy = run_many(planes, style, count=4000, magnitude_std=0.5).ravel() / 20
  assert abs(noisy.mean() - 5) < 0.05
  assert abs(noisy.std() - 0.5) < 0.03
  largest = run_many(planes, style, magnitude=10.0, magnitude_std=0.5).ravel() / 20
  assert largest.max() == 10
  assert abs((largest == 10).mean() - 0.5) < 0.1


def test_flip_and_crop_come_first():
  style = make_style(
    {"identity": lambda planes, _: planes},
    flips_and_crops=True,
    largest_magnitude=30.0,
  )
  clip = CLIP[:1]
  planes = jnp.moveaxis(jnp.asarray(clip), -1, 1)
  flipped = [
    np.array_equal(result, np.asarray(planes)[..., ::-1])
    for result in run_many(planes, style, magnitude=0.0)
  ]
  assert abs(np.mean(flipped) - 0.5) < 0.1

  # At this magnitude up to two pixels from each side.
  candidates = {
    (flip, *box): crop_and_resize(source, box[0], box[1], HEIGHT - box[2], WIDTH - box[3])
    for flip, source in enumerate((clip, clip[:, :, ::-1]))
    for box in np.ndindex(3, 3, 3, 3)
  }
  seen = set()
  for result in np.moveaxis(run_many(planes, style, count=12, magnitude=7.0), 2, -1):
    distances = {
      box: np.abs(result.astype(int) - candidate).max() for box, candidate in candidates.items()
    }
    closest = min(distances, key=distances.get)
    assert distances[closest] <= 1
    seen.add(closest)
  assert len(seen) > 6
