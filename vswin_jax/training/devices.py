"""Peak and memory of the devices that a run computes on."""

from collections.abc import Iterable

import jax

from vswin_jax.common.chips import GIB, find_chip


def peak_flops(devices: Iterable[jax.Device]) -> float | None:
  """Returns the peak bfloat16 operations per second of devices together; None: unknown."""
  chips = [find_chip(device.device_kind) for device in devices]
  return None if None in chips else sum(chip.flops for chip in chips)


def peak_memory(devices: Iterable[jax.Device]) -> tuple[int, int] | None:
  """Returns the most bytes that were in use on a device since the start, and its limit.

  Args:
    devices: those of this process are considered; the one with the highest peak counts.

  Returns:
    None: no device of this process counts its bytes, as on CPUs.
  """
  stats = [
    device.memory_stats() for device in devices if device.process_index == jax.process_index()
  ]
  peaks = [
    (found["peak_bytes_in_use"], found["bytes_limit"])
    for found in stats
    if found and {"peak_bytes_in_use", "bytes_limit"} <= found.keys()
  ]
  return max(peaks, default=None)


def describe_memory(memory: tuple[int, int] | None) -> str:
  """Returns the result of `peak_memory` as text."""
  return "-" if memory is None else f"{memory[0] / GIB:.1f} of {memory[1] / GIB:.1f} GiB"
