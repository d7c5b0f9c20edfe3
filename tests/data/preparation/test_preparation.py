"""Data sets made of video files: whole or not there, the same however they were made."""

import csv
import dataclasses
import functools
import hashlib
import io
import json
import os

import numpy as np
import pytest
import tensorflow_datasets as tfds

from tests.data.preparation.files import (
  BROKEN,
  CLASSES,
  annotate,
  write_broken,
  write_sound,
)
from tests.helpers.video_kinds import (
  KINDS,
  encode,
)
from vswin_jax.data.preparation import datasets, engines, shards
from vswin_jax.data.preparation.videos import Problem, Recipe, prepare_video
from vswin_jax.data.records import DatasetError, open_records
from vswin_jax.data.video.decoding import probe
from vswin_jax.data.video.transcoding import Transcoding, transcode

MAX_SECONDS = 60.0
RECIPE = Recipe(CLASSES, max_seconds=MAX_SECONDS)


def in_this_process(folder_shards, folder, recipe, report):
  """An engine without processes."""
  for shard in folder_shards:
    outcomes = [prepare_video(video, recipe) for video in shard.videos]
    report(len(outcomes), [one for one in outcomes if isinstance(one, Problem)])
    yield shards.write_shard(folder, shard, outcomes)


def prepare(annotations, data_dir, *, engine=in_this_process, share=1.0, size=1, **options):
  return datasets.prepare_dataset(
    annotations,
    name="clips",
    data_dir=data_dir,
    engine=engine,
    max_seconds=MAX_SECONDS,
    shard_bytes=size,
    max_problem_share=share,
    **options,
  )


def in_order(names: list[str]) -> list[str]:
  """Names of files in the order in which a data set holds them."""
  return sorted(names, key=lambda name: hashlib.sha256(name.replace(".", "_").encode()).digest())


def contents(folder) -> dict:
  """The files of a data set; of its shards the records (their fields stand in any order)."""
  found = {}
  for path in sorted(folder.iterdir()):
    if "array_record" not in path.name:
      found[path.name] = path.read_bytes()
  for split, source in tfds.builder_from_directory(folder).as_data_source().items():
    found[split] = [
      {
        name: value.tolist() if isinstance(value, np.ndarray) else value
        for name, value in one.items()
      }
      for one in source
    ]
  return found


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
  """A folder of sound and broken files, and their names."""
  folder = tmp_path_factory.mktemp("videos")
  names = write_sound(folder)
  write_broken(folder)
  broken = [name for names in BROKEN.values() for name in names]
  return folder, names, broken


@pytest.fixture(scope="module")
def prepared(videos, tmp_path_factory):
  """The data set of these files, made in this process, one shard a video."""
  folder, names, broken = videos
  data_dir = tmp_path_factory.mktemp("data")
  return data_dir, prepare(annotate(folder, [*broken, *names], validation=3), data_dir)


def test_records_hold_the_files_and_their_metadata(videos, prepared):
  folder, names, broken = videos
  data_dir, summary = prepared
  assert summary.num_records == {"train": len(names) - 3, "validation": 3}
  numbers = {name: number for number, name in enumerate([*broken, *names])}
  for split, expected in {
    "train": in_order(names[:-3]),
    "validation": in_order(names[-3:]),
  }.items():
    records = open_records("clips", str(data_dir), split)
    assert records.class_names == CLASSES
    assert [records.video_id(i) for i in range(len(records))] == [
      name.replace(".", "_") for name in expected
    ]
    for record, name in zip((records[i] for i in range(len(records))), expected):
      content = (folder / name).read_bytes()
      assert record["video"] == content
      assert record["label"] == numbers[name] % 2
      metadata = dataclasses.asdict(probe(content))
      assert {field: record[field] for field in metadata} == metadata


