"""Names of targets, and errors of unknown ones."""

import pytest

from vswin_jax.aot.topologies import TargetError, parse_target
from vswin_jax.common.chips import CHIPS


# Grids as in Google Cloud's pages.
@pytest.mark.parametrize(
  "name, grid, slices, devices",
  [
    ("v5e:8x8", (8, 8), 1, 64),
    ("v5e-1", (1, 1), 1, 1),
    ("v5e-4", (2, 2), 1, 4),
    ("v5e-8", (2, 4), 1, 8),
    ("v5e-16", (4, 4), 1, 16),
    ("v5litepod-32", (4, 8), 1, 32),
    ("v5e-64", (8, 8), 1, 64),
    ("v5e-128", (8, 16), 1, 128),
    ("v5e-256", (16, 16), 1, 256),
    ("v6e-64", (8, 8), 1, 64),
    ("v4-8", (2, 2, 1), 1, 4),
    ("v4-16", (2, 2, 2), 1, 8),
    ("v4-32", (2, 2, 4), 1, 16),
    ("v4-64", (2, 4, 4), 1, 32),
    ("v4-128", (4, 4, 4), 1, 64),
    ("v5p-512", (4, 8, 8), 1, 256),
    ("v5p:4x4x8", (4, 4, 8), 1, 128),
    ("2*v5e:16x16", (16, 16), 2, 512),
    ("4*v5e-256", (16, 16), 4, 1024),
    ("V4-128", (4, 4, 4), 1, 64),
    ("h100:1x1x8", (1, 8), 1, 8),
    ("h100:2x4x8", (4, 8), 2, 64),
    ("a100:1x1x8", (1, 8), 1, 8),
  ],
)
def test_names(name, grid, slices, devices):
  target = parse_target(name)
  assert (target.grid, target.slices, target.num_devices) == (grid, slices, devices)
  assert target.slice_size * slices == devices


@pytest.mark.parametrize(
  "name, words",
  [
    ("", "unknown topology ''; expected a name such as v5e:8x8"),
    ("v5e", "unknown topology 'v5e'; expected a name such as v5e:8x8"),
    ("v5e:8by8", "unknown topology"),
    ("v5f:8x8", "unknown chip 'v5f' in topology 'v5f:8x8'; did you mean 'v5"),
    ("v5e:4x4x4", "does not exist; expected v5e:XxY with even X and Y"),
    ("v4:8x8", "does not exist; expected v4:XxYxZ with even X and Y"),
    ("v5e-48", "or v5e-N with a power of two of chips"),
    ("v4-24", "a power of two of cores, two to a chip"),
    ("v5e-2", "a power of two of chips"),
    ("v5e:32x16", "at most 256 chips in a slice; several slices: 2*v5e:XxY"),
    ("v5e:3x4", "with even X and Y"),
    ("0*v5e:4x4", "unknown topology"),
    ("h100-12", "expected h100:SLICESxHOSTSxGPUS"),
    ("h100:1x1x16", "at most 8 GPUs per host"),
    ("h100:8", "expected h100:SLICESxHOSTSxGPUS"),
  ],
)
def test_unknown_names(name, words):
  with pytest.raises(TargetError) as error:
    parse_target(name)
  assert words in str(error.value)
  assert "\n" not in str(error.value)


def test_links_and_descriptions():
  assert parse_target("v4-128").link_bandwidth == CHIPS["v4"].link_bandwidth
  assert parse_target("v4-16").link_bandwidth == CHIPS["v4"].link_bandwidth / 2
  assert parse_target("2*v6e-64").describe() == "128 v6e chips (2 slices of 8x8)"
  assert parse_target("h100:2x4x8").describe() == "64 h100 chips (2 slices of 4x8)"
