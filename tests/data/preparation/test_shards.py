"""Planning of shards, and their checksums."""

import os

import pytest

from tests.data.preparation.files import OPTIONS, annotate
from vswin_jax.data.preparation import shards
from vswin_jax.data.preparation.video_to_record import prepare_video


@pytest.mark.parametrize("shard_bytes, least", [(1 << 40, 1), (20_000, 2), (1, 512)])
def test_number_of_shards_is_a_power_of_two(videos, shard_bytes, least):
  folder, names, _ = videos
  splits = annotate(folder, names).splits
  planned = shards.plan_shards(splits, shard_bytes, OPTIONS)
  assert [video for shard in planned for video in shard.videos] == list(splits["train"])
  numbers = [shard.number for shard in planned]
  assert numbers == sorted(set(numbers))
  total = sum((folder / name).stat().st_size for name in names)
  count = 1
  while total > shard_bytes * count and count < 512:
    count *= 2
  assert count >= least and max(numbers) < count


def test_file_that_changes_while_it_is_read_is_read_again(videos, tmp_path):
  """As one that is still being downloaded."""
  folder, names, _ = videos
  path = tmp_path / names[0]
  path.write_bytes((folder / names[0]).read_bytes())
  splits = annotate(tmp_path, names[:1]).splits
  (before,) = shards.plan_shards(splits, 1 << 30, OPTIONS)
  record = prepare_video(before.videos[0], OPTIONS)
  os.utime(path, ns=(0, path.stat().st_mtime_ns + 10**9))
  shards.write_shard(tmp_path, before, [record])
  assert shards.read_result(tmp_path, before).totals == record.totals
  (after,) = shards.plan_shards(splits, 1 << 30, OPTIONS)
  assert shards.read_result(tmp_path, after) is None
  shards.write_shard(tmp_path, after, [record])
  assert shards.read_result(tmp_path, after).totals == record.totals
