"""Augmentation within a training step: the same on any devices, in parts, and by the step alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.steps import BATCH, CLASSES, PIXELS, batches, run
from vswin_jax.augmentation.augmentation import Augmentation
from vswin_jax.models.normalization import denormalize, normalize
from vswin_jax.training import sharding
from vswin_jax.training.inputs import augment_batch, model_inputs

STRONG = Augmentation(
  rand_augment="imgaug", num_operations=2, color_jitter=0.4, erasing_probability=0.7
)
MIXING = Augmentation(mixup_alpha=0.8, cutmix_alpha=1.0)


@functools.cache
def compiled(augmentation, mesh):
  """Returns the jitted preparation of a batch for a mesh, the same function in all tests."""

  def prepare(batch, key):
    augmented = augment_batch(batch, key, augmentation, mesh)
    return augmented["video"], *model_inputs(
      augmented, key, augmentation, num_classes=CLASSES, label_smoothing=0.1, **PIXELS
    )

  return jax.jit(prepare)


def prepared(augmentation, *, devices=1, seed=3):
  """Pixels and targets of a batch on some devices."""
  mesh = sharding.make_mesh(1, jax.devices()[:devices])
  batch = sharding.put_batch(next(batches(1)), sharding.batch_sharding(mesh))
  return [np.asarray(x) for x in compiled(augmentation, mesh)(batch, jax.random.key(seed))]


def test_without_augmentation_pixels_are_only_normalized():
  batch = next(batches(1))
  video, pixels, targets = prepared(Augmentation())
  np.testing.assert_array_equal(video, batch["video"])
  np.testing.assert_array_equal(pixels, jax.jit(lambda v: normalize(v, **PIXELS))(batch["video"]))
  np.testing.assert_array_equal(denormalize(pixels, **PIXELS), batch["video"])
  np.testing.assert_allclose(targets.sum(-1), 1, rtol=1e-6)
  np.testing.assert_allclose(targets.max(-1), 0.9 + 0.1 / CLASSES, rtol=1e-6)


@pytest.mark.parametrize("augmentation", [STRONG, MIXING], ids=["clips", "batch"])
def test_devices_and_keys(augmentation):
  """The same bits on one device and on four; others with another key."""
  one, four, other = (
    prepared(augmentation), prepared(augmentation, devices=4), prepared(augmentation, seed=4)
  )  # fmt: skip
  for actual, expected in zip(four, one):
    np.testing.assert_array_equal(actual, expected)
  assert (one[1] != other[1]).any()


def test_erased_boxes_have_the_mean_color():
  video, pixels, _ = prepared(STRONG)
  erased = (pixels == 0).all((1, 4))
  plain = np.asarray(normalize(video, **PIXELS))
  assert 1 <= erased.any((1, 2)).sum() < BATCH
  for clip, mask in enumerate(erased):
    np.testing.assert_allclose(pixels[clip][:, ~mask], plain[clip][:, ~mask], atol=1e-6)


def test_mixing_mixes_targets_as_it_mixes_pixels():
  augmentation = Augmentation(mixup_alpha=0.8)
  _, pixels, targets = prepared(augmentation)
  _, plain, labels = prepared(Augmentation())
  # Both are one weighted mean of the batch and its reverse.
  share = np.linalg.lstsq(
    np.stack([plain.ravel(), plain[::-1].ravel()], 1), pixels.ravel(), rcond=None
  )[0]
  np.testing.assert_allclose(share.sum(), 1, rtol=1e-5)
  np.testing.assert_allclose(targets, share[0] * labels + share[1] * labels[::-1], atol=1e-5)


def test_stages_of_augmentation_draw_independently():
  """The keys of erasing do not depend on the operations on pixels before."""
  key = jax.random.key(0)
  batch = next(batches(1))
  only = Augmentation(erasing_probability=0.7)
  keys = [augment_batch(batch, key, augmentation)["key"] for augmentation in (only, STRONG)]
  np.testing.assert_array_equal(*(jax.random.key_data(key) for key in keys))
  assert len(np.unique(jax.random.key_data(keys[0]), axis=0)) == BATCH
  assert "key" not in augment_batch(batch, key, MIXING)
  assert augment_batch(batch, key, MIXING) is batch


@pytest.mark.slow
def test_parts_of_a_step_see_the_augmented_clips():
  """Gradients of two accumulated parts are those of the whole batch."""
  plain = {"drop_path_rate": 0.0, "head_dropout_rate": 0.0}
  mesh = sharding.make_mesh(1, jax.devices()[:2])
  options = {"devices": 2, "mesh": mesh, "augmentation": STRONG, "model_options": plain, "steps": 2}
  whole, _, _ = run(**options)
  parts, _, _ = run(**options, grad_accum_steps=2)
  unchanged, _, _ = run(devices=2, model_options=plain, steps=2)
  for actual, expected, other in zip(parts, whole, unchanged):
    np.testing.assert_allclose(actual["loss"], expected["loss"], rtol=2e-6)
    np.testing.assert_allclose(actual["mean_grad_norm"], expected["mean_grad_norm"], rtol=2e-5)
    assert abs(expected["loss"] - other["loss"]) > 1e-4


def test_targets_of_several_labels_are_mixed():
  batch = next(batches(1, multi_label=True))
  pixels, targets = model_inputs(
    batch, jax.random.key(1), MIXING, num_classes=CLASSES, multi_label=True, **PIXELS
  )
  assert pixels.shape == batch["video"].shape
  labels = jnp.asarray(batch["label"], jnp.float32)
  share = (targets - labels[::-1])[labels != labels[::-1]] / (labels - labels[::-1])[
    labels != labels[::-1]
  ]
  np.testing.assert_allclose(share, share[0], rtol=1e-4)
