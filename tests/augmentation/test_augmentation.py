"""Augmentation of clips: what it draws, against plain computation, Pillow and timm."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from PIL import Image, ImageEnhance

from tests.conversion.timm_without_torchvision import import_timm
from vswin_jax.augmentation.augmentation import (
  Augmentation,
  augment_pixels,
  cutmix_box,
  erase,
  erasing_box,
  mix,
)

EVERYTHING = {
  "rand_augment": "imgaug",
  "color_jitter": 0.4,
  "erasing_probability": 0.5,
  "mixup_alpha": 0.8,
  "cutmix_alpha": 1.0,
}


def keys_of(count: int, seed: int = 0) -> jax.Array:
  return jax.random.split(jax.random.key(seed), count)


def make_clips(count: int = 4, time: int = 2, height: int = 24, width: int = 20) -> np.ndarray:
  """Every frame of a clip is the same."""
  frames = np.random.default_rng(0).integers(0, 256, (count, 1, height, width, 3), dtype=np.uint8)
  return np.repeat(frames, time, axis=1)


def jitted(stage, **options):
  return jax.jit(functools.partial(stage, augmentation=Augmentation(**options)))


def test_by_default_nothing_is_done():
  augmentation = Augmentation()
  assert not (augmentation.changes_pixels or augmentation.erases or augmentation.mixes)
  video, targets = jnp.ones((2, 1, 4, 4, 3)), jnp.ones((2, 5))
  assert augment_pixels(video, keys_of(2), augmentation) is video
  assert erase(video, keys_of(2), augmentation) is video
  mixed = mix(video, targets, jax.random.key(0), augmentation)
  assert mixed[0] is video and mixed[1] is targets
  everything = Augmentation(**EVERYTHING)
  assert everything.changes_pixels and everything.erases and everything.mixes
  assert not Augmentation(mixup_alpha=1.0, mix_probability=0.0).mixes


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"rand_augment": "auto"}, "unknown rand_augment 'auto'; choose one of imgaug, none, timm"),
    ({"num_operations": 0}, "num_operations must be at least 1, got 0"),
    (
      {"rand_augment": "imgaug", "num_operations": 19},
      "num_operations of rand_augment 'imgaug' must be at most 18, got 19",
    ),
    (
      {"rand_augment": "timm", "magnitude": 11.0},
      "magnitude of rand_augment 'timm' must be at most 10, got 11",
    ),
    ({"magnitude_std": -0.5}, "magnitude_std must be at least 0"),
    ({"color_jitter": -1.0}, "color_jitter must be at least 0"),
    ({"erasing_probability": 1.5}, "erasing_probability must be at most 1, got 1.5"),
    ({"mix_probability": -0.1}, "mix_probability must be at least 0"),
    ({"erasing_area_range": (0.5, 0.1)}, "erasing_area_range must be .* low <= high; got"),
    ({"erasing_area_range": (0.5, 2.0)}, "the end of erasing_area_range must be at most 1, got 2"),
    ({"erasing_aspect_ratio_range": (1.0,)}, "erasing_aspect_ratio_range must be .* got"),
  ],
)
def test_wrong_options_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    Augmentation(**options)


def test_only_pixels_are_augmented():
  with pytest.raises(ValueError, match=r"video must be uint8 .* got float32 \[2, 1, 4, 4, 3\]"):
    augment_pixels(jnp.zeros((2, 1, 4, 4, 3)), keys_of(2), Augmentation(**EVERYTHING))


@pytest.mark.parametrize("style", ["imgaug", "timm"])
def test_pixels_depend_on_the_key_of_the_clip_alone(style):
  options = {"rand_augment": style, "magnitude_std": 0.5, "color_jitter": 0.4}
  augment = jitted(augment_pixels, **options)
  count = 8
  video, keys = make_clips(count), keys_of(count)
  result = np.asarray(augment(video, keys))
  assert result.dtype == np.uint8 and result.shape == video.shape
  np.testing.assert_array_equal(result, augment(video, keys))
  np.testing.assert_array_equal(result[::-1], augment(video[::-1], keys[::-1]))
  np.testing.assert_array_equal(result[:, 0], result[:, 1])
  others = augment(video, keys_of(count, seed=1))
  assert all((one != other).any() for one, other in zip(result, others))
  same = np.asarray(augment(np.repeat(video[:1], count, axis=0), keys))
  assert len({clip.tobytes() for clip in same}) > 1

  mesh = jax.make_mesh((4,), ("data",), devices=jax.devices()[:4])
  spec = PartitionSpec("data")
  stage = functools.partial(augment_pixels, augmentation=Augmentation(**options))
  on_devices = jax.jit(jax.shard_map(stage, mesh=mesh, in_specs=(spec, spec), out_specs=spec))
  parts = jax.device_put((video, keys), NamedSharding(mesh, spec))
  np.testing.assert_array_equal(result, on_devices(*parts))


def test_jitter_is_brightness_contrast_and_saturation_in_any_order():
  strength = 0.4
  frame = make_clips(1)[0, 0]
  count = 60
  clips = np.repeat(frame[None, None], count, axis=0)
  results = np.asarray(jitted(augment_pixels, color_jitter=strength)(clips, keys_of(count)))
  image = Image.fromarray(frame)
  enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)

  def apply(order, factors) -> np.ndarray:
    result = image
    for enhancer, factor in zip(order, factors):
      result = enhancer(result).enhance(factor)
    return np.asarray(result)

  # Factors as the operations get them; Pillow then has to agree in exactly one order.
  orders = {}
  for index, key in enumerate(keys_of(count)):
    factor_key = jax.random.split(jax.random.split(key)[1])[1]
    factors = jax.random.uniform(factor_key, (3,), minval=1 - strength, maxval=1 + strength)
    for order in itertools.permutations(enhancers):
      if np.array_equal(apply(order, [float(x) for x in factors]), results[index, 0]):
        orders.setdefault(order, []).append(index)
  assert sum(map(len, orders.values())) == count
  assert len(orders) == 6


def draw_boxes(augmentation, count=4000, height=100, width=80) -> np.ndarray:
  draw = functools.partial(erasing_box, augmentation=augmentation, height=height, width=width)
  return np.stack(jax.jit(jax.vmap(draw))(keys_of(count)), axis=-1)


def test_erased_boxes_have_the_published_distribution():
  height, width = 100, 80
  boxes = draw_boxes(Augmentation(erasing_probability=1.0), height=height, width=width)
  top, left, bottom, right = boxes.T
  assert top.min() == 0 and left.min() == 0
  assert bottom.max() == height and right.max() == width
  box_height, box_width = bottom - top, right - left
  assert ((box_height > 0) & (box_height < height) & (box_width > 0) & (box_width < width)).all()
  share = box_height * box_width / (height * width)
  ratio = box_height / box_width
  assert share.min() == pytest.approx(0.02, abs=0.003)
  assert share.max() == pytest.approx(1 / 3, abs=0.01)
  assert ratio.min() == pytest.approx(0.3, abs=0.03)
  assert ratio.max() == pytest.approx(1 / 0.3, abs=0.3)

  # The rejection of what does not fit, and of nothing else, as in a plain loop.
  random = np.random.default_rng(0)
  expected = []
  while len(expected) < 4000:
    area = random.uniform(0.02, 1 / 3) * height * width
    aspect = math.exp(random.uniform(math.log(0.3), math.log(1 / 0.3)))
    sides = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    if sides[0] < height and sides[1] < width:
      expected.append((*sides, random.integers(height - sides[0], endpoint=True)))
  for values, reference in zip((box_height, box_width, top), np.transpose(expected)):
    quantiles = np.linspace(0.05, 0.95, 10)
    np.testing.assert_allclose(
      np.quantile(values, quantiles), np.quantile(reference, quantiles), atol=3
    )


def test_share_of_erased_clips():
  boxes = draw_boxes(Augmentation(erasing_probability=0.25))
  assert abs((boxes[:, 2] > boxes[:, 0]).mean() - 0.25) < 0.03


def test_boxes_that_never_fit_are_not_erased():
  augmentation = Augmentation(erasing_probability=1.0, erasing_area_range=(1.0, 1.0))
  boxes = draw_boxes(augmentation, count=50)
  np.testing.assert_array_equal(boxes[:, 2], boxes[:, 0])


def test_erasing_sets_one_box_to_zero_in_all_frames():
  augmentation = Augmentation(erasing_probability=0.5)
  video = np.random.default_rng(0).uniform(1, 2, (8, 3, 24, 20, 3))
  video, keys = jnp.asarray(video, jnp.bfloat16), keys_of(8)
  result = jax.jit(erase, static_argnums=2)(video, keys, augmentation)
  assert result.dtype == video.dtype
  expected = np.array(video)
  boxes = jax.vmap(lambda key: jnp.stack(erasing_box(key, augmentation, 24, 20)))(keys)
  for clip, (top, left, bottom, right) in zip(expected, np.asarray(boxes)):
    clip[:, top:bottom, left:right] = 0
  np.testing.assert_array_equal(result, expected)
  is_erased = (expected == 0).any((1, 2, 3, 4))
  assert is_erased.any() and not is_erased.all()


def make_batch(count: int = 4, classes: int = 5):
  random = np.random.default_rng(1)
  video = random.normal(size=(count, 2, 24, 20, 3)).astype(np.float32)
  targets = random.dirichlet(np.ones(classes), count).astype(np.float32)
  return video, targets


def mix_many(count: int, **options):
  video, targets = make_batch()
  augmentation = Augmentation(**options)
  run = jax.jit(jax.vmap(lambda key: mix(video, targets, key, augmentation)))
  return video, targets, *map(np.asarray, run(keys_of(count)))


def shares_of(targets, mixed_targets) -> np.ndarray:
  """Returns the share of its own targets that each mixed batch keeps."""
  change = targets - targets[::-1]
  return ((mixed_targets - targets[::-1]) * change).sum((1, 2)) / (change**2).sum()


def check_targets(targets, mixed_targets) -> np.ndarray:
  shares = shares_of(targets, mixed_targets)
  weights = shares[:, None, None]
  expected = weights * targets + (1 - weights) * targets[::-1]
  np.testing.assert_allclose(mixed_targets, expected, atol=1e-6)
  return shares


def test_mixup_weighs_the_batch_and_its_reverse():
  video, targets, mixed, mixed_targets = mix_many(500, mixup_alpha=0.8)
  shares = check_targets(targets, mixed_targets)
  weights = shares[:, None, None, None, None, None]
  np.testing.assert_allclose(mixed, weights * video + (1 - weights) * video[::-1], atol=2e-6)
  expected = np.random.default_rng(0).beta(0.8, 0.8, 100_000)
  quantiles = np.linspace(0.1, 0.9, 9)
  np.testing.assert_allclose(
    np.quantile(shares, quantiles), np.quantile(expected, quantiles), atol=0.08
  )


def test_cutmix_replaces_one_box_and_corrects_the_share():
  video, targets, mixed, mixed_targets = mix_many(300, cutmix_alpha=1.0)
  shares = check_targets(targets, mixed_targets)
  is_kept = (mixed == video).all((1, 2, 5))
  for result, kept, share in zip(mixed, is_kept, shares):
    expected = np.where(kept[..., None], video, video[::-1])
    np.testing.assert_array_equal(result, expected)
    assert share == pytest.approx(kept.mean(), abs=1e-6)
    rows, columns = np.nonzero(~kept)
    if len(rows):
      assert len(rows) == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
  assert len(np.unique(shares)) > 100


def test_boxes_of_cutmix_are_those_of_timm(monkeypatch):
  mixup = import_timm().data.mixup
  height, width = 100, 80
  for share, row, column in itertools.product((0.0, 0.13, 0.5, 0.9, 1.0), (0, 37, 99), (0, 41, 79)):
    center = iter((row, column))
    monkeypatch.setattr("numpy.random.randint", lambda *_, center=center, **__: next(center))
    (top, bottom, left, right), kept = mixup.cutmix_bbox_and_lam((3, height, width), share)
    box, corrected = cutmix_box(jnp.float32(share), (row, column), height, width)
    assert tuple(map(int, box)) == (top, left, bottom, right)
    assert float(corrected) == pytest.approx(kept, abs=1e-6)


def test_switch_and_probability_of_mixing():
  options = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0}
  video, _, mixed, _ = mix_many(500, **options, mix_probability=0.6, switch_probability=0.3)
  is_mixed = (mixed != video).any((1, 2, 3, 4, 5))
  is_cutmix = is_mixed & ((mixed == video) | (mixed == video[::-1])).all((1, 2, 3, 4, 5))
  assert abs(is_mixed.mean() - 0.6) < 0.07
  assert abs(is_cutmix.sum() / is_mixed.sum() - 0.3) < 0.08


def test_mixing_keeps_the_dtype_of_the_video():
  video, targets = make_batch()
  augmentation = Augmentation(mixup_alpha=0.8)
  mixed, mixed_targets = mix(
    jnp.asarray(video, jnp.bfloat16), targets, jax.random.key(0), augmentation
  )
  assert mixed.dtype == jnp.bfloat16
  assert mixed_targets.dtype == jnp.float32
