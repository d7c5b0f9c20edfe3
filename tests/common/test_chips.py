import pytest

from vswin_jax.common.chips import CHIPS, find_chip


def test_figures_have_the_right_order_of_magnitude():
  """Each chip computes a hundred operations or more for a byte of its memory, moves bytes of
  memory faster than those of links, and those faster than those of the network."""
  for chip in CHIPS.values():
    assert 100 < chip.flops / chip.memory_bandwidth < 1000
    assert chip.memory_bandwidth > 3 * chip.link_bandwidth > 9 * chip.network_bandwidth
    assert 15 * 2**30 < chip.memory < 100 * 2**30


@pytest.mark.parametrize(
  ("kind", "name"),
  [
    ("TPU v5 lite", "v5e"), ("TPU v5", "v5p"), ("NVIDIA H100 80GB HBM3", "h100"),
    ("NVIDIA H200", "h200"), ("NVIDIA A100-SXM4-40GB", "a100"),
  ],
)  # fmt: skip
def test_chips_are_found_by_the_names_of_devices(kind, name):
  assert find_chip(kind) is CHIPS[name]


def test_other_devices_have_no_chip():
  assert find_chip("cpu") is find_chip("NVIDIA H100 PCIe") is None
