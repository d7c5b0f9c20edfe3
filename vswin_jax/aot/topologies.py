"""Compilation targets: names of accelerator slices, and published figures of their chips.

Sources: for TPUs Google Cloud's pages docs.cloud.google.com/tpu/docs/v4, v5e, v5p and v6e (peak in
bfloat16, memory bandwidth, interconnect of a chip in both directions, network cards of a host); for
v4's interconnect arXiv 2304.01433 (six links of 50 GB/s), with v5e's network assumed; for the H100
SXM NVIDIA's data sheet (dense bfloat16, NVLink in both directions) and a network card of 400 Gbit/s
for each GPU. Memory is what the compilers report as available.
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
    name: as in names of topologies.
    platform: "tpu" or "cuda".
    memory: bytes that a program may use.
    flops: peak bfloat16 operations per second.
    memory_bandwidth: bytes per second.
    link_bandwidth: bytes per second that one chip can send within its slice, over all links.
    network_bandwidth: bytes per second that one chip can send to other slices: its share of the
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
  def example(self) -> str:
    sizes = "1x2x8" if self.platform == "cuda" else "x".join(["4"] * self.dimensions)
    return f"{self.name}:{sizes}"


CHIPS = {
  chip.name: chip
  for chip in (
    Chip("v4", "tpu", int(30.75 * _GIB), 275e12, 1200e9, 300e9, 3.125e9, 3, 4096, 4, True),
    Chip("v5e", "tpu", int(15.75 * _GIB), 197e12, 819e9, 200e9, 3.125e9, 2, 256, 16),
    Chip("v5p", "tpu", int(95.74 * _GIB), 459e12, 2765e9, 600e9, 6.25e9, 3, 6144, 4, True),
    Chip("v6e", "tpu", int(31.25 * _GIB), 918e12, 1638e9, 400e9, 12.5e9, 2, 256, 16),
    # JAX uses three quarters of a GPU's memory by default.
    Chip("h100", "cuda", int(0.75 * 84942979072), 989e12, 3352e9, 450e9, 50e9, 3, 2**20, 0),
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
    grid = "x".join(map(str, self.grid))
    if self.chip.platform == "cuda":
      hosts = self.slices * self.grid[0]
      return f"{self.num_devices} {self.chip.name.upper()} GPUs ({hosts} x {self.grid[1]})"
    where = f"{self.slices} slices of {grid}" if self.slices > 1 else f"one slice of {grid}"
    return f"{self.num_devices} {self.chip.name} chips ({where})"


def parse_targets(names: str) -> list[Target]:
  """Returns the targets of a comma-separated list of names.

  Raises:
    TargetError: there is no name, or an unknown one.
  """
  targets = [parse_target(name) for name in map(str.strip, names.split(",")) if name]
  if not targets:
    raise TargetError(f"no topology given; use --topology, such as {_EXAMPLES}")
  return targets


def parse_target(name: str) -> Target:
  """Returns the target of a name.

  Args:
    name: a grid (`v5e:8x8`) or a product (`v5e-64`; `v4-128` and `v5p-512` count cores), optionally
      after a number of slices (`2*v5e-256`); for GPUs slices, hosts and GPUs per host
      (`h100:1x1x8`).

  Raises:
    TargetError: the name is unknown, or there is no such slice.
  """
  pattern = r"(?:(?P<slices>\d+)\*)?(?P<chip>[a-z0-9]+)(?::(?P<grid>\d+(?:x\d+)*)|-(?P<count>\d+))"
  parts = re.fullmatch(pattern, name.lower())
  if parts is None:
    raise TargetError(f"unknown topology {name!r}; expected a name such as {_EXAMPLES}")
  kind = {"v5litepod": "v5e", "v5lite": "v5e"}.get(parts["chip"], parts["chip"])
  if kind not in CHIPS:
    raise TargetError(
      f"unknown chip {parts['chip']!r} in topology {name!r}; {closest(kind, CHIPS)}"
    )
  chip, slices = CHIPS[kind], int(parts["slices"] or 1)
  if parts["count"] and chip.platform == "tpu":
    grid = _product_grid(name, chip, int(parts["count"]))
  else:
    grid = tuple(map(int, (parts["grid"] or parts["count"]).split("x")))
  if len(grid) != chip.dimensions or 0 in (slices, *grid):
    sizes = "slices x hosts x GPUs per host" if chip.platform == "cuda" else "chips along each axis"
    raise TargetError(
      f"topology {name!r}: expected {chip.dimensions} positive sizes ({sizes}) and a positive "
      f"number of slices, such as {chip.example} or 2*{chip.example}"
    )
  if chip.platform == "cuda":
    slices, grid = slices * grid[0], grid[1:]
    if grid[1] > _GPUS_PER_HOST:
      raise TargetError(
        f"topology {name!r} has {grid[1]} GPUs per host; the maximum is {_GPUS_PER_HOST}, such as "
        f"{chip.example}"
      )
  target = Target(name, chip, grid, slices)
  if target.slice_size > chip.largest_slice:
    raise TargetError(
      f"topology {name!r} has {target.slice_size} chips in a slice; the maximum of {chip.name} is "
      f"{chip.largest_slice}; use several slices, such as 4*{chip.name}:..."
    )
  if chip.platform == "tpu" and target.slice_size > 1 and (grid[0] % 2 or grid[1] % 2):
    raise TargetError(
      f"topology {name!r} does not exist: the first two axes of a slice must be even, or it must "
      "be one chip"
    )
  return target


def _product_grid(name: str, chip: Chip, number: int) -> tuple[int, ...]:
  """Returns the grid of a TPU product: powers of two, as equal as possible, the smaller first."""
  cores = 2 if chip.cores_in_name else 1
  power = max(number // cores, 1).bit_length() - 1
  if number != cores * 2**power or power == 1:
    unit = "cores, two to a chip" if chip.cores_in_name else "chips"
    raise TargetError(
      f"unknown topology {name!r}: products of {chip.name} are named by a power of two of {unit}; "
      f"use the grid instead, such as {chip.example}"
    )
  if power == 2 and chip.dimensions == 3:
    return (2, 2, 1)
  powers = [(power + axis) // chip.dimensions for axis in range(chip.dimensions)]
  return tuple(2**power for power in sorted(powers))
