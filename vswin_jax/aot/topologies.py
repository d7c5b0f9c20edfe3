"""Names of machines to compile for, and the published figures of their chips.

Sources: for TPUs Google Cloud's pages docs.cloud.google.com/tpu/docs/v4, v5e, v5p and v6e (peak in
bfloat16, memory bandwidth, interconnect of a chip in both directions, network cards of a host), of
v4 the interconnect from arXiv 2304.01433 (six links of 50 GB/s), its network taken to be v5e's; for
the H100 SXM NVIDIA's data sheet (dense bfloat16, NVLink in both directions) and a network card of
400 Gbit/s for each. Memory is what the compilers say there is.
"""

import dataclasses
import math
import re

from vswin_jax.common.checks import closest

_GIB = 2**30
_EXAMPLES = "v5e:8x8, v5e-64, v4-128, v5p:4x4x4, v6e-64, 2*v5e:16x16, h100:1x1x8"


class TargetError(ValueError):
  """A machine that can't be compiled for; one line says what to give."""


@dataclasses.dataclass(frozen=True)
class Chip:
  """A chip by its published figures.

  Attributes:
    name: as in names of topologies.
    platform: "tpu" or "cuda".
    memory: bytes that a program may use.
    flops: peak bfloat16 operations a second.
    memory_bandwidth: bytes a second.
    link_bandwidth: bytes a second that one chip can send to others of its slice, over all links.
    wraps: a slice of which every axis is a multiple of this many chips has its ends joined; 0:
      chips are joined by switches, and use all links in any slice.
    network_bandwidth: bytes a second that one chip can send to other slices: its share of the
      network cards of its host.
    dimensions: of the grid of a slice.
    largest_slice: chips.
    cores_in_name: the number in a product's name (`v4-128`) counts cores, two to a chip.
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


CHIPS = {
  chip.name: chip
  for chip in (
    Chip("v4", "tpu", int(30.75 * _GIB), 275e12, 1200e9, 300e9, 3.125e9, 3, 4096, 4, True),
    Chip("v5e", "tpu", int(15.75 * _GIB), 197e12, 819e9, 200e9, 3.125e9, 2, 256, 16),
    Chip("v5p", "tpu", int(95.74 * _GIB), 459e12, 2765e9, 600e9, 6.25e9, 3, 6144, 4, True),
    Chip("v6e", "tpu", int(31.25 * _GIB), 918e12, 1638e9, 400e9, 12.5e9, 2, 256, 16),
    # JAX takes three quarters of a GPU's memory unless told otherwise.
    Chip("h100", "cuda", int(0.75 * 84942979072), 989e12, 3352e9, 450e9, 50e9, 3, 2**20, 0),
  )
}


@dataclasses.dataclass(frozen=True)
class Target:
  """One or several slices of chips.

  Attributes:
    name: as it was given.
    grid: chips of a slice along its axes; of GPUs, hosts and GPUs of a host.
    slices: joined by a slower network than the chips of a slice.
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
    """Bytes a second that the chip with the fewest links can send in its slice: one at a corner
    where ends are not joined."""
    if not self.chip.wraps:
      return self.chip.link_bandwidth
    joined = not any(size % self.chip.wraps for size in self.grid)
    links = sum(2 if joined else 1 for size in self.grid if size > 1)
    return self.chip.link_bandwidth * links / (2 * self.chip.dimensions)

  def describe(self) -> str:
    grid = "x".join(map(str, self.grid))
    if self.chip.platform == "cuda":
      hosts = self.slices * self.grid[0]
      return f"{self.num_devices} {self.chip.name.upper()} GPUs ({hosts} x {self.grid[1]})"
    where = f"{self.slices} slices of {grid}" if self.slices > 1 else f"one slice of {grid}"
    return f"{self.num_devices} {self.chip.name} chips ({where})"


def parse_targets(names: str) -> list[Target]:
  """Targets from names with commas between them.

  Raises:
    TargetError: no name, or one that is unknown.
  """
  found = [parse_target(name) for name in map(str.strip, names.split(",")) if name]
  if not found:
    raise TargetError(f"no topology is named; give --topology, such as {_EXAMPLES}")
  return found


