"""RandAugment (Cubuk et al. 2019, arXiv:1909.13719) for clips, inside jitted code.

Two styles, which differ in operations, strengths and draws:

- "imgaug", with which Video Swin was trained: magnitudes of 0-30. First always a flip from left to
  right with probability 0.5 and a crop of up to magnitude / 224 from each side, resized back; then
  different operations, in random order. Warps take the nearest pixel.
- "timm", "rand-m*-n*-mstd*-inc1" in its notation: magnitudes of 0-10. Operations may repeat, each
  is applied with probability 0.5. Warps are bicubic.

All frames of a clip get the same draw.
"""

import math
import types
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vswin_jax.augmentation import pixel_operations as pixels
from vswin_jax.common import checks

# The width of the images in the paper, whose crops imgaug scales.
_CROP_REFERENCE_WIDTH = 224


class Style(NamedTuple):
  """A kind of RandAugment.

  Attributes:
    largest_magnitude: end of the scale of magnitudes, which starts at 0.
    flips_and_crops: whether it always does so first.
    repeats: whether an operation may be drawn again.
    probability: of applying an operation that was drawn.
    operations: functions of uint8 planes `[time, 3, height, width]` and scalars, by name.
    arguments: (magnitude, sign, position, height, width) -> the scalars of each operation, by
      name, with `sign` 1 or -1 and `position` float32 `[2]` from 0 to 1 (down, right).
  """

  largest_magnitude: float
  flips_and_crops: bool
  repeats: bool
  probability: float
  operations: Mapping[str, Callable[..., jax.Array]]
  arguments: Callable[..., dict[str, tuple]]


def operation_names(style: str) -> tuple[str, ...]:
  """The operations among which a style draws.

  Raises:
    ValueError: an unknown style.
  """
  checks.check_choices(STYLES, style=style)
  return tuple(STYLES[style].operations)


def operation_arguments(
  style: str, name: str, magnitude, key: jax.Array, *, height: int, width: int
) -> tuple[jax.Array, ...]:
  """The scalars that an operation gets, float32: one draw of its random sign or place.

  Args:
    style: a key of `STYLES`.
    name: of `operation_names(style)`.
    magnitude: on the scale of the style.
    key: of the draw.
    height: of the frames, in pixels.
    width: of the frames, in pixels.

  Raises:
    ValueError: an unknown style or operation.
  """
  checks.check_choices(operation_names(style), operation=name)
  arguments = _draw_arguments(STYLES[style], magnitude, key, height, width)[name]
  return tuple(jnp.asarray(argument, jnp.float32) for argument in arguments)


def apply_operation(
  style: str, name: str, frames: jax.Array, magnitude, key: jax.Array
) -> jax.Array:
  """One operation on one clip, for sure and without noise on the magnitude.

  Args:
    style: a key of `STYLES`.
    name: of `operation_names(style)`.
    frames: uint8 `[time, height, width, 3]`.
    magnitude: on the scale of the style.
    key: of the random sign or place.

  Returns:
    uint8 `[time, height, width, 3]`.

  Raises:
    ValueError: an unknown style or operation.
  """
  height, width = frames.shape[1:3]
  arguments = operation_arguments(style, name, magnitude, key, height=height, width=width)
  planes = STYLES[style].operations[name](jnp.moveaxis(frames, -1, 1), *arguments)
  return jnp.moveaxis(planes, 1, -1)


def rand_augment(
  planes: jax.Array,
  key: jax.Array,
  *,
  style: str,
  num_operations: int,
  magnitude: float,
  magnitude_std: float = 0.0,
) -> jax.Array:
  """Applies random operations to a clip.

  Args:
    planes: uint8 `[time, 3, height, width]`.
    key: of all draws.
    style: a key of `STYLES`.
    num_operations: how many to draw.
    magnitude: on the scale of the style.
    magnitude_std: of normal noise on the magnitude of each operation, which stays on the scale.

  Returns:
    uint8 `[time, 3, height, width]`.
  """
  kind = STYLES[style]
  first_key, choice_key, key = jax.random.split(key, 3)
  if kind.flips_and_crops:
    planes = _flip_and_crop(planes, magnitude, first_key)
  count = len(kind.operations)
  if kind.repeats:
    choices = jax.random.randint(choice_key, (num_operations,), 0, count)
  else:
    choices = jax.random.permutation(choice_key, count)[:num_operations]

  def apply_one(planes, draw):
    choice, key = draw
    key, noise_key, coin_key = jax.random.split(key, 3)
    # Without noise it stays a number of Python, so that what follows from it is rounded once, as in
    # the references.
    strength = magnitude
    if magnitude_std:
      noise = magnitude_std * jax.random.normal(noise_key)
      strength = jnp.clip(magnitude + noise, 0, kind.largest_magnitude)
    is_applied = jax.random.bernoulli(coin_key, kind.probability)
    return _apply_choice(kind, planes, choice, is_applied, strength, key), None

  # A loop, so that the operations are compiled once.
  draws = (choices, jax.random.split(key, num_operations))
  return jax.lax.scan(apply_one, planes, draws)[0]


