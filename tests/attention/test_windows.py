"""Window geometry against the reference's rules, written out."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from vswin_jax.attention.windows import from_windows, region_ids, to_windows, window_layout

GRIDS = [(16, 56, 56), (8, 14, 14), (5, 8, 9), (16, 7, 7), (3, 4, 4), (1, 1, 1), (12, 15, 20)]
WINDOWS = [(8, 7, 7), (16, 7, 7), (8, 12, 12), (2, 3, 4)]


@pytest.mark.parametrize(
  ("grid", "window", "effective", "shift"),
  [
    ((16, 56, 56), (8, 7, 7), (8, 7, 7), (4, 3, 3)),
    ((16, 7, 7), (8, 7, 7), (8, 7, 7), (4, 0, 0)),
    ((8, 56, 56), (8, 7, 7), (8, 7, 7), (0, 3, 3)),
    ((16, 56, 56), (16, 7, 7), (16, 7, 7), (0, 3, 3)),
    ((16, 96, 96), (8, 12, 12), (8, 12, 12), (4, 6, 6)),
    ((5, 4, 4), (8, 7, 7), (5, 4, 4), (0, 0, 0)),
  ],
)
def test_windows_shrink_axis_by_axis(grid, window, effective, shift):
  layout = window_layout(grid, window, shifted=True)
  assert (layout.window, layout.shift) == (effective, shift)
  assert window_layout(grid, window, shifted=False).shift == (0, 0, 0)


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("grid", GRIDS)
def test_round_trip(grid, window, shifted):
  layout = window_layout(grid, window, shifted=shifted)
  x = jnp.asarray(np.random.default_rng(0).normal(size=(2, *grid[1:], grid[0], 3)), jnp.float32)
  windows = to_windows(x, layout)
  assert windows.shape == (2, layout.windows, layout.tokens, 3)
  np.testing.assert_array_equal(from_windows(windows, layout), x)


@pytest.mark.parametrize(("grid", "window"), [((4, 4, 6), (2, 2, 3)), ((5, 4, 7), (2, 2, 3))])
def test_windows_and_tokens_are_ordered_by_height_width_and_time(grid, window):
  layout = window_layout(grid, window, shifted=True)
  x = np.random.default_rng(0).normal(size=(1, *grid, 1)).astype(np.float32)
  padded = np.zeros((1, *layout.padded_grid, 1), np.float32)
  padded[:, : grid[0], : grid[1], : grid[2]] = x
  rolled = np.roll(padded, [-s for s in layout.shift], axis=(1, 2, 3))
  expected = []
  depth, height, width = layout.window
  starts = [range(0, size, step) for size, step in zip(layout.padded_grid, layout.window)]
  for h, w, d in itertools.product(starts[1], starts[2], starts[0]):
    block = rolled[0, d : d + depth, h : h + height, w : w + width]
    expected.append(block.transpose(1, 2, 0, 3).reshape(-1, 1))
  windows = to_windows(jnp.asarray(x.transpose(0, 2, 3, 1, 4)), layout)
  np.testing.assert_array_equal(windows[0], np.stack(expected))


def reference_mask(layout) -> np.ndarray:
  """Returns the pairs that the reference masks: `[windows, tokens, tokens]`."""
  ids = np.zeros((1, *layout.padded_grid, 1))
  cuts = [
    (slice(-window), slice(-window, -shift), slice(-shift, None))
    for window, shift in zip(layout.window, layout.shift)
  ]
  for count, (d, h, w) in enumerate(itertools.product(*cuts)):
    ids[:, d, h, w] = count
  plain = window_layout(layout.padded_grid, layout.window, shifted=False)
  windows = np.asarray(to_windows(jnp.asarray(ids.transpose(0, 2, 3, 1, 4)), plain))[0, :, :, 0]
  return windows[:, :, None] != windows[:, None, :]


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("grid", [grid for grid in GRIDS if np.prod(grid) < 3000])
def test_regions_separate_what_the_reference_masks(grid, window):
  layout = window_layout(grid, window, shifted=True)
  ids = region_ids(layout)
  if not any(layout.shift):
    assert ids is None
    return
  np.testing.assert_array_equal(ids[:, :, None] != ids[:, None, :], reference_mask(layout))


def test_published_share_of_separated_pairs():
  ids = region_ids(window_layout((16, 56, 56), (8, 7, 7), shifted=True))
  masked = ids[:, :, None] != ids[:, None, :]
  assert masked.any((1, 2)).sum() == 79
  assert round(100 * masked.mean(), 1) == 33.9
