"""How long a step takes at least, from the compiler's counts and a chip's published peaks.

Nothing here is measured. A real step is longer: no program reaches the peaks, and a network has
latency, which large numbers of small messages show. The two ends given are those of what
collectives do beside the computation: all of them hidden behind it, or none.
"""

import dataclasses
from collections.abc import Iterable

from vswin_jax.pods.program import Collective
from vswin_jax.pods.targets import Chip


@dataclasses.dataclass(frozen=True)
class Estimate:
  """Seconds of one step on one device, each at the peak of one part of the machine.

  Attributes:
    compute: all operations at the peak of bfloat16.
    memory: all bytes read and written at the bandwidth of the device's memory.
    links: what the device sends within its slice, over all of its links.
    network: what it sends to other slices.
  """

  compute: float
  memory: float
  links: float
  network: float

  @property
  def alone(self) -> float:
    """Without collectives: what binds of computation and memory."""
    return max(self.compute, self.memory)

  @property
  def overlapped(self) -> float:
    """With every collective hidden as far as it can be."""
    return max(self.alone, self.links, self.network)

  @property
  def in_turn(self) -> float:
    """With nothing else going on during a collective."""
    return self.alone + self.links + self.network

  @property
  def efficiencies(self) -> tuple[float, float]:
    """Predicted scaling efficiency, a step without collectives to one with them: when nothing is
    hidden, and when all is."""
    return self.alone / self.in_turn, self.alone / self.overlapped


def estimate(
  chip: Chip, flops: float, bytes_accessed: float, collectives: Iterable[Collective]
) -> Estimate:
  """Args:
  flops: of a step on one device; likewise `bytes_accessed`.
  """
  collectives = list(collectives)
  between = sum(one.wire_bytes for one in collectives if one.across_slices)
  within = sum(one.wire_bytes for one in collectives if not one.across_slices)
  return Estimate(
    compute=flops / chip.flops,
    memory=bytes_accessed / chip.memory_bandwidth,
    links=within / chip.link_bandwidth,
    network=between / chip.network_bandwidth,
  )
