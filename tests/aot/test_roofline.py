"""Time estimates against numbers worked out by hand."""

import dataclasses

import numpy as np
import pytest

from vswin_jax.aot.hlo import Collective
from vswin_jax.aot.roofline import Estimate, estimate
from vswin_jax.aot.topologies import Target
from vswin_jax.common.chips import Chip

# 100 TFLOP/s, 1 TB/s of memory, 100 GB/s of links, 5 GB/s of network.
CHIP = Chip("x", "tpu", 16 * 2**30, 100e12, 1e12, 100e9, 5e9, 2, 256, 16)
WHOLE = Target("x:16x16", CHIP, (16, 16))
COLLECTIVES = (
  Collective("all-reduce", False, 4, 3, 10**9, 1.5e9),
  Collective("all-gather", False, 4, 1, 10**8, 0.5e9),
  Collective("all-reduce", True, 2, 1, 10**8, 1e8),
)


def test_each_part_at_its_peak():
  bounds = estimate(WHOLE, 5e12, 30e9, COLLECTIVES)
  np.testing.assert_allclose(
    [bounds.compute, bounds.memory, bounds.links, bounds.network],
    [0.05, 0.03, 0.02, 0.02],
    rtol=1e-12,
  )
  assert bounds.step[0] == bounds.compute


def test_step_and_efficiency():
  bounds = Estimate(compute=0.05, memory=0.03, links=0.02, network=0.01)
  np.testing.assert_allclose(bounds.step, (0.05, 0.08))
  np.testing.assert_allclose(bounds.efficiency, (0.625, 1.0))
  assert bounds.compute_efficiency == bounds.efficiency


def test_compute_efficiency_ignores_memory():
  bounds = Estimate(compute=0.02, memory=0.1, links=0.02, network=0.01)
  np.testing.assert_allclose(bounds.efficiency, (0.1 / 0.13, 1.0))
  np.testing.assert_allclose(bounds.compute_efficiency, (0.4, 1.0))
  slow = Estimate(compute=0.02, memory=0.1, links=0.05, network=0.01)
  np.testing.assert_allclose(slow.compute_efficiency, (0.25, 0.4))


@pytest.mark.parametrize(
  "grid, links",
  [
    ((16, 16), 4),  # both ends of both axes are joined
    ((8, 8), 2),  # a corner of a mesh has a neighbor along each axis
    ((8, 16), 2),
    ((2, 2), 2),
    ((1, 4), 1),
  ],
)
def test_links_are_those_of_a_corner(grid, links):
  bounds = estimate(Target("x", CHIP, grid), 5e12, 30e9, COLLECTIVES[:2])
  np.testing.assert_allclose(bounds.links, 2e9 / (links * 25e9))


def test_switches_connect_any_number_of_chips():
  joined = dataclasses.replace(CHIP, wraps=0)
  assert Target("x", joined, (1, 8)).link_bandwidth == joined.link_bandwidth


@pytest.mark.parametrize("slow", ["links", "network"])
def test_long_collectives_are_not_hidden(slow):
  times = {"compute": 0.01, "memory": 0.04, "links": 0.0, "network": 0.0} | {slow: 0.16}
  bounds = Estimate(**times)
  np.testing.assert_allclose(bounds.step, (0.16, 0.2))
  np.testing.assert_allclose(bounds.efficiency, (0.2, 0.25))


def test_unknown_parts_leave_the_rest():
  bounds = estimate(WHOLE, 5e12, np.nan, COLLECTIVES)
  whole = estimate(WHOLE, 5e12, 30e9, COLLECTIVES)
  assert (bounds.compute, bounds.links, bounds.network) == (0.05, whole.links, whole.network)
  assert np.isnan([bounds.memory, *bounds.step, *bounds.efficiency]).all()
  assert bounds.compute_efficiency == whole.compute_efficiency

  bounds = estimate(WHOLE, 5e12, 30e9, None)
  assert (bounds.compute, bounds.memory) == (0.05, 0.03)
  assert np.isnan([bounds.links, bounds.network, *bounds.step]).all()
  assert np.isnan([*bounds.efficiency, *bounds.compute_efficiency]).all()


def test_one_device_has_full_efficiency():
  bounds = estimate(Target("x:1x1", CHIP, (1, 1)), 5e12, 30e9, ())
  assert bounds.efficiency == bounds.compute_efficiency == (1.0, 1.0)
