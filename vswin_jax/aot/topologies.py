"""Compilation targets: names of accelerator slices, and published figures of their chips.

Sources: for TPUs Google Cloud's pages docs.cloud.google.com/tpu/docs/v4, v5e, v5p and v6e (peak in
bfloat16, memory bandwidth, interconnect of a chip in both directions, network cards of a host); for
v4's interconnect arXiv 2304.01433 (six links of 50 GB/s), with v5e's network assumed; for the H100
SXM and the A100 SXM of 80 GB NVIDIA's data sheets (dense bfloat16, NVLink in both directions) and a
network card of 400 or 200 Gbit/s for each GPU. Memory is what the compilers report as available.
"""

import dataclasses
import math
import re

from vswin_jax.common.checks import closest

_GIB = 2**30
_EXAMPLES = "v5e:8x8, v5e-64, v4-128, v5p:4x4x4, v6e-64, 2*v5e:16x16, h100:1x1x8"
_GPUS_PER_HOST = 8


class TargetError(ValueError):
  """Raised when a target is unknown or can't be compiled for; the message is one line."""


@dataclasses.dataclass(frozen=True)
class Chip:
  """A chip and its published figures.

  Attributes:
    platform: "tpu" or "cuda".
    memory: bytes that a program may use.
    flops: peak bfloat16 operations per second.
    memory_bandwidth: bytes per second.
    link_bandwidth: bytes per second that a chip can send within its slice, over all links.
    network_bandwidth: bytes per second that a chip can send to other slices, its share of the
      network cards of its host.
    dimensions: number of sizes in the name of a topology.
    largest_slice: maximum number of chips of a slice.
    wraps: a slice has wraparound links if the size of each axis is a multiple of this; 0: chips are
      joined by switches and use all links in any slice.
    cores_in_name: whether product names (`v4-128`) count cores, two per chip.
  """

  name: str
  platform: str
  memory: int
  flops: float
  memory_bandwidth: float
  link_bandwidth: float
  network_bandwidth: float
  dimensions: int
  largest_slice: int
  wraps: int
  cores_in_name: bool = False

  @property
  def expected(self) -> str:
    """Names of existing slices, for messages."""
    if self.platform == "cuda":
      return f"{self.name}:SLICESxHOSTSxGPUS, at most {_GPUS_PER_HOST} GPUs per host"
    axes = "x".join("XYZ"[: self.dimensions])
    unit = "cores, two to a chip" if self.cores_in_name else "chips"
    return (
      f"{self.name}:{axes} with even X and Y, or {self.name}-N with a power of two of {unit}, at "
      f"most {self.largest_slice} chips in a slice; several slices: 2*{self.name}:{axes}"
    )


CHIPS = {
  chip.name: chip
  for chip in (
    Chip("v4", "tpu", int(30.75 * _GIB), 275e12, 1200e9, 300e9, 3.125e9, 3, 4096, 4, True),
    Chip("v5e", "tpu", int(15.75 * _GIB), 197e12, 819e9, 200e9, 3.125e9, 2, 256, 16),
    Chip("v5p", "tpu", int(95.74 * _GIB), 459e12, 2765e9, 600e9, 6.25e9, 3, 6144, 4, True),
    Chip("v6e", "tpu", int(31.25 * _GIB), 918e12, 1638e9, 400e9, 12.5e9, 2, 256, 16),
    # JAX uses three quarters of a GPU's memory by default.
    Chip("h100", "cuda", int(0.75 * 84942979072), 989e12, 3352e9, 450e9, 50e9, 3, 2**20, 0),
    Chip("a100", "cuda", int(0.75 * 85100068864), 312e12, 2039e9, 300e9, 25e9, 3, 2**20, 0),
  )
}


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
    raise TargetError(f"topology {name!r} does not exist; expected {chip.expected}")
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