def test_tfds_alone_reads_it(videos, prepared):
  """Without this library's code: the folder says everything."""
  builder = tfds.builder_from_directory(prepared[1].path)
  assert builder.info.splits["train"].num_examples == 4
  assert builder.info.features["label"].names == list(CLASSES)
  source = builder.as_data_source("train")
  assert len(source) == 4 and isinstance(source[0]["video"], bytes)
  metadata = builder.info.metadata
  assert metadata["videos"] == 7
  assert metadata["problems"] == {kind: len(names) for kind, names in BROKEN.items()}


def test_problems_are_listed(videos, prepared):
  rows = list(csv.DictReader((prepared[1].path / "problems.csv").open()))
  found = {}
  for row in rows:
    found.setdefault(row["kind"], []).append(row["path"].rpartition("/")[2])
    assert row["detail"] and "\n" not in row["detail"]
  assert {kind: sorted(names) for kind, names in found.items()} == {
    kind: sorted(names) for kind, names in BROKEN.items()
  }
  details = {row["path"].rpartition("/")[2]: row["detail"] for row in rows}
  assert "can't be decoded" in details["middle.mp4"]
  assert "it is a picture" in details["picture.mp4"]
  assert "200 s, more than the 60 allowed" in details["long.mp4"]


def test_processes_make_the_same_data_set(videos, prepared, tmp_path):
  folder, names, broken = videos
  annotations = annotate(folder, [*broken, *names], validation=3)
  summary = prepare(annotations, tmp_path, engine=engines.on_this_machine(2))
  assert contents(summary.path) == contents(prepared[1].path)


@pytest.mark.slow
def test_beam_makes_the_same_data_set(videos, prepared, tmp_path):
  folder, names, broken = videos
  annotations = annotate(folder, [*broken, *names], validation=3)
  engine = engines.on_beam(
    "runner=DirectRunner,direct_num_workers=2,direct_running_mode=multi_processing"
  )
  summary = prepare(annotations, tmp_path, engine=engine)
  assert contents(summary.path) == contents(prepared[1].path)


@pytest.mark.slow
def test_beam_goes_on_past_files_that_cannot_be_read(videos, tmp_path):
  folder, names, _ = videos
  annotations = annotate(folder, names[:2])
  (tmp_path / "folder").mkdir()
  odd = dataclasses.replace(annotations.splits["train"][0], path=str(tmp_path / "folder"))
  annotations = dataclasses.replace(
    annotations, splits={"train": (odd, annotations.splits["train"][1])}
  )
  summary = prepare(annotations, tmp_path / "data", engine=engines.on_beam("runner=DirectRunner"))
  assert summary.num_records == {"train": 1} and sum(summary.problems.values()) == 1


def test_transcoded_records(videos, tmp_path):
  folder, names, _ = videos
  transcoding = Transcoding(short_side=32)
  summary = prepare(annotate(folder, names), tmp_path, transcoding=transcoding, size=2**20)
  records = open_records("clips", str(tmp_path), "train")
  for record, name in zip((records[i] for i in range(len(records))), in_order(names)):
    assert record["video"] == transcode(folder / name, transcoding)
    assert dataclasses.asdict(probe(record["video"])).items() <= record.items()
  assert summary.totals.stored_bytes == sum(len(records[i]["video"]) for i in range(len(records)))
  assert summary.totals.source_bytes == sum((folder / name).stat().st_size for name in names)
  assert "MiB" in datasets.describe(summary)


def test_multi_label_records(videos, tmp_path):
  folder, names, _ = videos
  annotations = annotate(folder, names[:2])
  labeled = tuple(
    dataclasses.replace(video, labels=labels)
    for video, labels in zip(annotations.splits["train"], [(0, 1), ()])
  )
  annotations = dataclasses.replace(annotations, splits={"train": labeled}, multi_label=True)
  prepare(annotations, tmp_path)
  records = open_records("clips", str(tmp_path), "train")
  assert records.multi_label
  assert [list(np.asarray(records[i]["label"])) for i in range(2)] == [[0, 1], []]


class Stopped(Exception):
  pass


