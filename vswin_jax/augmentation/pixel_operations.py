"""Pixel operations on a clip, equal to those of Pillow on each frame.

All take and return uint8 planes `[time, 3, height, width]` (RGB): the long axes are last, as
accelerators prefer. Further arguments are scalars or scalar arrays for all frames; statistics
(histograms, means) are those of each frame. `autocontrast` and the warps differ from Pillow as
documented there.
"""

import jax
import jax.numpy as jnp

# Color beyond the border and in filled boxes.
FILL = 128

# Fixed-point digits of `cv2.resize`, and of coordinates in Pillow.
_RESIZE_BITS = 11
_WARP_BITS = 16


def identity(planes: jax.Array) -> jax.Array:
  return planes


def invert(planes: jax.Array) -> jax.Array:
  return 255 - planes


def solarize(planes: jax.Array, threshold) -> jax.Array:
  """Inverts values of at least `threshold` (0-256)."""
  return jnp.where(planes.astype(jnp.int32) < _integer(threshold), planes, 255 - planes)


def solarize_add(planes: jax.Array, addend) -> jax.Array:
  """Adds `addend` to values below 128."""
  raised = jnp.minimum(planes.astype(jnp.int32) + _integer(addend), 255)
  return jnp.where(planes < 128, raised.astype(jnp.uint8), planes)


def posterize(planes: jax.Array, bits) -> jax.Array:
  """Keeps the upper `bits` (0-8) of each value."""
  dropped = 8 - _integer(bits)
  return ((planes.astype(jnp.int32) >> dropped) << dropped).astype(jnp.uint8)


def autocontrast(planes: jax.Array) -> jax.Array:
  """Stretches the range of every color of every frame to 0-255, rounding down.

  Where the quotient is a whole number, Pillow's float arithmetic sometimes returns one less (in
  0.4 % of all combinations of value and range).
  """
  darkest = planes.min((2, 3), keepdims=True).astype(jnp.int32)
  spread = planes.max((2, 3), keepdims=True).astype(jnp.int32) - darkest
  stretched = (planes.astype(jnp.int32) - darkest) * 255 // jnp.maximum(spread, 1)
  return jnp.where(spread > 0, stretched.astype(jnp.uint8), planes)


def equalize(planes: jax.Array) -> jax.Array:
  """Equalizes the histogram of every color of every frame."""
  # One after the other: the one-hot half bytes of a frame take thirty times its memory.
  return jax.lax.map(_equalize_frame, planes)


def color(planes: jax.Array, factor) -> jax.Array:
  """Adjusts saturation: interpolates between the gray frame (factor 0) and the frame (factor 1)."""
  return _blend(_luminance(planes)[:, None], planes, factor)


def contrast(planes: jax.Array, factor) -> jax.Array:
  """Adjusts contrast: interpolates between each frame's mean gray (factor 0) and the frame (1)."""
  gray = _luminance(planes)
  pixels = gray.shape[1] * gray.shape[2]
  total = gray.sum((1, 2), keepdims=True)
  mean = total // pixels + (2 * (total % pixels) >= pixels)
  return _blend(mean[:, None], planes, factor)


def brightness(planes: jax.Array, factor) -> jax.Array:
  """Adjusts brightness: interpolates between black (factor 0) and the frame (factor 1)."""
  return _blend(jnp.zeros((), jnp.int32), planes, factor)


def sharpness(planes: jax.Array, factor) -> jax.Array:
  """Adjusts sharpness: interpolates between the smoothed frame (factor 0) and the frame (1)."""
  return _blend(smooth(planes), planes, factor)


