"""From a batch of uint8 clips and labels to what a model sees and what it is to learn."""

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P

from vswin_jax.augmentation.augmentation import Augmentation, augment_pixels, erase, mix
from vswin_jax.models.normalization import normalize
from vswin_jax.training.sharding import AXES

# Apart from the numbers of parts and clips, which other keys are derived from.
_CLIPS, _MIXING = 2**32 - 1, 2**32 - 2


def make_targets(
  label: jax.Array, num_classes: int, *, multi_label: bool = False, label_smoothing: float = 0.0
) -> jax.Array:
  """What a model is to learn: float32 `[batch, num_classes]`.

  Args:
    label: int32 `[batch]`; with `multi_label`, 0 and 1 `[batch, num_classes]`.
    label_smoothing: share of the one target spread evenly over all classes.
  """
  if multi_label:
    return label.astype(jnp.float32)
  return optax.smooth_labels(jax.nn.one_hot(label, num_classes), label_smoothing)


def check_label_smoothing(label_smoothing: float, multi_label: bool) -> None:
  """Raises ValueError if labels can't be smoothed."""
  if multi_label and label_smoothing:
    raise ValueError(
      "train.label_smoothing is for videos with one label, these have any number of them: it must "
      f"be 0, got {label_smoothing}"
    )


def augment_batch(
  batch: dict, key: jax.Array, augmentation: Augmentation, mesh: jax.sharding.Mesh | None = None
) -> dict:
  """Augments the pixels of a batch, and gives each clip a key of its own for what follows.

  Args:
    batch: with "video" uint8 `[batch, time, height, width, 3]`, in equal parts on all devices.
    key: of the step.
    mesh: of the devices, each of which works on its own clips; None: one device.

  Returns:
    The batch with another "video", and with a "key" for every clip; as it is if nothing is done.
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
    # Clips are handled one after the other, which the compiler would not divide among devices.
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
  """What a model sees of a batch, or of a part of one, and what it is to learn.

  Args:
    batch: from `augment_batch`.
    key: of the step, or of the part; clips are mixed within it.

  Returns:
    Normalized float32 `[batch, time, height, width, 3]`, and targets `[batch, num_classes]`.
  """
  targets = make_targets(
    batch["label"], num_classes, multi_label=multi_label, label_smoothing=label_smoothing
  )
  pixels = normalize(batch["video"], mean, std)
  if augmentation.erases:
    pixels = erase(pixels, batch["key"], augmentation)
  return mix(pixels, targets, jax.random.fold_in(key, _MIXING), augmentation)