def stopping_after(count, made, folder_shards, folder, recipe, report):
  """An engine that ends after some shards, as a killed process does, and notes which it makes."""
  for number, result in enumerate(in_this_process(folder_shards, folder, recipe, report)):
    made.append(folder_shards[number].stem)
    if number + 1 == count:
      raise Stopped
    yield result


@pytest.mark.parametrize("count", [1, 4])
def test_a_stopped_preparation_goes_on(videos, prepared, tmp_path, count):
  folder, names, broken = videos
  annotations = annotate(folder, [*broken, *names], validation=3)
  first, second = [], []
  with pytest.raises(Stopped):
    prepare(annotations, tmp_path, engine=functools.partial(stopping_after, count, first))
  with pytest.raises(DatasetError, match="no data set 'clips'"):
    open_records("clips", str(tmp_path), "train")
  summary = prepare(annotations, tmp_path, engine=functools.partial(stopping_after, 99, second))
  assert len(first) == count and not set(first) & set(second)
  assert contents(summary.path) == contents(prepared[1].path)
  assert not [path for path in summary.path.parent.iterdir() if path != summary.path]


def test_shards_finished_in_any_order_come_in_order(videos, prepared, tmp_path):
  """As on a cluster, or where one in the middle had to be made anew."""
  folder, names, broken = videos
  annotations = annotate(folder, [*broken, *names], validation=3)

  def the_last_ones(folder_shards, folder, recipe, report):
    yield from in_this_process(folder_shards[-4:], folder, recipe, report)
    raise Stopped

  with pytest.raises(Stopped):
    prepare(annotations, tmp_path, engine=the_last_ones)
  summary = prepare(annotations, tmp_path)
  assert contents(summary.path) == contents(prepared[1].path)


@pytest.fixture
def half_done(videos, tmp_path):
  """Six files of one's own, a preparation of them that stopped at its end, and what it made."""
  folder, names, _ = videos
  mine = tmp_path / "videos"
  mine.mkdir()
  for name in names[:6]:
    (mine / name).write_bytes((folder / name).read_bytes())
  annotations, made = annotate(mine, names[:6]), []
  planned = shards.plan_shards(annotations.splits, 1, RECIPE)
  engine = functools.partial(stopping_after, len(planned), made)
  with pytest.raises(Stopped):
    prepare(annotations, tmp_path / "data", engine=engine)
  assert made == [shard.stem for shard in planned]
  return mine, names[:6], tmp_path / "data", made


def test_only_what_changed_meanwhile_is_made_anew(half_done):
  mine, names, data_dir, made = half_done
  changed, cut_off, added = names[1], made[3], "new.mp4"
  encode(mine / changed, *KINDS["h264.mp4"], times=range(0, 52, 2))
  (data_dir / f"clips/.preparing/{cut_off}.array_record").write_bytes(b"cut off")
  (mine / added).write_bytes((mine / names[0]).read_bytes())
  again = []
  prepare(
    annotate(mine, [*names, added]), data_dir, engine=functools.partial(stopping_after, 99, again)
  )
  ids = {name: made_of(name) for name in (changed, added)}
  assert sorted(again) == sorted({cut_off, *ids.values()})
  records = open_records("clips", str(data_dir), "train")
  expected = [(mine / name).read_bytes() for name in in_order([*names, added])]
  assert [records[number]["video"] for number in range(7)] == expected


def made_of(name: str) -> str:
  """The shard, one of 512, of a file."""
  digest = hashlib.sha256(name.replace(".", "_").encode()).digest()
  return f"train-{int.from_bytes(digest[:2], 'big') >> 7:05d}"


