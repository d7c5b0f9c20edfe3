"""Small video files, sound and broken, and what annotations say of them."""

import hashlib
import pathlib

import av
import cv2
import numpy as np

from tests.helpers.video_kinds import (
  KINDS,
  encode,
  scene,
)
from vswin_jax.data.annotations.common import Annotations, Video

CLASSES = ("run", "jump")
SOUND = ("h264.mp4", "h264.avi", "vp9.webm", "mpeg4.avi", "hevc.mkv", "mjpeg.avi", "vp8.webm")
# Kind of problem -> files that have it.
BROKEN = {
  "missing": ["gone.mp4"],
  "empty": ["empty.mp4"],
  "not a video": ["page.mp4", "picture.mp4"],
  "no video stream": ["sound.mp4"],
  "damaged": ["middle.mp4"],
  "too long": ["long.mp4"],
}


def write_sound(folder: pathlib.Path, copies: int = 1) -> list[str]:
  """Videos of several kinds; the names of all copies of them."""
  names = []
  for name in SOUND:
    source = encode(folder / name, *KINDS[name])
    names.append(name)
    for copy in range(1, copies):
      names.append(f"{source.stem}_{copy}{source.suffix}")
      (folder / names[-1]).write_bytes(source.read_bytes())
  return names


def write_broken(folder: pathlib.Path) -> None:
  """One file for every name in `BROKEN`, but for the missing one."""
  (folder / "empty.mp4").touch()
  (folder / "page.mp4").write_text("<!DOCTYPE html><html>Not found</html>")
  picture = cv2.imencode(".jpg", scene(1)[0])[1]
  (folder / "picture.mp4").write_bytes(picture.tobytes())
  write_silence(folder / "sound.mp4")
  damage_packet(encode(folder / "middle.mp4", *KINDS["h264.mp4"]), 14)
  encode(folder / "long.mp4", *KINDS["mpeg4.mp4"], times=range(0, 26 * 200, 200))


def write_silence(path: pathlib.Path) -> None:
  with av.open(str(path), "w") as container:
    stream = container.add_stream("aac", rate=16000, layout="mono")
    frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
    frame.sample_rate = 16000
    container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def damage_packet(path: pathlib.Path, number: int) -> None:
  """Overwrites one packet of a file, so that it can't be decoded."""
  with av.open(str(path)) as container:
    packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
  position, size = packets[number]
  content = bytearray(path.read_bytes())
  content[position : position + size] = b"\xff" * size
  path.write_bytes(content)


def annotate(folder: pathlib.Path, names: list[str], validation: int = 0) -> Annotations:
  """Says that videos belong to the classes in turn; the last ones to validation."""
  videos = [
    Video(str(folder / name), name.replace(".", "_"), (number % 2,), (folder / name).exists())
    for number, name in enumerate(names)
  ]
  divided = len(videos) - validation
  splits = {"train": by_id(videos[:divided])}
  if validation:
    splits["validation"] = by_id(videos[divided:])
  return Annotations(class_names=CLASSES, splits=splits)


def by_id(videos: list[Video]) -> tuple[Video, ...]:
  """Videos in the order in which a data set holds them."""
  return tuple(sorted(videos, key=lambda video: hashlib.sha256(video.id.encode()).digest()))