def parse_target(name: str) -> Target:
  """A target from its name: a grid (`v5e:8x8`), a product (`v5e-64`; of v4 and v5p in cores:
  `v4-128`), either with a number of slices before it (`2*v5e-256`), or slices, hosts and GPUs
  (`h100:1x1x8`).

  Raises:
    TargetError: an unknown name, or a slice that is not made.
  """
  pattern = r"(?:(?P<slices>\d+)\*)?(?P<chip>[a-z0-9]+)(?::(?P<grid>\d+(?:x\d+)*)|-(?P<count>\d+))"
  parts = re.fullmatch(pattern, name.lower())
  if parts is None:
    raise TargetError(f"unknown topology {name!r}; expected such as {_EXAMPLES}")
  kind = {"v5litepod": "v5e", "v5lite": "v5e"}.get(parts["chip"], parts["chip"])
  if kind not in CHIPS:
    raise TargetError(
      f"unknown chip {parts['chip']!r} in topology {name!r}; {closest(kind, CHIPS)}"
    )
  chip = CHIPS[kind]
  slices = int(parts["slices"] or 1)
  if parts["grid"]:
    grid = tuple(map(int, parts["grid"].split("x")))
  else:
    grid = _grid_of_product(name, chip, int(parts["count"]))
  if chip.platform == "cuda":
    return _gpu_target(name, chip, grid, slices, is_product=bool(parts["count"]))
  if slices < 1:
    raise TargetError(f"topology {name!r} has no slices; there is one at least, as 1*v5e:8x8")
  if 0 in grid or len(grid) != chip.dimensions:
    raise TargetError(
      f"topology {name!r}: a slice of {chip.name} has {chip.dimensions} axes, such as "
      f"{chip.name}:{'x'.join(['4'] * chip.dimensions)}"
    )
  target = Target(name, chip, grid, slices)
  if target.slice_size > chip.largest_slice:
    raise TargetError(
      f"topology {name!r} has {target.slice_size} chips; a slice of {chip.name} has "
      f"{chip.largest_slice} at most, more are several slices: 4*{chip.name}:..."
    )
  if not _hosts_fill(grid):
    raise TargetError(
      f"topology {name!r} is no slice that is made: its first two axes must be even, or it must "
      "be one chip"
    )
  return target


def chips_per_host(target: Target) -> tuple[int, int, int]:
  """Bounds of a TPU host in the grid of its slice."""
  return {(1, 1): (1, 1, 1), (1, 1, 1): (1, 1, 1), (2, 4): (2, 4, 1)}.get(target.grid, (2, 2, 1))


def _gpu_target(name, chip, grid, slices, is_product) -> Target:
  if is_product:
    number = math.prod(grid)
    grid = (1, number // 8, 8) if number > 8 and number % 8 == 0 else (1, 1, number)
  if len(grid) != 3 or 0 in grid or slices < 1:
    raise TargetError(
      f"topology {name!r}: GPUs are slices x hosts x GPUs of a host, such as {chip.name}:1x2x8"
    )
  if grid[2] > 8:
    raise TargetError(
      f"topology {name!r} has a host of {grid[2]} GPUs; a host has 8 at most, and several have 8 "
      f"each, such as {chip.name}-16 or {chip.name}:1x2x8"
    )
  return Target(name, chip, grid[1:], slices * grid[0])


def _hosts_fill(grid: tuple[int, ...]) -> bool:
  return math.prod(grid) == 1 or not (grid[0] % 2 or grid[1] % 2)


def _grid_of_product(name: str, chip: Chip, number: int) -> tuple[int, ...]:
  """The grid of a product: powers of two, as equal as can be, the smaller first."""
  count = number // 2 if chip.cores_in_name else number
  if chip.platform == "cuda":
    return (number,)
  power = max(count, 1).bit_length() - 1
  if count != 2**power or power == 1 or number != (2 * count if chip.cores_in_name else count):
    unit = "cores, two to a chip" if chip.cores_in_name else "chips"
    raise TargetError(
      f"unknown topology {name!r}: products of {chip.name} are named by a power of two of {unit}; "
      f"give the grid instead, such as {chip.name}:{'x'.join(['4'] * chip.dimensions)}"
    )
  if power == 2 and chip.dimensions == 3:
    return (2, 2, 1)
  parts = [(power + axis) // chip.dimensions for axis in range(chip.dimensions)]
  return tuple(2**part for part in sorted(parts))
