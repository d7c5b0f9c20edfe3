"""Compilation targets: names of accelerator slices, their devices and links."""

import dataclasses
import math
import re

from vswin_jax.common.checks import closest
from vswin_jax.common.chips import CHIPS, Chip

_EXAMPLES = "v5e:8x8, v5e-64, v4-128, v5p:4x4x4, v6e-64, 2*v5e:16x16, h100:1x1x8"
_GPUS_PER_HOST = 8


class TargetError(ValueError):
  """Raised when a target is unknown or can't be compiled for; the message is one line."""


@dataclasses.dataclass(frozen=True)
class Target:
  """One or several slices of chips to compile for.

  Attributes:
    name: as given by the user.
    grid: chips of a slice along its axes; for GPUs, hosts and GPUs per host.
    slices: number of slices, which a slower network joins.
  """

  name: str
  chip: Chip
  grid: tuple[int, ...]
  slices: int = 1

  @property
  def slice_size(self) -> int:
    return math.prod(self.grid)

  @property
  def num_devices(self) -> int:
    return self.slices * self.slice_size

  @property
  def link_bandwidth(self) -> float:
    """Bytes per second that the chip with the fewest links can send within its slice: one at a
    corner if there are no wraparound links."""
    if not self.chip.wraps:
      return self.chip.link_bandwidth
    wraps = not any(size % self.chip.wraps for size in self.grid)
    links = sum(2 if wraps else 1 for size in self.grid if size > 1)
    return self.chip.link_bandwidth * links / (2 * self.chip.dimensions)

  def describe(self) -> str:
    slices = "1 slice" if self.slices == 1 else f"{self.slices} slices"
    grid = "x".join(map(str, self.grid))
    return f"{self.num_devices} {self.chip.name} chips ({slices} of {grid})"


def parse_target(name: str) -> Target:
  """Returns the target of a name.

  Args:
    name: a grid (`v5e:8x8`) or a product (`v5e-64`; `v4-128` and `v5p-512` count cores), optionally
      after a number of slices (`2*v5e-256`); for GPUs slices, hosts and GPUs per host
      (`h100:1x1x8`).

  Raises:
    TargetError: the name is unknown, or there is no such slice.
  """
  number = r"[1-9]\d*"
  parts = re.fullmatch(
    rf"(?:({number})\*)?([a-z0-9]+)(?::({number}(?:x{number})*)|-({number}))", name.lower()
  )
  if parts is None:
    raise TargetError(f"unknown topology {name!r}; expected a name such as {_EXAMPLES}")
  slices, kind, sizes, count = parts.groups()
  kind = {"v5litepod": "v5e", "v5lite": "v5e"}.get(kind, kind)
  if kind not in CHIPS:
    raise TargetError(f"unknown chip {kind!r} in topology {name!r}; {closest(kind, CHIPS)}")
  chip, slices = CHIPS[kind], int(slices or 1)
  grid = tuple(map(int, sizes.split("x"))) if sizes else _product_grid(chip, int(count))
  exists = len(grid) == chip.dimensions
  if exists and chip.platform == "cuda":
    slices, grid = slices * grid[0], grid[1:]
    exists = grid[1] <= _GPUS_PER_HOST
  elif exists and math.prod(grid) > 1:
    exists = grid[0] % 2 == grid[1] % 2 == 0
  if not exists or math.prod(grid) > chip.largest_slice:
    raise TargetError(f"topology {name!r} does not exist; expected {_existing_slices(chip)}")
  return Target(name, chip, grid, slices)


def _product_grid(chip: Chip, count: int) -> tuple[int, ...]:
  """Returns the grid of a TPU product: powers of two, as equal as possible, the smaller first.

  It is empty if there is no such product.
  """
  cores = 2 if chip.cores_in_name else 1
  power = max(count // cores, 1).bit_length() - 1
  if chip.platform == "cuda" or count != cores * 2**power:
    return ()
  if power == 2 and chip.dimensions == 3:
    return (2, 2, 1)
  return tuple(2 ** ((power + axis) // chip.dimensions) for axis in range(chip.dimensions))


def _existing_slices(chip: Chip) -> str:
  """Returns the names of existing slices, for messages."""
  if chip.platform == "cuda":
    return f"{chip.name}:SLICESxHOSTSxGPUS, at most {_GPUS_PER_HOST} GPUs per host"
  axes = "x".join("XYZ"[: chip.dimensions])
  unit = "cores, two to a chip" if chip.cores_in_name else "chips"
  return (
    f"{chip.name}:{axes} with even X and Y, or {chip.name}-N with a power of two of {unit}, at "
    f"most {chip.largest_slice} chips in a slice; several slices: 2*{chip.name}:{axes}"
  )
