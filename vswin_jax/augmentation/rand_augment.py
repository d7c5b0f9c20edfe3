"""RandAugment (Cubuk et al. 2019, arXiv:1909.13719) for clips, in jitted code.

There are two styles, with different operations, strengths and draws:

- "imgaug", used in the training of Video Swin: magnitudes of 0-30. Every clip is first flipped
  horizontally with probability 0.5 and cropped by up to magnitude / 224 from each side, then
  resized. The operations of a clip are different. Warps take the nearest pixel.
- "timm", in its notation "rand-m*-n*-mstd*-inc1": magnitudes of 0-10. Operations may repeat; each
  is applied with probability 0.5. Warps are bicubic.

All frames of a clip share one draw.
"""

import math
import types
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vswin_jax.augmentation import pixel_operations as pixels


class Style(NamedTuple):
  """A variant of RandAugment.

  Attributes:
    largest_magnitude: end of the scale of magnitudes, which starts at 0.
    flips_and_crops: whether every clip is flipped and cropped first.
    repeats: whether an operation may be drawn more than once.
    probability: probability of applying an operation that was drawn.
    operations: functions of uint8 planes `[time, 3, height, width]` and scalars, by name.
    arguments: (magnitude, sign, position, height, width) -> the scalars of the operations that take
      any, by name, with `sign` 1 or -1 and `position` float32 `[2]` from 0 to 1 (down, right).
  """

  largest_magnitude: float
  flips_and_crops: bool
  repeats: bool
  probability: float
  operations: Mapping[str, Callable[..., jax.Array]]
  arguments: Callable[..., dict[str, tuple]]


def rand_augment(
  planes: jax.Array,
  key: jax.Array,
  *,
  style: Style,
  num_operations: int,
  magnitude: float,
  magnitude_std: float = 0.0,
) -> jax.Array:
  """Applies random operations to a clip, uint8 `[time, 3, height, width]`.

  Args:
    key: random key of all draws.
    style: a value of `STYLES`.
    num_operations: number of operations to draw.
    magnitude: magnitude of the operations, on the scale of the style.
    magnitude_std: standard deviation of normal noise on the magnitude of each operation, which is
      clipped to the scale.
  """
  first_key, choice_key, key = jax.random.split(key, 3)
  if style.flips_and_crops:
    planes = _flip_and_crop(planes, magnitude, first_key)
  count = len(style.operations)
  if style.repeats:
    choices = jax.random.randint(choice_key, (num_operations,), 0, count)
  else:
    choices = jax.random.permutation(choice_key, count)[:num_operations]

  def apply_one(planes, draw):
    choice, key = draw
    key, noise_key, coin_key = jax.random.split(key, 3)
    # Without noise it stays a Python number, so that arguments are rounded once, as in the
    # references.
    strength = magnitude
    if magnitude_std:
      noise = magnitude_std * jax.random.normal(noise_key)
      strength = jnp.clip(magnitude + noise, 0, style.largest_magnitude)
    is_applied = jax.random.bernoulli(coin_key, style.probability)
    return _apply_choice(style, planes, choice, is_applied, strength, key), None

  # A loop, so that the operations are compiled once.
  draws = (choices, jax.random.split(key, num_operations))
  return jax.lax.scan(apply_one, planes, draws)[0]


def _apply_choice(
  style: Style, planes: jax.Array, choice, is_applied, magnitude, key: jax.Array
) -> jax.Array:
  """Applies operation number `choice`, the only one that is computed."""
  arguments = draw_arguments(style, magnitude, key, *planes.shape[2:])
  longest = max(map(len, arguments.values()))
  padded = [(*values, *[0.0] * (longest - len(values))) for values in arguments.values()]
  row = jnp.asarray(padded, jnp.float32)[choice]
  # Operations that share a function share its branch, which keeps compilation short.
  sizes = {pixels.identity: 0}
  sizes |= {function: len(arguments[name]) for name, function in style.operations.items()}
  functions = list(sizes)

  def make_branch(function):
    return lambda planes, row: function(planes, *row[: sizes[function]])

  branch_of = jnp.asarray([functions.index(function) for function in style.operations.values()])
  branch = jnp.where(is_applied, branch_of[choice], functions.index(pixels.identity))
  return jax.lax.switch(branch, [make_branch(function) for function in functions], planes, row)


def draw_arguments(
  style: Style, magnitude, key: jax.Array, height: int, width: int
) -> dict[str, tuple]:
  """Draws a sign and a position, and returns the scalars of every operation, by name."""
  sign_key, position_key = jax.random.split(key)
  sign = jax.random.rademacher(sign_key, (), jnp.float32)
  position = jax.random.uniform(position_key, (2,))
  arguments = style.arguments(magnitude, sign, position, height, width)
  return {name: arguments.get(name, ()) for name in style.operations}


