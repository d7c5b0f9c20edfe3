"""Benchmark of the settings of transcoding: file size, PSNR, encoding and decoding time.

The videos are those of `input_pipeline.py`, at 340 x 256 and enlarged to 1280 x 720 pixels. Times
are processor time of one core. For a training clip (32 frames of 224 x 224) the settings take
turns, and the shortest time of each clip counts.

  python -m benchmarks.transcoding --videos=3 --clips=6 --turns=3
"""

import time

import cv2
import numpy as np
from absl import app, flags

from benchmarks.input_pipeline import SPEC, encode, render
from vswin_jax.data.clips import train_clip
from vswin_jax.data.video.decoding import decode_frames, probe
from vswin_jax.data.video.transcoding import Transcoding, transcode

_VIDEOS = flags.DEFINE_integer("videos", 3, "Videos of each size.", lower_bound=1)
_CLIPS = flags.DEFINE_integer("clips", 6, "Clips of each video.", lower_bound=1)
_TURNS = flags.DEFINE_integer("turns", 3, "Measurements of each clip.", lower_bound=1)

# Flags of `vswin_jax.prepare` -> settings; None keeps the files.
SMALL = {
  "none": None,
  "--transcode=256": Transcoding(256),
  "--transcode=256 --keyframe_interval=16": Transcoding(256, keyframe_interval=16),
  "--transcode=256 --keyframe_interval=64": Transcoding(256, keyframe_interval=64),
  "--transcode=256 --crf=20": Transcoding(256, crf=20),
  "--transcode=256 --crf=26": Transcoding(256, crf=26),
  "--transcode=256 --preset=veryfast": Transcoding(256, preset="veryfast"),
}
LARGE = {
  "none": None,
  "--transcode=256": Transcoding(256),
  "--transcode=320": Transcoding(320),
  "--transcode=340": Transcoding(340),
}


def enlarged(seed: int):
  for frame in render(seed):
    yield cv2.resize(frame, (1280, 720), interpolation=cv2.INTER_CUBIC)


def timed_transcode(source: bytes, options: Transcoding | None) -> tuple[bytes, float]:
  """Returns a transcoded video, and the processor seconds that it took."""
  begin = time.process_time()
  video = source if options is None else transcode(source, options)
  return video, time.process_time() - begin


def psnr(video: bytes, source: bytes) -> float:
  """Returns the peak signal-to-noise ratio to the resized source, in dB."""
  metadata = probe(video)
  size = (metadata.width, metadata.height)
  numbers = range(0, metadata.num_frames, 10)
  expected = decode_frames(
    source, numbers, lambda image: cv2.resize(image, size, interpolation=cv2.INTER_AREA)
  )
  error = decode_frames(video, numbers).astype(np.float64) - expected
  return 10 * np.log10(255**2 / max((error**2).mean(), 1e-9))


def clip_seconds(videos: list[bytes], clips: int) -> list[float]:
  """Returns processor seconds of every training clip of every video."""
  seconds = []
  for video in videos:
    metadata = probe(video)
    record = {"video": video, "num_frames": metadata.num_frames}
    for seed in range(clips):
      begin = time.process_time()
      train_clip(record, SPEC, np.random.default_rng(seed))
      seconds.append(time.process_time() - begin)
  return seconds


def measure(title: str, sources: list[bytes], ways: dict[str, Transcoding | None]) -> None:
  made = {name: [timed_transcode(source, way) for source in sources] for name, way in ways.items()}
  least = {name: [np.inf] for name in ways}
  for _ in range(_TURNS.value):
    for name, videos in made.items():
      seconds = clip_seconds([video for video, _ in videos], _CLIPS.value)
      least[name] = np.minimum(least[name], seconds)
  print(f"\n| {title} | KB | PSNR, dB | s to encode | ms a clip | clips/s per core | speed |")
  print("|---|---|---|---|---|---|---|")
  base = np.mean(least["none"])
  for name, videos in made.items():
    size = np.mean([len(video) for video, _ in videos]) / 1000
    is_new = ways[name] is not None
    quality = np.mean([psnr(video, source) for (video, _), source in zip(videos, sources)])
    spent = np.mean([seconds for _, seconds in videos])
    clip = np.mean(least[name])
    print(
      f"| {f'`{name}`' if is_new else 'as they are'} | {size:.0f} | "
      f"{f'{quality:.1f}' if is_new else ''} | {f'{spent:.2f}' if is_new else ''} | "
      f"{1000 * clip:.1f} | {1 / clip:.0f} | {base / clip:.1f}x |",
      flush=True,
    )


def main(_):
  seeds = range(_VIDEOS.value)
  measure("340 x 256", [encode(render(seed)) for seed in seeds], SMALL)
  measure("1280 x 720", [encode(enlarged(seed), 720, 1280) for seed in seeds], LARGE)


if __name__ == "__main__":
  app.run(main)
