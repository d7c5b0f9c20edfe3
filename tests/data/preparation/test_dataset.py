"""Prepared data sets: records, problems, resuming, and errors."""

import csv
import dataclasses

import numpy as np
import pytest
import tensorflow_datasets as tfds

from tests.data.preparation.files import (
  BROKEN,
  CLASSES,
  OPTIONS,
  annotate,
  contents,
  in_process,
  prepare,
  video_id,
)
from tests.helpers.video_kinds import KINDS, encode
from vswin_jax.data.preparation import dataset, shards
from vswin_jax.data.preparation.video_to_record import Problem
from vswin_jax.data.records import DatasetError, open_records
from vswin_jax.data.video.decoding import probe
from vswin_jax.data.video.transcoding import Transcoding, transcode


class Stopped(Exception):
  pass


def stopping_after(count, made):
  """Returns a backend that fails after some shards, and notes which it makes."""

  def backend(folder_shards, folder, options, report):
    for shard in folder_shards[:count]:
      in_process([shard], folder, options, report)
      made.append(shard.stem)
    if len(folder_shards) >= count:
      raise Stopped

  return backend


def read_all(data_dir, split="train") -> list[dict]:
  records = open_records("clips", str(data_dir), split)
  return [records[index] for index in range(len(records))]


def test_records_hold_files_and_metadata(videos, annotations, prepared):
  _, names, _ = videos
  assert prepared.num_records == {"train": len(names) - 3, "validation": 3}
  for split, split_videos in annotations.splits.items():
    records = open_records("clips", str(prepared.path.parents[1]), split)
    assert records.class_names == CLASSES
    expected = [video for video in split_videos if video.path.rpartition("/")[2] in names]
    assert [records.video_id(index) for index in range(len(records))] == [
      video.id for video in expected
    ]
    for index, video in enumerate(expected):
      record = records[index]
      with open(video.path, "rb") as file:
        content = file.read()
      assert record["video"] == content
      assert record["label"] == video.labels[0]
      assert dataclasses.asdict(probe(content)).items() <= record.items()


def test_tfds_reads_it_without_this_library(prepared):
  builder = tfds.builder_from_directory(prepared.path)
  assert builder.info.splits["train"].num_examples == 4
  assert builder.info.features["label"].names == list(CLASSES)
  source = builder.as_data_source("train")
  assert len(source) == 4 and isinstance(source[0]["video"], bytes)
  metadata = builder.info.metadata
  assert metadata["videos"] == 7
  assert metadata["problems"] == {kind: len(names) for kind, names in BROKEN.items()}


def test_problems_are_listed(prepared):
  found, details = {}, {}
  for row in csv.DictReader((prepared.path / "problems.csv").open()):
    name = row["path"].rpartition("/")[2]
    found.setdefault(row["kind"], []).append(name)
    details[name] = row["detail"]
    assert row["detail"] and "\n" not in row["detail"]
  assert {kind: sorted(names) for kind, names in found.items()} == {
    kind: sorted(names) for kind, names in BROKEN.items()
  }
  assert "can't be decoded" in details["middle.mp4"]
  assert "it is a picture" in details["picture.mp4"]
  assert "200 s, more than the 60 allowed" in details["long.mp4"]


def test_transcoded_records(videos, tmp_path):
  folder, names, _ = videos
  annotations = annotate(folder, names)
  transcoding = Transcoding(short_side=32)
  summary = prepare(annotations, tmp_path, transcoding=transcoding, shard_bytes=2**20)
  records = read_all(tmp_path)
  for record, video in zip(records, annotations.splits["train"]):
    assert record["video"] == transcode(video.path, transcoding)
    assert dataclasses.asdict(probe(record["video"])).items() <= record.items()
  assert summary.totals["stored_bytes"] == sum(len(record["video"]) for record in records)
  assert summary.totals["source_bytes"] == sum((folder / name).stat().st_size for name in names)
  assert "MiB" in dataset.describe(summary) and "times as fast" in dataset.describe(summary)


