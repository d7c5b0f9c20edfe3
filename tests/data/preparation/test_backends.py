"""Local processes and Apache Beam prepare the same data set."""

import dataclasses
import json

import pytest

from tests.data.preparation.files import annotate, contents, prepare
from vswin_jax.data.preparation.backends import apache_beam, local_processes
from vswin_jax.data.records import open_records


def test_local_processes_prepare_the_same_data_set(annotations, prepared, tmp_path):
  summary = prepare(annotations, tmp_path, backend=local_processes(2))
  assert contents(summary.path) == contents(prepared.path)


@pytest.mark.slow
def test_apache_beam_prepares_the_same_data_set(annotations, tmp_path):
  backend = apache_beam(
    "runner=DirectRunner,direct_num_workers=2,direct_running_mode=multi_processing"
  )
  # Several shards with several videos.
  summary = prepare(annotations, tmp_path / "beam", backend=backend, shard_bytes=20_000)
  expected = prepare(annotations, tmp_path / "expected", shard_bytes=20_000)
  assert contents(summary.path) == contents(expected.path)
  assert len(list(summary.path.glob("*train*"))) > 1


@pytest.mark.slow
def test_apache_beam_leaves_out_files_that_cannot_be_read(videos, tmp_path):
  folder, names, _ = videos
  annotations = annotate(folder, names[:2])
  (tmp_path / "folder").mkdir()
  first, second = annotations.splits["train"]
  unreadable = dataclasses.replace(first, path=str(tmp_path / "folder"))
  annotations = dataclasses.replace(annotations, splits={"train": (unreadable, second)})
  backend = apache_beam("runner=DirectRunner")
  summary = prepare(annotations, tmp_path / "data", backend=backend, shard_bytes=1 << 30)
  assert summary.num_records == {"train": 1} and sum(summary.problems.values()) == 1


@pytest.mark.slow
def test_split_of_more_than_a_gibibyte(videos, tmp_path):
  """Larger than what TFDS's own builders keep in memory without TensorFlow."""
  content = (videos[0] / "h264.mp4").read_bytes()
  # An atom that players skip.
  size = 72 << 20
  padding = size.to_bytes(4, "big") + b"free" + bytes(size - 8)
  names = [f"{number}.mp4" for number in range(16)]
  for name in names:
    (tmp_path / name).write_bytes(content + padding)
  summary = prepare(
    annotate(tmp_path, names), tmp_path, backend=local_processes(2), shard_bytes=1 << 28
  )
  metadata = json.loads((summary.path / "dataset_info.json").read_text())
  assert int(metadata["splits"][0]["numBytes"]) > 1 << 30
  records = open_records("clips", str(tmp_path), "train")
  assert len(records) == 16 and records[15]["video"] == content + padding
