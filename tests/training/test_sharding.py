"""Meshes, and which rows of a batch lie where."""

import jax
import numpy as np
import pytest

from vswin_jax.training import sharding


def test_groups_of_fsdp_are_neighbors():
  mesh = sharding.make_mesh(4, jax.devices())
  assert mesh.shape == {"data": 2, "fsdp": 4}
  assert [[device.id for device in row] for row in mesh.devices] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_groups_of_fsdp_are_within_a_slice():
  mesh = sharding.make_mesh(2, jax.devices(), slices=2)
  assert mesh.shape == {"data": 4, "fsdp": 2}
  slice_of_row = [{device.id // 4 for device in row} for row in mesh.devices]
  assert slice_of_row == [{0}, {0}, {1}, {1}]


@pytest.mark.parametrize(
  "fsdp, slices, message",
  [
    (3, 0, "8 devices can't form groups of 3 for fsdp; mesh.fsdp must divide 8"),
    (8, 2, "4 devices in each of 2 slices can't form groups of 8"),
    (1, 3, "mesh.slices is 3; it must divide the 8 devices"),
    (1, -1, "mesh.slices is -1"),
  ],
)
def test_impossible_meshes_are_refused(fsdp, slices, message):
  with pytest.raises(ValueError, match=message):
    sharding.make_mesh(fsdp, jax.devices(), slices)


@pytest.mark.parametrize("fsdp, slices", [(1, 0), (4, 0), (2, 2)])
def test_rows_of_a_batch_go_to_the_devices_in_order(fsdp, slices):
  mesh = sharding.make_mesh(fsdp, jax.devices(), slices)
  places = sharding.batch_sharding(mesh)
  assert sharding.local_rows(places, 16) == list(range(16))
  batch = {"video": np.arange(48).reshape(16, 3), "label": np.arange(16)}
  put = sharding.put_batch(batch, places)
  for name, array in batch.items():
    np.testing.assert_array_equal(put[name], array)
    for place, shard in enumerate(sorted(put[name].addressable_shards, key=lambda s: s.device.id)):
      np.testing.assert_array_equal(shard.data, array[2 * place : 2 * place + 2])


def test_batch_sizes_must_be_multiples_of_the_devices():
  mesh = sharding.make_mesh(1, jax.devices())
  with pytest.raises(ValueError, match="size is 12; with 8 devices it must be a multiple of 8"):
    sharding.check_batch_size(12, mesh, "size")
  with pytest.raises(ValueError, match="2 gradient accumulation steps it must be a multiple of 16"):
    sharding.check_batch_size(8, mesh, "size", 2)