def test_multi_label_records(videos, tmp_path):
  folder, names, _ = videos
  annotations = annotate(folder, names[:2])
  labeled = tuple(
    dataclasses.replace(video, labels=labels)
    for video, labels in zip(annotations.splits["train"], [(0, 1), ()])
  )
  annotations = dataclasses.replace(annotations, splits={"train": labeled}, multi_label=True)
  prepare(annotations, tmp_path)
  assert open_records("clips", str(tmp_path), "train").multi_label
  assert [list(np.asarray(record["label"])) for record in read_all(tmp_path)] == [[0, 1], []]


@pytest.mark.parametrize("count", [1, 4])
def test_stopped_preparation_resumes(annotations, prepared, tmp_path, count):
  first, second = [], []
  with pytest.raises(Stopped):
    prepare(annotations, tmp_path, backend=stopping_after(count, first))
  with pytest.raises(DatasetError, match="no data set 'clips'"):
    open_records("clips", str(tmp_path), "train")
  summary = prepare(annotations, tmp_path, backend=stopping_after(99, second))
  assert len(first) == count and not set(first) & set(second)
  assert contents(summary.path) == contents(prepared.path)
  assert [path.name for path in summary.path.parent.iterdir()] == [dataset.VERSION]


def test_result_does_not_depend_on_the_order_of_shards(annotations, prepared, tmp_path):
  def last_shards_first(folder_shards, *arguments):
    in_process(folder_shards[5:], *arguments)
    raise Stopped

  with pytest.raises(Stopped):
    prepare(annotations, tmp_path, backend=last_shards_first)
  summary = prepare(annotations, tmp_path)
  assert contents(summary.path) == contents(prepared.path)


def test_only_changed_shards_are_made_again(videos, tmp_path):
  folder, names, _ = videos
  names, own, data_dir = names[:6], tmp_path / "videos", tmp_path / "data"
  own.mkdir()
  for name in names:
    (own / name).write_bytes((folder / name).read_bytes())
  planned = shards.plan_shards(annotate(own, names).splits, 1, OPTIONS)
  made, made_again = [], []
  with pytest.raises(Stopped):
    prepare(annotate(own, names), data_dir, backend=stopping_after(len(planned), made))
  assert made == [shard.stem for shard in planned]
  changed, truncated, added = names[1], made[3], "new.mp4"
  encode(own / changed, *KINDS["h264.mp4"], times=range(0, 52, 2))
  (data_dir / f"clips/.preparing/{truncated}.array_record").write_bytes(b"truncated")
  (own / added).write_bytes((own / names[0]).read_bytes())

  annotations = annotate(own, [*names, added])
  prepare(annotations, data_dir, backend=stopping_after(99, made_again))
  planned = shards.plan_shards(annotations.splits, 1, OPTIONS)
  stems = {video.id: shard.stem for shard in planned for video in shard.videos}
  expected = {truncated, stems[video_id(changed)], stems[video_id(added)]}
  assert sorted(made_again) == sorted(expected)
  assert [record["video"] for record in read_all(data_dir)] == [
    (own / video.path).read_bytes() for video in annotations.splits["train"]
  ]


@pytest.mark.parametrize("kind", ["unreadable", "crashes"])
def test_transient_problems_are_tried_again(videos, tmp_path, kind):
  folder, names, _ = videos
  annotations = annotate(folder, names)
  failed = annotations.splits["train"][2]

  def failing(folder_shards, folder, options, report):
    for shard in folder_shards:
      if failed in shard.videos:
        shards.write_shard(folder, shard, [Problem(failed.path, failed.id, kind, "this time")])
      else:
        in_process([shard], folder, options, report)
    raise Stopped

  with pytest.raises(Stopped):
    prepare(annotations, tmp_path, backend=failing)
  made = []
  summary = prepare(annotations, tmp_path, backend=stopping_after(9, made))
  assert len(made) == 1 and not summary.problems