def smooth(planes: jax.Array) -> jax.Array:
  """Applies a 3x3 mean with weight 5 at the center, except at the border."""
  if min(planes.shape[2:]) < 3:
    return planes
  values = planes.astype(jnp.int32)
  total = _box_sum(values, 3) + 4 * values[:, :, 1:-1, 1:-1]
  return planes.at[:, :, 1:-1, 1:-1].set(((2 * total + 13) // 26).astype(jnp.uint8))


def blur(planes: jax.Array) -> jax.Array:
  """Applies a mean over the outline of a 5x5 box, except at the border."""
  if min(planes.shape[2:]) < 5:
    return planes
  values = planes.astype(jnp.int32)
  total = _box_sum(values, 5) - _box_sum(values, 3)[:, :, 1:-1, 1:-1]
  return planes.at[:, :, 2:-2, 2:-2].set(((total + 8) >> 4).astype(jnp.uint8))


def fill_box(planes: jax.Array, top, left, bottom, right) -> jax.Array:
  """Fills a box with gray: rows `top` to `bottom` (exclusive) and columns `left` to `right`."""
  height, width = planes.shape[2:]
  inside = box_mask((top, left, bottom, right), height, width)
  return jnp.where(inside, jnp.uint8(FILL), planes)


def box_mask(box, height: int, width: int) -> jax.Array:
  """Returns a boolean mask `[height, width]` of a box (top, left, bottom, right), ends excluded."""
  top, left, bottom, right = (_integer(side) for side in box)
  rows, columns = jnp.arange(height)[:, None], jnp.arange(width)
  return (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)


def warp_nearest(planes: jax.Array, a, b, c, d, e, f) -> jax.Array:
  """Maps (x, y) to the nearest pixel of (a x + b y + c, d x + e y + f).

  Coordinates are in pixels from the top left corner. Like Pillow, it computes with 16 fractional
  bits; Pillow's coefficients may differ in the last bit.
  """
  height, width = planes.shape[2:]

  def fixed(value) -> jax.Array:
    return _integer(jnp.floor(value * (1 << _WARP_BITS) + 0.5))

  rows, columns = jnp.arange(height)[:, None], jnp.arange(width)
  x = fixed(c + 0.5 * a + 0.5 * b) + rows * fixed(b) + columns * fixed(a)
  y = fixed(f + 0.5 * d + 0.5 * e) + rows * fixed(e) + columns * fixed(d)
  x, y = x >> _WARP_BITS, y >> _WARP_BITS
  inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
  return jnp.where(inside, _pick(_pixel_rows(planes), x, y, planes.shape), jnp.uint8(FILL))


def warp_bicubic(planes: jax.Array, a, b, c, d, e, f) -> jax.Array:
  """`warp_nearest` with bicubic interpolation, rounded down.

  Computed in float32, where Pillow uses float64; some values differ by one.
  """
  height, width = planes.shape[2:]
  rows, columns = jnp.arange(height)[:, None] + 0.5, jnp.arange(width) + 0.5
  x = a * columns + b * rows + c
  y = d * columns + e * rows + f
  inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
  left, top = jnp.floor(x - 0.5), jnp.floor(y - 0.5)
  x_share, y_share = x - 0.5 - left, y - 0.5 - top
  left, top = _integer(left), _integer(top)
  pixels = _pixel_rows(planes)

  def along_row(row) -> jax.Array:
    row = jnp.clip(row, 0, height - 1)
    taps = [jnp.clip(left + shift, 0, width - 1) for shift in (-1, 0, 1, 2)]
    return _cubic(*(_pick(pixels, tap, row, planes.shape) for tap in taps), x_share)

  value = _cubic(*(along_row(top + shift) for shift in (-1, 0, 1, 2)), y_share)
  value = jnp.clip(value, 0, 255).astype(jnp.uint8)
  return jnp.where(inside, value, jnp.uint8(FILL))


def crop_and_resize(planes: jax.Array, top, left, height, width) -> jax.Array:
  """Resizes a box to the size of the frame, bilinearly, in the fixed-point arithmetic of OpenCV.

  The box is in whole pixels and within the frame. A few values differ by one from OpenCV's
  vectorized code.
  """
  first, second, weight = _linear_taps(width, planes.shape[3])
  sources = jnp.arange(planes.shape[3])[:, None] - left
  one = 1 << _RESIZE_BITS
  weights = jnp.where(sources == first, one - weight, 0) + jnp.where(sources == second, weight, 0)
  # Integers below 2 ** 24 are exact in float32.
  across = jnp.einsum(
    "tchw,wv->tchv",
    planes.astype(jnp.float32),
    weights.astype(jnp.float32),
    precision=jax.lax.Precision.HIGHEST,
  ).astype(jnp.int32)
  first, second, weight = _linear_taps(height, planes.shape[2])
  upper, lower = (jnp.take(across, top + row, axis=2) >> 4 for row in (first, second))
  weight = weight[:, None]
  total = ((upper * (one - weight)) >> 16) + ((lower * weight) >> 16)
  return ((total + 2) >> 2).astype(jnp.uint8)


def _integer(value) -> jax.Array:
  return jnp.asarray(value).astype(jnp.int32)


def _luminance(planes: jax.Array) -> jax.Array:
  """Returns int32 `[time, height, width]`, as Pillow converts to mode L."""
  red, green, blue = (planes[:, index].astype(jnp.int32) for index in range(3))
  return (19595 * red + 38470 * green + 7471 * blue + (1 << 15)) >> 16


def _blend(start: jax.Array, end: jax.Array, factor) -> jax.Array:
  """Returns start + factor * (end - start) in float32, rounded down, for integers 0-255."""
  start = start.astype(jnp.float32)
  change = end.astype(jnp.float32) - start
  factor = jnp.asarray(factor, jnp.float32)
  # Products with half of the bits are exact, so a fused multiply-add can't change the result.
  bits = jax.lax.bitcast_convert_type(factor, jnp.uint32)
  upper = jax.lax.bitcast_convert_type(bits & jnp.uint32(0xFFFFF000), jnp.float32)
  value = start + (change * upper + change * (factor - upper))
  return jnp.clip(value, 0, 255).astype(jnp.uint8)


def _equalize_frame(planes: jax.Array) -> jax.Array:
  colors, height, width = planes.shape
  values = planes.reshape(colors, height * width)
  # Histograms and look-ups are matrix products over half bytes, fast on every accelerator.
  high = jax.nn.one_hot(values >> 4, 16, dtype=jnp.bfloat16)
  low = jax.nn.one_hot(values & 15, 16, dtype=jnp.bfloat16)
  counts = jnp.einsum("cni,cnj->cij", high, low, preferred_element_type=jnp.float32)
  counts = counts.reshape(colors, 256).astype(jnp.int32)
  brightest = values.max(-1, keepdims=True).astype(jnp.int32)
  ignored = jnp.take_along_axis(counts, brightest, axis=-1)
  step = (height * width - ignored) // 255
  darker = jnp.cumsum(counts, -1) - counts
  table = jnp.minimum((step // 2 + darker) // jnp.maximum(step, 1), 255)
  table = table.reshape(colors, 16, 16).astype(jnp.bfloat16)
  rows = jnp.einsum("cni,cij->cnj", high, table, preferred_element_type=jnp.bfloat16)
  looked_up = (rows * low).sum(-1).astype(jnp.uint8)
  return jnp.where(step > 0, looked_up, values).reshape(planes.shape)


def _box_sum(values: jax.Array, size: int) -> jax.Array:
  """Returns the sums over all `size` x `size` boxes within the frame."""
  height, width = (side - size + 1 for side in values.shape[2:])
  rows = sum(values[:, :, shift : shift + height] for shift in range(size))
  return sum(rows[..., shift : shift + width] for shift in range(size))


def _pixel_rows(planes: jax.Array) -> jax.Array:
  """Returns `[height * width, time * 3]`, one contiguous row per pixel for gathers."""
  return planes.reshape(-1, planes.shape[2] * planes.shape[3]).T


def _pick(pixels: jax.Array, x: jax.Array, y: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Returns planes of `shape` from the `_pixel_rows` at (x, y), clamped to the frame."""
  height, width = shape[2:]
  index = jnp.clip(y, 0, height - 1) * width + jnp.clip(x, 0, width - 1)
  return pixels[index.reshape(-1)].T.reshape(shape)


def _cubic(before, first, second, after, share) -> jax.Array:
  """Interpolates between `first` and `second` in the order of operations of Pillow."""
  before, first, second, after = (x.astype(jnp.float32) for x in (before, first, second, after))
  square = 2 * (before - first) + second - after
  cube = -before + first - second + after
  return first + share * (-before + second + share * (square + share * cube))


def _linear_taps(size, resized: int) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns two neighbors among `size` for each of `resized` places, and weights of the second."""
  # Twice the place times `resized`, which is an integer.
  place = (2 * jnp.arange(resized) + 1) * size - resized
  first = jnp.floor_divide(place, 2 * resized)
  share = (place - first * 2 * resized) / (2 * resized)
  weight = _integer(jnp.round(share * (1 << _RESIZE_BITS)))
  weight = jnp.where((first < 0) | (first >= size - 1), 0, weight)
  first = jnp.clip(first, 0, size - 1)
  return first, jnp.minimum(first + 1, size - 1), weight
