"""Time estimates of a training step, from the compiler's counts and a chip's published peaks.

Nothing is measured. The time of computing at the peak is a lower bound. The time of memory is an
estimate that may be far too long, since bytes count whether or not they stay in faster memory. A
real step can take longer than both: programs do not reach the peak, and networks have latency.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np

from vswin_jax.aot.hlo import Collective
from vswin_jax.aot.topologies import Target


@dataclasses.dataclass(frozen=True)
class Estimate:
  """Seconds of a step on one device, for each part of the machine at its peak; NaN: unknown.

  Attributes:
    compute: lower bound: all operations at the bfloat16 peak.
    memory: all bytes accessed at the bandwidth of the device's memory.
    links: bytes communicated in the slice, over as many links as every chip has.
    network: bytes communicated to other slices.
  """

  compute: float
  memory: float
  links: float
  network: float

  @property
  def step(self) -> tuple[float, float]:
    """Seconds of a step if all collectives overlap with computation, and if none does."""
    alone = self._alone
    return float(np.max([alone, self.links, self.network])), alone + self.links + self.network

  @property
  def efficiency(self) -> tuple[float, float]:
    """Scaling efficiency: time without collectives over `step`, without and with overlap."""
    overlapped, in_turn = self.step
    return self._alone / in_turn, self._alone / overlapped

  @property
  def compute_efficiency(self) -> tuple[float, float]:
    """A lower bound of `efficiency`: that of a step that never waits for memory."""
    return dataclasses.replace(self, memory=0.0).efficiency

  @property
  def _alone(self) -> float:
    return float(np.max([self.compute, self.memory]))  # not `max`, which may drop NaN


def estimate(
  target: Target, flops: float, bytes_accessed: float, collectives: Iterable[Collective] | None
) -> Estimate:
  """Returns the time estimate of a step.

  Args:
    flops: operations of one device per step; NaN: unknown.
    bytes_accessed: read and written by one device per step; NaN: unknown.
    collectives: None: unknown.
  """
  chip = target.chip
  links = network = np.nan
  if collectives is not None:
    within, across = (
      sum(one.wire_bytes for one in collectives if one.across_slices == is_across)
      for is_across in (False, True)
    )
    # A single chip has no links.
    links = within / target.link_bandwidth if within else 0.0
    network = across / chip.network_bandwidth
  return Estimate(flops / chip.flops, bytes_accessed / chip.memory_bandwidth, links, network)