def test_too_many_problems_are_an_error_and_listed(videos, tmp_path):
  folder, names, broken = videos
  annotations = annotate(folder, [*names, *broken])
  with pytest.raises(DatasetError) as raised:
    prepare(annotations, tmp_path, share=0.1)
  listed = tmp_path / "clips" / "problems.csv"
  assert "2 of 14 videos have a problem so far" in str(raised.value)
  assert "10.0% of --max_problem_share" in str(raised.value)
  assert str(listed) in str(raised.value)
  assert len(list(csv.DictReader(listed.open()))) == 2
  assert not (tmp_path / "clips" / dataset.VERSION).exists()
  # With a larger share the same files pass, and the list moves into the data set.
  summary = prepare(annotations, tmp_path, share=0.6)
  assert sum(summary.problems.values()) == 7 and not listed.exists()


def test_missing_files_are_an_error_before_any_work(videos, tmp_path):
  folder, names, _ = videos
  annotations = annotate(folder, [*names[:2], "gone.mp4", "lost.avi"])
  with pytest.raises(DatasetError, match=r"2 of 4 videos have a problem so far \(2 missing\)"):
    prepare(annotations, tmp_path, share=0.25, backend=None)


def test_other_files_are_listed_but_do_not_count(videos, tmp_path):
  folder, names, _ = videos
  annotations = dataclasses.replace(
    annotate(folder, names), other_files=(("Thumbs.db", "not a video's name"),)
  )
  summary = prepare(annotations, tmp_path, share=0.0)
  assert not summary.problems
  (row,) = csv.DictReader((summary.path / "problems.csv").open())
  assert (row["path"], row["kind"]) == ("Thumbs.db", "other file")


def test_existing_data_sets_are_not_changed(annotations, prepared):
  before = contents(prepared.path)
  with pytest.raises(DatasetError, match="exists and is complete; remove it"):
    prepare(annotations, prepared.path.parents[1])
  assert contents(prepared.path) == before


def test_concurrent_preparations_are_refused(videos, tmp_path):
  folder, names, _ = videos

  def backend(*arguments):
    with pytest.raises(DatasetError, match="another process is preparing clips"):
      prepare(annotate(folder, names), tmp_path)
    in_process(*arguments)

  prepare(annotate(folder, names), tmp_path, backend=backend)


def test_no_usable_video_is_an_error(videos, tmp_path):
  folder, _, broken = videos
  with pytest.raises(DatasetError, match="no record could be made"):
    prepare(annotate(folder, broken), tmp_path)


def test_shards_that_the_backend_did_not_write_are_an_error(videos, tmp_path):
  folder, names, _ = videos
  with pytest.raises(DatasetError, match="was not written; the workers of a cluster must see"):
    prepare(annotate(folder, names), tmp_path, backend=lambda *arguments: None)


def test_names_that_tfds_would_not_find_are_refused(videos, tmp_path):
  folder, names, _ = videos
  with pytest.raises(DatasetError, match="'my-clips' can't be the name of a data set"):
    dataset.prepare_dataset(
      annotate(folder, names), name="my-clips", data_dir=tmp_path, backend=in_process
    )


def test_full_disk_keeps_finished_shards(videos, tmp_path, monkeypatch):
  folder, names, _ = videos
  written = []

  class FullDisk(shards.ArrayRecordWriter):
    def write(self, example):
      if len(written) == 3:
        raise RuntimeError("write() failed: No space left on device; writing x; at byte 4096")
      written.append(len(example))
      return super().write(example)

  with monkeypatch.context() as patch:
    patch.setattr(shards, "ArrayRecordWriter", FullDisk)
    with pytest.raises(DatasetError, match="No space left on device; finished shards are kept"):
      prepare(annotate(folder, names), tmp_path)
  made = []
  prepare(annotate(folder, names), tmp_path, backend=stopping_after(99, made))
  assert len(made) == 4
