"""Augmentation of training clips on the accelerator: pure functions of clips and keys.

A training step applies three stages: `augment_pixels` to uint8 clips, `erase` to normalized clips,
and `mix` to normalized clips and soft targets. The first two draw per clip from its key, so the
result does not depend on the rest of the batch; the last draws once per batch.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from vswin_jax.augmentation import pixel_operations as pixels
from vswin_jax.augmentation.rand_augment import STYLES, rand_augment
from vswin_jax.common import checks


@dataclasses.dataclass(frozen=True)
class Augmentation:
  """Options of augmentation; the defaults change nothing.

  Attributes:
    rand_augment: "none" or a style of RandAugment, "imgaug" or "timm" (see `rand_augment`).
    num_operations: RandAugment operations per clip.
    magnitude: magnitude of RandAugment, 0-30 for "imgaug", 0-10 for "timm".
    magnitude_std: standard deviation of normal noise on the magnitude.
    color_jitter: maximum change of the factors of brightness, contrast and saturation, which are
      uniform in 1 +- this and at least 0; applied in random order after RandAugment, as in
      torchvision.
    erasing_probability: probability per clip of erasing a box to the mean color (Zhong et al. 2017,
      arXiv:1708.04896).
    erasing_area_range: minimum and maximum share of the frame's area in the box; uniform.
    erasing_aspect_ratio_range: minimum and maximum height over width of the box; log-uniform.
    mixup_alpha: parameter of the beta distribution of mixup weights (Zhang et al. 2017,
      arXiv:1710.09412); 0: no mixup.
    cutmix_alpha: parameter of the beta distribution of the area that cutmix keeps (Yun et al. 2019,
      arXiv:1905.04899); 0: no cutmix.
    mix_probability: probability of mixing a batch.
    switch_probability: probability of cutmix instead of mixup, if both are on.

  Raises:
    ValueError: a value out of its range.
  """

  rand_augment: str = "none"
  num_operations: int = 4
  magnitude: float = 7.0
  magnitude_std: float = 0.0
  color_jitter: float = 0.0
  erasing_probability: float = 0.0
  erasing_area_range: tuple[float, float] = (0.02, 1 / 3)
  erasing_aspect_ratio_range: tuple[float, float] = (0.3, 1 / 0.3)
  mixup_alpha: float = 0.0
  cutmix_alpha: float = 0.0
  mix_probability: float = 1.0
  switch_probability: float = 0.5

  def __post_init__(self):
    checks.check_choices(("none", *STYLES), rand_augment=self.rand_augment)
    checks.check_at_least(1, num_operations=self.num_operations)
    names = ("magnitude", "magnitude_std", "color_jitter", "mixup_alpha", "cutmix_alpha")
    checks.check_at_least(0, **checks.fields(self, *names))
    chances = checks.fields(self, "erasing_probability", "mix_probability", "switch_probability")
    checks.check_at_least(0, **chances)
    checks.check_at_most(1, **chances)
    for name in ("erasing_area_range", "erasing_aspect_ratio_range"):
      checks.set_range(self, name)
    checks.check_at_most(1, **{"the end of erasing_area_range": self.erasing_area_range[1]})
    if self.rand_augment != "none":
      style = STYLES[self.rand_augment]
      what = f"of rand_augment {self.rand_augment!r}"
      checks.check_at_most(style.largest_magnitude, **{f"magnitude {what}": self.magnitude})
      if not style.repeats:
        most = len(style.operations)
        checks.check_at_most(most, **{f"num_operations {what}": self.num_operations})

  @property
  def changes_pixels(self) -> bool:
    """Whether `augment_pixels` changes clips."""
    return self.rand_augment != "none" or self.color_jitter > 0

  @property
  def erases(self) -> bool:
    """Whether `erase` changes clips."""
    return self.erasing_probability > 0

  @property
  def mixes(self) -> bool:
    """Whether `mix` changes clips."""
    return self.mix_probability > 0 and (self.mixup_alpha > 0 or self.cutmix_alpha > 0)


def augment_pixels(video: jax.Array, keys: jax.Array, augmentation: Augmentation) -> jax.Array:
  """Applies RandAugment and color jitter, with the same draw for all frames of a clip.

  Clips are processed one after the other, so that each computes only the operations it drew.

  Args:
    video: uint8 `[batch, time, height, width, 3]`, as the result.
    keys: random keys of the clips, `[batch]`.

  Raises:
    ValueError: wrong shape or dtype of `video`.
  """
  if not augmentation.changes_pixels:
    return video
  if video.dtype != jnp.uint8 or video.ndim != 5:
    raise ValueError(
      "video must be uint8 [batch, time, height, width, 3], before normalization; got "
      f"{video.dtype} {list(video.shape)}"
    )

  def augment_clip(clip) -> jax.Array:
    planes, key = clip
    operations_key, jitter_key = jax.random.split(key)
    if augmentation.rand_augment != "none":
      options = checks.fields(augmentation, "num_operations", "magnitude", "magnitude_std")
      style = STYLES[augmentation.rand_augment]
      planes = rand_augment(planes, operations_key, style=style, **options)
    if augmentation.color_jitter:
      planes = _jitter_colors(planes, jitter_key, augmentation.color_jitter)
    return planes

  planes = jax.lax.map(augment_clip, (jnp.moveaxis(video, -1, 2), keys))
  return jnp.moveaxis(planes, 2, -1)


def erase(video: jax.Array, keys: jax.Array, augmentation: Augmentation) -> jax.Array:
  """Sets a random box to zero in random clips, the same box in all frames.

  Args:
    video: float `[batch, time, height, width, 3]`, normalized.
    keys: random keys of the clips, `[batch]`.
  """
  if not augmentation.erases:
    return video
  size = video.shape[2:4]
  masks = jax.vmap(lambda key: pixels.box_mask(erasing_box(key, augmentation, *size), *size))(keys)
  return jnp.where(masks[:, None, :, :, None], jnp.zeros((), video.dtype), video)


def erasing_box(
  key: jax.Array, augmentation: Augmentation, height: int, width: int
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  """Draws the box that `erase` erases: int32 (top, left, bottom, right), which may be empty."""
  coin_key, area_key, ratio_key, top_key, left_key = jax.random.split(key, 5)
  # Attempts to draw a box that fits, as in timm.
  count = (10,)
  smallest, largest = augmentation.erasing_area_range
  areas = jax.random.uniform(area_key, count, minval=smallest, maxval=largest) * height * width
  smallest, largest = map(math.log, augmentation.erasing_aspect_ratio_range)
  ratios = jnp.exp(jax.random.uniform(ratio_key, count, minval=smallest, maxval=largest))
  heights = jnp.round(jnp.sqrt(areas * ratios)).astype(jnp.int32)
  widths = jnp.round(jnp.sqrt(areas / ratios)).astype(jnp.int32)
  fits = (heights < height) & (widths < width)
  first = jnp.argmax(fits)
  is_erased = fits[first] & jax.random.bernoulli(coin_key, augmentation.erasing_probability)
  box_height, box_width = jnp.where(is_erased, heights[first], 0), widths[first]
  # Clamped, because a box that does not fit, which is not erased, needs a valid range too.
  top = jax.random.randint(top_key, (), 0, jnp.maximum(height - box_height, 0) + 1)
  left = jax.random.randint(left_key, (), 0, jnp.maximum(width - box_width, 0) + 1)
  return top, left, top + box_height, left + box_width


def mix(
  video: jax.Array, targets: jax.Array, key: jax.Array, augmentation: Augmentation
) -> tuple[jax.Array, jax.Array]:
  """Mixes a batch with itself in reverse order, by mixup or cutmix.

  Args:
    video: float `[batch, time, height, width, 3]`, normalized.
    targets: float32 `[batch, classes]`, between 0 and 1.
    key: random key of the batch; all clips get the same weight or box.

  Returns:
    (video, targets) with the shapes and dtypes of the arguments.
  """
  if not augmentation.mixes:
    return video, targets
  height, width = video.shape[2:4]
  coin_key, switch_key, share_key, center_key = jax.random.split(key, 4)

  def mixup():
    share = jax.random.beta(share_key, augmentation.mixup_alpha, augmentation.mixup_alpha)
    return jnp.full((height, width), share), share

  def cutmix():
    share = jax.random.beta(share_key, augmentation.cutmix_alpha, augmentation.cutmix_alpha)
    center = jax.random.randint(center_key, (2,), 0, jnp.asarray([height, width]))
    box, share = cutmix_box(share, center, height, width)
    return 1.0 - pixels.box_mask(box, height, width), share

  if augmentation.mixup_alpha and augmentation.cutmix_alpha:
    is_cutmix = jax.random.bernoulli(switch_key, augmentation.switch_probability)
    weight, share = jax.lax.cond(is_cutmix, cutmix, mixup)
  else:
    weight, share = mixup() if augmentation.mixup_alpha else cutmix()

  is_mixed = jax.random.bernoulli(coin_key, augmentation.mix_probability)
  weight = jnp.where(is_mixed, weight, 1.0)[..., None]
  share = jnp.where(is_mixed, share, 1.0)
  mixed = video * weight + video[::-1] * (1.0 - weight)
  return mixed.astype(video.dtype), targets * share + targets[::-1] * (1.0 - share)


def cutmix_box(share, center, height: int, width: int) -> tuple[tuple, jax.Array]:
  """Returns the box that cutmix replaces, clipped to the frame, and the share of the area it keeps.

  Args:
    share: share of the area to keep, before the box is clipped.
    center: int32 (row, column) of the box.

  Returns:
    The box, int32 (top, left, bottom, right), and the share of the area outside of it.
  """
  sides = []
  for middle, side in zip(center, (height, width)):
    length = jnp.floor(side * jnp.sqrt(1.0 - share)).astype(jnp.int32)
    start = jnp.clip(middle - length // 2, 0, side)
    sides.append((start, jnp.clip(middle + (length + 1) // 2, 0, side)))
  (top, bottom), (left, right) = sides
  area = (bottom - top) * (right - left)
  return (top, left, bottom, right), 1.0 - area / (height * width)


def _jitter_colors(planes: jax.Array, key: jax.Array, strength: float) -> jax.Array:
  order_key, factor_key = jax.random.split(key)
  operations = (pixels.brightness, pixels.contrast, pixels.color)
  lowest, highest = max(1 - strength, 0.0), 1 + strength
  factors = jax.random.uniform(factor_key, (len(operations),), minval=lowest, maxval=highest)

  def apply_one(planes, draw):
    choice, factor = draw
    return jax.lax.switch(choice, operations, planes, factor), None

  order = jax.random.permutation(order_key, len(operations))
  return jax.lax.scan(apply_one, planes, (order, factors))[0]