def _flip_and_crop(planes: jax.Array, magnitude: float, key: jax.Array) -> jax.Array:
  flip_key, crop_key = jax.random.split(key)
  planes = jnp.where(jax.random.bernoulli(flip_key), planes[..., ::-1], planes)
  height, width = planes.shape[2:]
  # The magnitude is in pixels of the images of the paper, 224 x 224.
  shares = jax.random.uniform(crop_key, (4,), maxval=magnitude / 224)
  sizes = jnp.asarray([height, width, height, width], jnp.float32)
  top, right, bottom, left = jnp.round(sizes * shares).astype(jnp.int32)
  return pixels.crop_and_resize(planes, top, left, height - top - bottom, width - left - right)


_ENHANCEMENTS = ("color", "contrast", "brightness", "sharpness")
_WARPS = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
_COLOR_OPERATIONS = {
  name: getattr(pixels, name)
  for name in ("autocontrast", "equalize", "invert", "posterize", "solarize", *_ENHANCEMENTS)
}


def _shared_arguments(sign, share, angle, shear, shift, height: int, width: int) -> dict:
  """Returns the scalars of the enhancements and the warps.

  Args:
    sign: 1 or -1, the direction of the enhancements.
    share: magnitude from 0 to 1.
    angle: radians, clockwise.
    shear: pixels per pixel.
    shift: share of a side.
  """
  # The scales of the references end at 0.1, apart from rounding.
  factor = jnp.where(sign > 0, 1 + 0.9 * share, jnp.maximum(1 - 0.9 * share, 0.1))
  cosine, sine = jnp.cos(angle), jnp.sin(angle)
  x, y = width / 2, height / 2
  return {
    **dict.fromkeys(_ENHANCEMENTS, (factor,)),
    "rotate": (cosine, sine, x - cosine * x - sine * y, -sine, cosine, y + sine * x - cosine * y),
    "shear_x": (1.0, shear, 0.0, 0.0, 1.0, 0.0),
    "shear_y": (1.0, 0.0, 0.0, shear, 1.0, 0.0),
    "translate_x": (1.0, 0.0, shift * width, 0.0, 1.0, 0.0),
    "translate_y": (1.0, 0.0, 0.0, 0.0, 1.0, shift * height),
  }


def _imgaug_arguments(magnitude, sign, position, height: int, width: int) -> dict[str, tuple]:
  share = magnitude / 30
  row, column = position * jnp.asarray([height, width])
  half = share * 20 / 32 * height / 2
  angle = sign * jnp.deg2rad(magnitude)
  # imgaug takes the hyperbolic tangent of the angle of a shear.
  shear, shift = -jnp.tanh(sign * 0.3 * share), -sign * 0.33 * share
  return {
    **_shared_arguments(sign, share, angle, shear, shift, height, width),
    "posterize": (8 - jnp.clip(jnp.floor(magnitude * 6 / 30), 0, 6),),
    "solarize": (jnp.clip(256 - jnp.floor(magnitude * 256 / 30), 0, 256),),
    "cutout": (row - half, column - half, row + half, column + half),
  }


def _timm_arguments(magnitude, sign, position, height: int, width: int) -> dict[str, tuple]:
  share = magnitude / 10
  angle, shear, shift = -sign * math.radians(30) * share, sign * 0.3 * share, sign * 0.45 * share
  return {
    **_shared_arguments(sign, share, angle, shear, shift, height, width),
    "posterize": (4 - jnp.floor(magnitude * 4 / 10),),
    "solarize": (256 - jnp.minimum(jnp.floor(magnitude * 256 / 10), 256),),
    "solarize_add": (jnp.minimum(jnp.floor(magnitude * 110 / 10), 128),),
  }


STYLES = types.MappingProxyType(
  {
    "imgaug": Style(
      largest_magnitude=30.0,
      flips_and_crops=True,
      repeats=False,
      probability=1.0,
      operations={
        "identity": pixels.identity,
        **_COLOR_OPERATIONS,
        **dict.fromkeys(_WARPS, pixels.warp_nearest),
        "cutout": pixels.fill_box,
        "blur": pixels.blur,
        "smooth": pixels.smooth,
      },
      arguments=_imgaug_arguments,
    ),
    "timm": Style(
      largest_magnitude=10.0,
      flips_and_crops=False,
      repeats=True,
      probability=0.5,
      operations={
        **_COLOR_OPERATIONS,
        "solarize_add": pixels.solarize_add,
        **dict.fromkeys(_WARPS, pixels.warp_bicubic),
      },
      arguments=_timm_arguments,
    ),
  }
)