@pytest.mark.parametrize("kind", ["unreadable", "crashes"])
def test_problems_that_may_have_passed_are_tried_again(videos, tmp_path, kind):
  folder, names, _ = videos
  annotations = annotate(folder, names)

  def failing(folder_shards, folder, recipe, report):
    for number, shard in enumerate(folder_shards):
      outcomes = [prepare_video(video, recipe) for video in shard.videos]
      if number == 2:
        outcomes = [Problem(video.path, video.id, kind, "for now") for video in shard.videos]
      yield shards.write_shard(folder, shard, outcomes)
    raise Stopped

  planned = shards.plan_shards(annotations.splits, 1, RECIPE)
  with pytest.raises(Stopped):
    list(failing(planned, *staging(tmp_path)))
  again = []
  summary = prepare(annotations, tmp_path, engine=functools.partial(stopping_after, 9, again))
  assert again == [planned[2].stem] and not summary.problems


def staging(data_dir) -> tuple:
  folder = data_dir / "clips" / ".preparing"
  folder.mkdir(parents=True)
  return folder, RECIPE, lambda count, problems: None


def test_a_file_that_changes_while_it_is_read_is_read_again(videos, tmp_path):
  """As one that is still being downloaded."""
  folder, names, _ = videos
  path = tmp_path / names[0]
  path.write_bytes((folder / names[0]).read_bytes())
  splits = annotate(tmp_path, names[:1]).splits
  (before,) = shards.plan_shards(splits, 1 << 30, RECIPE)
  made_in, *_ = staging(tmp_path)
  outcome = prepare_video(before.videos[0], RECIPE)
  os.utime(path, ns=(0, path.stat().st_mtime_ns + 10**9))
  shards.write_shard(made_in, before, [outcome])
  (now,) = shards.plan_shards(splits, 1 << 30, RECIPE)
  assert shards.finished(made_in, now) is None
  result = shards.write_shard(made_in, now, [outcome])
  assert shards.finished(made_in, now) == result


@pytest.mark.parametrize("name", ["h264.mp4", "vp9.webm"])
@pytest.mark.parametrize("after", [None, 0, 2])
def test_a_file_that_cannot_be_read_now(videos, monkeypatch, name, after):
  """It can't be opened, or the network fails after some reads."""
  folder, _, _ = videos
  video = annotate(folder, [name]).splits["train"][0]

  class Failing(io.FileIO):
    def __init__(self, path):
      if after is None:
        raise OSError(5, "Input/output error")
      super().__init__(path)
      self._left = after

    def read(self, *arguments):
      self._left -= 1
      if self._left < 0:
        raise OSError(5, "Input/output error")
      return super().read(min(arguments[0], 1000))

  monkeypatch.setattr("vswin_jax.data.video.container.io.FileIO", Failing)
  assert prepare_video(video, RECIPE) == Problem(
    video.path, video.id, "unreadable", "Input/output error"
  )


def test_too_many_problems_stop_it_and_are_listed(videos, tmp_path):
  folder, names, broken = videos
  annotations = annotate(folder, [*names, *broken])
  with pytest.raises(DatasetError) as raised:
    prepare(annotations, tmp_path, share=0.1)
  listed = tmp_path / "clips" / "problems.csv"
  assert "2 of 14 videos have a problem so far" in str(raised.value)
  assert "more than the 10.0% of --max_problem_share" in str(raised.value)
  assert str(listed) in str(raised.value)
  assert len(list(csv.DictReader(listed.open()))) == 2
  assert not (tmp_path / "clips" / datasets.VERSION).exists()
  # With a larger share the same files pass, and the list moves into the data set.
  summary = prepare(annotations, tmp_path, share=0.6)
  assert sum(summary.problems.values()) == 7 and not listed.exists()


def test_other_files_are_listed_but_do_not_count(videos, tmp_path):
  folder, names, _ = videos
  annotations = dataclasses.replace(
    annotate(folder, names), other_files=(("Thumbs.db", "not a video's name"),)
  )
  summary = prepare(annotations, tmp_path, share=0.0)
  assert not summary.problems
  (row,) = csv.DictReader((summary.path / "problems.csv").open())
  assert (row["path"], row["kind"]) == ("Thumbs.db", "other file")


