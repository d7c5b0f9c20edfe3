"""Small video files, valid and broken, their annotations, and data sets prepared from them."""

import hashlib
import pathlib

import av
import cv2
import numpy as np
import tensorflow_datasets as tfds

from tests.helpers.video_kinds import KINDS, encode, scene
from vswin_jax.data.annotations.common import Annotations, Video
from vswin_jax.data.preparation.dataset import Summary, prepare_dataset
from vswin_jax.data.preparation.shards import write_shard
from vswin_jax.data.preparation.video_to_record import PrepareOptions, prepare_video

CLASSES = ("run", "jump")
OPTIONS = PrepareOptions(CLASSES, max_seconds=60.0)
VALID = ("h264.mp4", "h264.avi", "vp9.webm", "mpeg4.avi", "hevc.mkv", "mjpeg.avi", "vp8.webm")
# Kind of problem -> files that have it.
BROKEN = {
  "missing": ["gone.mp4"],
  "empty": ["empty.mp4"],
  "not a video": ["page.mp4", "picture.mp4"],
  "no video stream": ["sound.mp4"],
  "damaged": ["middle.mp4"],
  "too long": ["long.mp4"],
}


def write_valid(folder: pathlib.Path) -> list[str]:
  """Writes videos of several kinds; returns their names."""
  for name in VALID:
    encode(folder / name, *KINDS[name])
  return list(VALID)


def write_broken(folder: pathlib.Path) -> None:
  """Writes the files of `BROKEN`, except for the missing one."""
  (folder / "empty.mp4").touch()
  (folder / "page.mp4").write_text("<!DOCTYPE html><html>Not found</html>")
  picture = cv2.imencode(".jpg", scene(1)[0])[1]
  (folder / "picture.mp4").write_bytes(picture.tobytes())
  write_audio(folder / "sound.mp4")
  damage_packet(encode(folder / "middle.mp4", *KINDS["h264.mp4"]), 14)
  encode(folder / "long.mp4", *KINDS["mpeg4.mp4"], times=range(0, 26 * 200, 200))


def write_audio(path: pathlib.Path) -> None:
  with av.open(str(path), "w") as container:
    stream = container.add_stream("aac", rate=16000, layout="mono")
    frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
    frame.sample_rate = 16000
    container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def damage_packet(path: pathlib.Path, number: int) -> None:
  """Overwrites one packet of a file so that it can't be decoded."""
  with av.open(str(path)) as container:
    packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
  position, size = packets[number]
  content = bytearray(path.read_bytes())
  content[position : position + size] = b"\xff" * size
  path.write_bytes(content)


def annotate(folder: pathlib.Path, names: list[str], validation: int = 0) -> Annotations:
  """Returns annotations with alternating labels; the last files are those of validation."""
  videos = [
    Video(str(folder / name), video_id(name), (number % 2,), (folder / name).exists())
    for number, name in enumerate(names)
  ]
  num_train = len(videos) - validation
  splits = {"train": by_digest(videos[:num_train])}
  if validation:
    splits["validation"] = by_digest(videos[num_train:])
  return Annotations(class_names=CLASSES, splits=splits)


def video_id(name: str) -> str:
  return name.replace(".", "_")


def by_digest(videos: list[Video]) -> tuple[Video, ...]:
  """Sorts videos by the SHA-256 of their ids, as in a data set."""
  return tuple(sorted(videos, key=lambda video: hashlib.sha256(video.id.encode()).digest()))


def in_process(shards, folder, options, report):
  """A backend without worker processes."""
  for shard in shards:
    results = [prepare_video(video, options) for video in shard.videos]
    for result in results:
      report(result)
    write_shard(folder, shard, results)


def prepare(
  annotations, data_dir, *, backend=in_process, share=1.0, shard_bytes=1, **options
) -> Summary:
  """Prepares the data set `data_dir/clips`."""
  return prepare_dataset(
    annotations,
    name="clips",
    data_dir=data_dir,
    backend=backend,
    max_seconds=OPTIONS.max_seconds,
    shard_bytes=shard_bytes,
    max_problem_share=share,
    **options,
  )


def contents(folder: pathlib.Path) -> dict:
  """Returns the files of a data set, and in place of shards their parsed records.

  The fields of a serialized record have no fixed order.
  """
  found = {
    path.name: path.read_bytes() for path in folder.iterdir() if "array_record" not in path.name
  }
  for split, source in tfds.builder_from_directory(folder).as_data_source().items():
    found[split] = [
      {name: np.asarray(value).tolist() for name, value in record.items()} for record in source
    ]
  return found
