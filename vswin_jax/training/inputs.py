"""Inputs and targets of a model, from a batch of uint8 clips and labels."""

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P

from vswin_jax.augmentation.augmentation import Augmentation, augment_pixels, erase, mix
from vswin_jax.models.normalization import normalize
from vswin_jax.training.sharding import AXES

# Data for `fold_in`, beyond the indices of parts and clips that other keys are derived from.
_CLIPS, _MIXING = 2**32 - 1, 2**32 - 2


def augment_batch(
  batch: dict, key: jax.Array, augmentation: Augmentation, mesh: jax.sharding.Mesh | None = None
) -> dict:
  """Augments the pixels of a batch, and adds a key for each clip, for later augmentation.

  Args:
    batch: with "video" uint8 `[batch, time, height, width, 3]`, sharded evenly over the devices.
    key: random key of the step.
    mesh: mesh of the devices, each of which augments its own clips; None: one device.

  Returns:
    The batch with augmented "video" and a "key" for each clip; `batch` itself if clips are neither
    augmented nor erased.
  """
  if not (augmentation.changes_pixels or augmentation.erases):
    return batch
  video = batch["video"]
  keys = jax.vmap(jax.random.fold_in, (None, 0))(
    jax.random.fold_in(key, _CLIPS), jnp.arange(len(video))
  )
  pixel_keys, erasing_keys = jax.vmap(jax.random.split, out_axes=1)(keys)

  def work(video, keys):
    return augment_pixels(video, keys, augmentation)

  if mesh is not None and augmentation.changes_pixels:
    # The compiler would not distribute the loop over clips.
    work = jax.shard_map(work, mesh=mesh, in_specs=P(AXES), out_specs=P(AXES))
  return batch | {"video": work(video, pixel_keys), "key": erasing_keys}


def model_inputs(
  batch: dict,
  key: jax.Array,
  augmentation: Augmentation,
  *,
  mean: tuple[float, ...],
  std: tuple[float, ...],
  num_classes: int,
  multi_label: bool = False,
  label_smoothing: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
  """Returns the inputs and targets of a model for a batch, or for a part of one.

  Args:
    batch: from `augment_batch`, with "label" int32 `[batch]`; with `multi_label`, 0 and 1 `[batch,
      num_classes]`.
    key: random key of the batch or part, within which clips are mixed.
    mean: mean of the pixels, per color.
    std: standard deviation of the pixels, per color.
    multi_label: whether a video has any number of labels.
    label_smoothing: share of the target spread evenly over all classes; not with `multi_label`.

  Returns:
    Normalized float32 `[batch, time, height, width, 3]`, and float32 `[batch, num_classes]`.
  """
  label = batch["label"]
  if multi_label:
    targets = label.astype(jnp.float32)
  else:
    targets = optax.smooth_labels(jax.nn.one_hot(label, num_classes), label_smoothing)
  pixels = normalize(batch["video"], mean, std)
  if augmentation.erases:
    pixels = erase(pixels, batch["key"], augmentation)
  return mix(pixels, targets, jax.random.fold_in(key, _MIXING), augmentation)