def test_missing_files_stop_it_before_any_work(videos, tmp_path):
  folder, names, _ = videos
  annotations = annotate(folder, [*names[:2], "gone.mp4", "lost.avi"])
  with pytest.raises(DatasetError, match=r"2 of 4 videos have a problem so far \(2 missing\)"):
    prepare(annotations, tmp_path, share=0.25, engine=None)


def test_a_finished_data_set_is_not_touched(videos, prepared):
  folder, names, _ = videos
  data_dir, summary = prepared
  before = contents(summary.path)
  with pytest.raises(DatasetError, match="is there already, and whole; remove it"):
    prepare(annotate(folder, names), data_dir)
  assert contents(summary.path) == before


def test_two_at_a_time_are_refused(videos, tmp_path):
  folder, names, _ = videos

  def engine(*arguments):
    with pytest.raises(DatasetError, match="another process is preparing"):
      prepare(annotate(folder, names), tmp_path)
    yield from in_this_process(*arguments)

  prepare(annotate(folder, names), tmp_path, engine=engine)


def test_nothing_usable_is_an_error(videos, tmp_path):
  folder, _, broken = videos
  with pytest.raises(DatasetError, match="none of the videos became a record"):
    prepare(annotate(folder, broken), tmp_path)


def test_names_that_tfds_would_not_find_are_refused(videos, tmp_path):
  folder, names, _ = videos
  with pytest.raises(DatasetError, match="'my-clips' can't be the name of a data set"):
    datasets.prepare_dataset(
      annotate(folder, names),
      name="my-clips",
      data_dir=tmp_path,
      engine=in_this_process,
    )


def test_a_full_disk_keeps_what_is_finished(videos, tmp_path, monkeypatch):
  folder, names, _ = videos
  written = []

  class Full(shards.ArrayRecordWriter):
    def write(self, example):
      if len(written) == 3:
        raise RuntimeError("write() failed: No space left on device; writing x; at byte 4096")
      written.append(len(example))
      return super().write(example)

  with monkeypatch.context() as patch:
    patch.setattr(shards, "ArrayRecordWriter", Full)
    with pytest.raises(DatasetError, match="No space left on device; what is finished is kept"):
      prepare(annotate(folder, names), tmp_path)
  made = []
  prepare(annotate(folder, names), tmp_path, engine=functools.partial(stopping_after, 99, made))
  assert len(made) == 4


@pytest.mark.parametrize("shard_bytes, most", [(1 << 40, 1), (20_000, 2), (1, 512)])
def test_shards(videos, shard_bytes, most):
  """A power of two of them, empty ones left out; in order, whatever their size."""
  folder, names, _ = videos
  splits = annotate(folder, names).splits
  planned = shards.plan_shards(splits, shard_bytes, RECIPE)
  assert [video for shard in planned for video in shard.videos] == list(splits["train"])
  assert [shard.number for shard in planned] == sorted({shard.number for shard in planned})
  total = sum((folder / name).stat().st_size for name in names)
  count = 1
  while total > shard_bytes * count and count < 512:
    count *= 2
  assert count >= most and max(shard.number for shard in planned) < count


@pytest.mark.slow
def test_a_split_of_more_than_a_gibibyte(videos, tmp_path):
  """Larger than what TFDS's own builders keep in memory without TensorFlow."""
  content = (videos[0] / "h264.mp4").read_bytes()
  # An atom that players pass over.
  size = 72 << 20
  padding = size.to_bytes(4, "big") + b"free" + bytes(size - 8)
  many = [f"{number}.mp4" for number in range(16)]
  for name in many:
    (tmp_path / name).write_bytes(content + padding)
  summary = prepare(
    annotate(tmp_path, many), tmp_path, engine=engines.on_this_machine(2), size=1 << 28
  )
  metadata = json.loads((summary.path / "dataset_info.json").read_text())
  assert int(metadata["splits"][0]["numBytes"]) > 1 << 30
  records = open_records("clips", str(tmp_path), "train")
  assert len(records) == 16 and records[15]["video"] == content + padding
