"""Time estimates of a training step, from the compiler's counts and a chip's published peaks.

Nothing is measured. The time of computing at the peak is a lower bound. The time of memory is an
estimate that may be far too long, since bytes count whether or not they stay in faster memory. A
real step can take longer than both: programs do not reach the peak, and networks have latency.
"""

import dataclasses
from collections.abc import Iterable

from vswin_jax.aot.hlo import Collective
from vswin_jax.aot.topologies import Target


@dataclasses.dataclass(frozen=True)
class Estimate:
  """Seconds of a step on one device, for each part of the machine at its peak.

  Attributes:
    compute: lower bound: all operations at the bfloat16 peak.
    memory: all bytes accessed at the bandwidth of the device's memory; None: unknown.
    links: bytes communicated in the slice, over as many links as every chip has; None: unknown,
      and so is `network`.
    network: bytes communicated to other slices.
  """

  compute: float
  memory: float | None
  links: float | None
  network: float | None

  @property
  def step(self) -> tuple[float, float] | None:
    """Seconds of a step if all collectives overlap with computation, and if none does."""
    return self._with_collectives(self._alone)

  @property
  def efficiency(self) -> tuple[float, float] | None:
    """Scaling efficiency: time without collectives over `step`, without and with overlap."""
    return self._efficiency(self._alone)

  @property
  def compute_efficiency(self) -> tuple[float, float] | None:
    """A lower bound of `efficiency`: that of a step that never waits for memory."""
    return self._efficiency(self.compute)

  @property
  def _alone(self) -> float | None:
    return None if self.memory is None else max(self.compute, self.memory)

  def _with_collectives(self, alone: float | None) -> tuple[float, float] | None:
    if alone is None or self.links is None:
      return None
    return max(alone, self.links, self.network), alone + self.links + self.network

  def _efficiency(self, alone: float | None) -> tuple[float, float] | None:
    step = self._with_collectives(alone)
    return None if step is None else (alone / step[1], alone / step[0])


def estimate(
  target: Target,
  flops: float,
  bytes_accessed: float | None,
  collectives: Iterable[Collective] | None,
) -> Estimate:
  """Returns the time estimate of a step.

  Args:
    flops: operations of one device per step.
    bytes_accessed: read and written by one device per step; None: unknown.
    collectives: None: unknown.
  """
  chip = target.chip
  links = network = None
  if collectives is not None:
    sent = {False: 0.0, True: 0.0}
    for collective in collectives:
      sent[collective.across_slices] += collective.wire_bytes
    # A single chip has no links.
    links = sent[False] / target.link_bandwidth if sent[False] else 0.0
    network = sent[True] / chip.network_bandwidth
  memory = None if bytes_accessed is None else bytes_accessed / chip.memory_bandwidth
  return Estimate(flops / chip.flops, memory, links, network)
