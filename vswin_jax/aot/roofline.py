"""How long a step may take, from the compiler's counts and a chip's published peaks.

Nothing here is measured. Only the time of computing at the peak can't be undercut; bytes count
whether or not they stay in faster memory, so their time is an estimate that may be far too long. A
real step takes longer than computing does: no program reaches the peak, and a network has latency,
which large numbers of small messages show. The two ends given are those of what collectives do
beside the computation: all of them hidden behind it, or none.
"""

import dataclasses
from collections.abc import Iterable

from vswin_jax.aot.hlo import Collective
from vswin_jax.aot.topologies import Target


@dataclasses.dataclass(frozen=True)
class Estimate:
  """Seconds of one step on one device, each at the peak of one part of the machine; `compute` is a
  bound, the others are estimates. What follows from a time that is not known is None too.

  Attributes:
    compute: all operations at the peak of bfloat16.
    memory: all bytes read and written at the bandwidth of the device's memory; None: not known.
    links: what the device sends within its slice, over as many links as every chip has; None: not
      known, and neither is `network`.
    network: what it sends to other slices.
  """

  compute: float
  memory: float | None
  links: float | None
  network: float | None

  @property
  def alone(self) -> float | None:
    """Without collectives: what binds of computation and memory."""
    return None if self.memory is None else max(self.compute, self.memory)

  @property
  def overlapped(self) -> float | None:
    """With every collective hidden as far as it can be."""
    if self.alone is None or self.links is None:
      return None
    return max(self.alone, self.links, self.network)

  @property
  def in_turn(self) -> float | None:
    """With nothing else going on during a collective."""
    if self.alone is None or self.links is None:
      return None
    return self.alone + self.links + self.network

  @property
  def efficiencies(self) -> tuple[float, float] | None:
    """Predicted scaling efficiency, a step without collectives to one with them: when nothing is
    hidden, and when all is."""
    return self._efficiencies(self.alone)

  @property
  def compute_efficiencies(self) -> tuple[float, float] | None:
    """The same of a step that computes at the peak and never waits for memory: the least that it
    can be."""
    return self._efficiencies(self.compute)

  def _efficiencies(self, alone: float | None) -> tuple[float, float] | None:
    if alone is None or self.links is None:
      return None
    apart = self.links + self.network
    return alone / (alone + apart), alone / max(alone, self.links, self.network)


def estimate(
  target: Target,
  flops: float,
  bytes_accessed: float | None,
  collectives: Iterable[Collective] | None,
) -> Estimate:
  """Args:
  flops: of a step on one device; likewise `bytes_accessed`, None if not known.
  collectives: None: not known.
  """
  chip = target.chip
  memory = None if bytes_accessed is None else bytes_accessed / chip.memory_bandwidth
  if collectives is None:
    return Estimate(flops / chip.flops, memory, links=None, network=None)
  collectives = list(collectives)
  between = sum(one.wire_bytes for one in collectives if one.across_slices)
  within = sum(one.wire_bytes for one in collectives if not one.across_slices)
  return Estimate(
    compute=flops / chip.flops,
    memory=memory,
    links=within / target.link_bandwidth if within else 0.0,
    network=between / chip.network_bandwidth,
  )