def _apply_choice(
  kind: Style, planes: jax.Array, choice, is_applied, magnitude, key: jax.Array
) -> jax.Array:
  """The operation number `choice`; only this one is computed."""
  arguments = _draw_arguments(kind, magnitude, key, *planes.shape[2:])
  longest = max(len(values) for values in arguments.values())
  padded = [(*arguments[name], *[0.0] * longest)[:longest] for name in kind.operations]
  row = jnp.asarray(padded, jnp.float32)[choice]
  # Operations that share a function share its branch, which keeps compilation short.
  sizes = {pixels.identity: 0}
  sizes |= {function: len(arguments[name]) for name, function in kind.operations.items()}
  functions = list(sizes)

  def make_branch(function):
    return lambda planes, row: function(planes, *row[: sizes[function]])

  branch_of = jnp.asarray([functions.index(function) for function in kind.operations.values()])
  branch = jnp.where(is_applied, branch_of[choice], functions.index(pixels.identity))
  return jax.lax.switch(branch, [make_branch(function) for function in functions], planes, row)


def _draw_arguments(kind: Style, magnitude, key: jax.Array, height: int, width: int) -> dict:
  sign_key, position_key = jax.random.split(key)
  sign = jax.random.rademacher(sign_key, (), jnp.float32)
  position = jax.random.uniform(position_key, (2,))
  return kind.arguments(magnitude, sign, position, height, width)


def _flip_and_crop(planes: jax.Array, magnitude: float, key: jax.Array) -> jax.Array:
  flip_key, crop_key = jax.random.split(key)
  planes = jnp.where(jax.random.bernoulli(flip_key), planes[..., ::-1], planes)
  height, width = planes.shape[2:]
  shares = jax.random.uniform(crop_key, (4,), maxval=magnitude / _CROP_REFERENCE_WIDTH)
  sizes = jnp.asarray([height, width, height, width], jnp.float32)
  top, right, bottom, left = jnp.round(sizes * shares).astype(jnp.int32)
  return pixels.crop_and_resize(planes, top, left, height - top - bottom, width - left - right)


def _rotation(angle, height: int, width: int) -> tuple:
  """The warp that turns an image about its middle, clockwise, by an angle in radians."""
  cosine, sine = jnp.cos(angle), jnp.sin(angle)
  x, y = width / 2, height / 2
  return (
    cosine,
    sine,
    x - cosine * x - sine * y,
    -sine,
    cosine,
    y + sine * x - cosine * y,
  )


def _warps(angle, shear, shift, height: int, width: int) -> dict[str, tuple]:
  """Arguments of the warps: radians clockwise, pixels per pixel, share of the side."""
  return {
    "rotate": _rotation(angle, height, width),
    "shear_x": (1.0, shear, 0.0, 0.0, 1.0, 0.0),
    "shear_y": (1.0, 0.0, 0.0, shear, 1.0, 0.0),
    "translate_x": (1.0, 0.0, shift * width, 0.0, 1.0, 0.0),
    "translate_y": (1.0, 0.0, 0.0, 0.0, 1.0, shift * height),
  }


def _without_arguments(*names: str) -> dict[str, tuple]:
  return dict.fromkeys(names, ())


def _enhancements(sign, change) -> dict[str, tuple]:
  # Never below 0.1, which is what the references' scales reach but for rounding.
  factor = jnp.where(sign > 0, 1 + change, jnp.maximum(1 - change, 0.1))
  return dict.fromkeys(("color", "contrast", "brightness", "sharpness"), (factor,))


def _imgaug_arguments(magnitude, sign, position, height: int, width: int) -> dict[str, tuple]:
  share = magnitude / 30
  row, column = position * jnp.asarray([height, width])
  half = share * 20 / 32 * height / 2
  return {
    **_without_arguments("identity", "autocontrast", "equalize", "invert", "blur", "smooth"),
    **_enhancements(sign, 0.9 * share),
    # Shears are given as angles there, of which the hyperbolic tangent is taken.
    **_warps(
      sign * jnp.deg2rad(magnitude),
      -jnp.tanh(sign * 0.3 * share),
      -sign * 0.33 * share,
      height,
      width,
    ),
    "posterize": (8 - jnp.clip(jnp.floor(magnitude * 6 / 30), 0, 6),),
    "solarize": (jnp.clip(256 - jnp.floor(magnitude * 256 / 30), 0, 256),),
    "cutout": (row - half, column - half, row + half, column + half),
  }


def _timm_arguments(magnitude, sign, position, height: int, width: int) -> dict[str, tuple]:
  share = magnitude / 10
  return {
    **_without_arguments("autocontrast", "equalize", "invert"),
    **_enhancements(sign, 0.9 * share),
    **_warps(
      -sign * math.radians(30) * share, sign * 0.3 * share, sign * 0.45 * share, height, width
    ),
    "posterize": (4 - jnp.floor(magnitude * 4 / 10),),
    "solarize": (256 - jnp.minimum(jnp.floor(magnitude * 256 / 10), 256),),
    "solarize_add": (jnp.minimum(jnp.floor(magnitude * 110 / 10), 128),),
  }


_COLOR_OPERATIONS = {
  "autocontrast": pixels.autocontrast,
  "equalize": pixels.equalize,
  "invert": pixels.invert,
  "posterize": pixels.posterize,
  "solarize": pixels.solarize,
  "color": pixels.color,
  "contrast": pixels.contrast,
  "brightness": pixels.brightness,
  "sharpness": pixels.sharpness,
}
_WARPS = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")

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
