"""Chips and their published figures.

Sources: for TPUs Google Cloud's pages docs.cloud.google.com/tpu/docs/v4, v5e, v5p and v6e (peak in
bfloat16, memory bandwidth, interconnect of a chip in both directions, network cards of a host); for
v4's interconnect arXiv 2304.01433 (six links of 50 GB/s), with v5e's network assumed; for GPUs
NVIDIA's data sheets of the SXM modules (dense bfloat16, NVLink in both directions) and a network
card of 400 Gbit/s (A100: 200) for each GPU. Memory is what the compilers report as available, and
for the H200 that of the data sheet.
"""

import dataclasses

GIB = 2**30


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
    device_kinds: names that `jax.Device.device_kind` has for it; a device is a whole chip.
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
  device_kinds: tuple[str, ...] = ()


_A100S = (
  "NVIDIA A100-SXM4-80GB", "NVIDIA A100-SXM4-40GB", "NVIDIA A100 80GB PCIe", "NVIDIA A100-PCIE-40GB"
)  # fmt: skip

CHIPS = {
  chip.name: chip
  for chip in (
    Chip(
      "v4", "tpu", int(30.75 * GIB), 275e12, 1200e9, 300e9, 3.125e9, 3, 4096, 4, True,
      device_kinds=("TPU v4",),
    ),
    Chip(
      "v5e", "tpu", int(15.75 * GIB), 197e12, 819e9, 200e9, 3.125e9, 2, 256, 16,
      device_kinds=("TPU v5 lite", "TPU v5e"),
    ),
    Chip(
      "v5p", "tpu", int(95.74 * GIB), 459e12, 2765e9, 600e9, 6.25e9, 3, 6144, 4, True,
      device_kinds=("TPU v5", "TPU v5p"),
    ),
    Chip(
      "v6e", "tpu", int(31.25 * GIB), 918e12, 1638e9, 400e9, 12.5e9, 2, 256, 16,
      device_kinds=("TPU v6 lite", "TPU v6e"),
    ),
    # JAX uses three quarters of a GPU's memory by default.
    Chip(
      "a100", "cuda", int(0.75 * 85100068864), 312e12, 2039e9, 300e9, 25e9, 3, 2**20, 0,
      device_kinds=_A100S,
    ),
    Chip(
      "h100", "cuda", int(0.75 * 84942979072), 989e12, 3352e9, 450e9, 50e9, 3, 2**20, 0,
      device_kinds=("NVIDIA H100 80GB HBM3",),
    ),
    Chip(
      "h200", "cuda", int(0.75 * 141e9), 989e12, 4800e9, 450e9, 50e9, 3, 2**20, 0,
      device_kinds=("NVIDIA H200",),
    ),
  )
}  # fmt: skip


def find_chip(device_kind: str) -> Chip | None:
  """Returns the chip that a `jax.Device.device_kind` names; None if it is not in `CHIPS`."""
  return next((chip for chip in CHIPS.values() if device_kind in chip.device_kinds), None)
