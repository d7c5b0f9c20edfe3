"""Benchmark of video readers: processor time of training clips, and throughput of the pipeline.

The videos are generated: 10 s of 340 x 256 pixels at 30 frames/s, H.264 with a keyframe every 250
frames, and transcoded as by `prepare`. A clip is 32 frames with stride 2, a random box resized to
224 x 224, half of them mirrored.

First, readers run in one process each and take turns. The result is the processor time of all
threads for a clip: the minimum over repetitions, averaged over clips. Pixels are compared. Readers
that can't be imported are skipped. Second, grain loads batches of 8 clips from records on disk.

  python -m benchmarks.input_pipeline --videos=6 --clips=24 --repetitions=5
"""

import concurrent.futures
import contextlib
import dataclasses
import glob
import io
import multiprocessing
import os
import pathlib
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator

import cv2
import numpy as np
from absl import app, flags, logging

from vswin_jax.data import sampling, transforms
from vswin_jax.data.clips import ClipSpec

SECONDS, FPS, HEIGHT, WIDTH = 10, 30, 256, 340
BATCH = 8
SPEC = ClipSpec()
KINDS = ("untouched", "transcoded")


def natural_texture(random: np.random.Generator, size: int) -> np.ndarray:
  """Returns clouds with the spectrum of photographs: uint8 `[size, size, 3]`."""
  frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.rfftfreq(size), indexing="ij"))
  frequency[0, 0] = 1.0
  spectra = np.fft.rfft2(random.normal(size=(3, size, size))) / frequency**1.1
  channels = np.moveaxis(np.fft.irfft2(spectra, s=(size, size)), 0, -1)
  channels = (channels - channels.mean((0, 1))) / channels.std((0, 1))
  gray = channels.mean(-1, keepdims=True)
  return np.clip(128 + 57 * gray + 11 * channels, 0, 255).astype(np.uint8)


def render(seed: int) -> Iterator[np.ndarray]:
  """Yields frames: a panned and zoomed texture, three moving objects, sensor noise."""
  random = np.random.default_rng(seed)
  cv2.setRNGSeed(seed)
  background = natural_texture(random, 1024)
  things = [natural_texture(random, 128)[:size, :size] for size in (40, 60, 90)]
  angle, speed, zoom = random.uniform([0, 0.3, -1e-3], [2 * np.pi, 1.2, 1e-3])
  starts, velocities = random.uniform(30, 170, (3, 2)), random.uniform(-3, 3, (3, 2))
  for number in range(SECONDS * FPS):
    scale = np.exp(zoom * number)
    column, row = 512 + speed * number * np.array([np.cos(angle), np.sin(angle)])
    view = [[scale, 0, column - scale * WIDTH / 2], [0, scale, row - scale * HEIGHT / 2]]
    mapping = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    frame = cv2.warpAffine(background, np.array(view), (WIDTH, HEIGHT), flags=mapping)
    for thing, start, velocity in zip(things, starts, velocities):
      size = len(thing)
      room = np.array([WIDTH - size, HEIGHT - size])
      place = (start + velocity * number) % (2 * room)  # turns back at the borders
      left, top = np.minimum(place, 2 * room - place).astype(int)
      frame[top : top + size, left : left + size] = thing
    noise = cv2.randn(np.empty((HEIGHT, WIDTH, 1), np.int16), 0, 1.0)
    yield np.clip(frame + noise, 0, 255).astype(np.uint8)


def encode(frames: Iterable[np.ndarray], height: int = HEIGHT, width: int = WIDTH) -> bytes:
  """Returns an mp4 file with the usual settings, not made for training."""
  import av

  buffer = io.BytesIO()
  with av.open(buffer, "w", format="mp4") as container:
    stream = container.add_stream("libx264", rate=FPS)
    stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
    stream.options = {"crf": "20", "preset": "medium", "g": "250"}
    for frame in frames:
      container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
    container.mux(stream.encode(None))
  return buffer.getvalue()


def make_videos(seed: int) -> dict[str, bytes]:
  from vswin_jax.data.video.transcoding import Transcoding, transcode

  untouched = encode(render(seed))
  return {"untouched": untouched, "transcoded": transcode(untouched, Transcoding())}


@dataclasses.dataclass(frozen=True)
class Clip:
  """Random choices of `train_clip` for a seed, for readers other than this library."""

  video: int
  seed: int
  indices: np.ndarray
  box: transforms.Box
  flip: bool

  def cut(self, frame: np.ndarray) -> np.ndarray:
    frame = transforms.resize(transforms.crop(frame, self.box), SPEC.size, SPEC.size)
    return transforms.flip(frame) if self.flip else frame


def draw_clip(video: int, seed: int) -> Clip:
  random = np.random.default_rng(seed)
  span = SPEC.num_frames * SPEC.frame_interval
  indices = np.arange(0, span, SPEC.frame_interval)
  indices += sampling.random_start(SECONDS * FPS, span, random)
  box = transforms.random_resized_crop_box(HEIGHT, WIDTH, random)
  return Clip(video, seed, indices, box, random.random() < SPEC.flip_probability)


Reader = Callable[[bytes, Clip], np.ndarray]


def this_library() -> Reader:
  from vswin_jax.data.clips import train_clip

  record = {"num_frames": SECONDS * FPS}
  return lambda video, clip: train_clip(
    record | {"video": video}, SPEC, np.random.default_rng(clip.seed)
  )[0]


def decoding_alone(keep: bool = False) -> Reader:
  """Decodes every frame from the keyframe before the clip to its end with PyAV, no more.

  With `keep`, the reader also returns the clip, so that it can be checked.
  """
  import av

  def read(video: bytes, clip: Clip):
    pictures = []
    with av.open(io.BytesIO(video)) as container:
      stream = container.streams.video[0]
      stream.thread_type = "NONE"
      times = [round(index / FPS / stream.time_base) for index in clip.indices.tolist()]
      container.seek(times[0], stream=stream)
      for frame in container.decode(stream):
        if keep and frame.pts in times:
          pictures.append(clip.cut(frame.to_ndarray(format="rgb24")))
        if frame.pts >= times[-1]:
          break
    return np.stack(pictures) if keep else None

  return read


def opencv() -> Reader:
  def read(video: bytes, clip: Clip):
    options = [cv2.CAP_PROP_N_THREADS, 1]
    capture = cv2.VideoCapture(io.BytesIO(video), cv2.CAP_FFMPEG, options)
    capture.set(cv2.CAP_PROP_POS_FRAMES, int(clip.indices[0]))
    pictures, position = np.empty((len(clip.indices), SPEC.size, SPEC.size, 3), np.uint8), None
    for place, index in enumerate(clip.indices):
      for _ in range(0 if position is None else index - position - 1):
        capture.grab()
      frame, position = capture.read()[1], index
      pictures[place] = cv2.cvtColor(clip.cut(frame), cv2.COLOR_BGR2RGB)
    return pictures

  return read


def decord() -> Reader:
  import decord

  def read(video: bytes, clip: Clip):
    frames = decord.VideoReader(io.BytesIO(video), num_threads=1).get_batch(clip.indices).asnumpy()
    return np.stack([clip.cut(frame) for frame in frames])

  return read


def torchcodec() -> Reader:
  import torch
  from torchcodec.decoders import VideoDecoder

  torch.set_num_threads(1)
  options = {"num_ffmpeg_threads": 1, "seek_mode": "exact", "dimension_order": "NHWC"}

  def read(video: bytes, clip: Clip):
    frames = VideoDecoder(video, **options).get_frames_at(clip.indices.tolist()).data.numpy()
    return np.stack([clip.cut(frame) for frame in frames])

  return read


READERS = {
  "this library": this_library,
  "decoding alone (PyAV)": decoding_alone,
  "OpenCV": opencv,
  "decord": decord,
  "torchcodec": torchcodec,
}


@contextlib.contextmanager
def ffmpeg_of_pyav() -> Iterator[None]:
  """Lets processes started in this context find PyAV's FFmpeg libraries, for torchcodec."""
  import av

  before = os.environ.get("LD_LIBRARY_PATH")
  with tempfile.TemporaryDirectory() as folder:
    for path in glob.glob(str(pathlib.Path(av.__file__).parent.parent / "av.libs" / "*.so*")):
      name = os.path.basename(path)
      os.symlink(path, os.path.join(folder, name))
      if known := re.match(r"(lib(?:av|sw)\w+)-\w+\.so\.(\d+)\.", name):
        os.symlink(path, os.path.join(folder, f"{known[1]}.so.{known[2]}"))
    os.environ["LD_LIBRARY_PATH"] = f"{folder}:{before}" if before else folder
    try:
      yield
    finally:
      os.environ.pop("LD_LIBRARY_PATH")
      if before:
        os.environ["LD_LIBRARY_PATH"] = before


def read_some(name: str, videos: list[dict[str, bytes]], clips: list[Clip]) -> list[np.ndarray]:
  """Returns some clips as arrays, to be compared between readers."""
  reader = decoding_alone(keep=True) if READERS[name] is decoding_alone else READERS[name]()
  return [reader(videos[clip.video][kind], clip) for kind in KINDS for clip in clips[:6]]


def time_clips(
  name: str, kind: str, videos: list[dict[str, bytes]], clips: list[Clip]
) -> np.ndarray:
  """Returns processor seconds of every clip."""
  reader, seconds = READERS[name](), []
  for clip in clips:
    start = time.process_time()
    reader(videos[clip.video][kind], clip)
    seconds.append(time.process_time() - start)
  return np.array(seconds)


def spawn_process() -> concurrent.futures.ProcessPoolExecutor:
  return concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))


def measure_readers(
  videos: list[dict[str, bytes]], clips: list[Clip], repetitions: int
) -> dict[tuple[str, str], float]:
  """Returns processor seconds of a clip by reader and kind of video; prints skipped readers."""
  processes, expected, seconds = {}, None, {}
  print("largest difference of a pixel from this library's, of 255:")
  with contextlib.ExitStack() as stack:
    stack.enter_context(ffmpeg_of_pyav())
    for name in READERS:
      process = stack.enter_context(spawn_process())
      try:
        pictures = process.submit(read_some, name, videos, clips).result()
      except Exception as error:  # not installed, or it crashes
        print(f"  {name}: skipped, {type(error).__name__}: {' '.join(str(error).split())[:150]}")
        continue
      expected = expected or pictures
      differences = [np.abs(a.astype(int) - b) for a, b in zip(pictures, expected)]
      largest, mean = np.max(differences), np.mean(differences)
      print(f"  {name}: {largest} (mean {mean:.3f})", flush=True)
      processes[name] = process
    for _ in range(repetitions):
      for kind in KINDS:
        for name, process in processes.items():
          found = process.submit(time_clips, name, kind, videos, clips).result()
          seconds[name, kind] = np.minimum(seconds.get((name, kind), found), found)
  return {key: float(least.mean()) for key, least in seconds.items()}


def write_records(folder: str, kind: str, videos: list[dict[str, bytes]]) -> None:
  """Prepares the data set `kind` under `folder`."""
  from vswin_jax.data.annotations.common import Annotations, Video
  from vswin_jax.data.preparation.backends import local_processes
  from vswin_jax.data.preparation.dataset import prepare_dataset

  files = pathlib.Path(folder, "files", kind)
  files.mkdir(parents=True)
  entries = []
  for number, kinds in enumerate(videos):
    path = files / f"{number}.mp4"
    path.write_bytes(kinds[kind])
    entries.append(Video(str(path), str(number), (0,), True))
  annotations = Annotations(class_names=("any",), splits={"train": tuple(entries)})
  prepare_dataset(annotations, name=kind, data_dir=pathlib.Path(folder), backend=local_processes(1))


def peak_memory(process: int) -> int:
  """Returns the largest resident memory of a process in bytes."""
  with open(f"/proc/{process}/status") as status:
    line = next(line for line in status if line.startswith("VmHWM"))
  return 1024 * int(line.split()[1])


def processor_seconds(process: int) -> float:
  with open(f"/proc/{process}/stat") as stat:
    user, system = stat.read().rsplit(")", 1)[1].split()[11:13]
  return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def shared_memory() -> int:
  """Returns the bytes in use, including those of other programs."""
  metadata = os.statvfs("/dev/shm")
  return (metadata.f_blocks - metadata.f_bfree) * metadata.f_frsize


@dataclasses.dataclass(frozen=True)
class Throughput:
  """Throughput of a pipeline, and its peak memory in bytes."""

  workers: int
  clips_per_second: float
  clips_per_core_second: float
  parent_memory: int
  worker_memory: int
  shared_memory: int


def run_pipeline(folder: str, kind: str, workers: int, seconds: float) -> Throughput:
  from vswin_jax.data.pipeline import LoaderOptions, train_batches
  from vswin_jax.data.records import open_records

  flags.FLAGS.mark_as_parsed()  # grain reads flags
  shared_before = shared_memory()
  records, options = open_records(kind, folder, "train"), LoaderOptions(workers)
  steps = {"seed": 0, "start_step": 0, "num_steps": 1_000_000}
  batches = train_batches(records, SPEC, batch_size=BATCH, options=options, **steps)
  shared, count = 0, 0
  with contextlib.closing(batches):
    # Use up the batches that were prefetched during startup.
    for _ in range(3 * workers * (options.prefetch_batches + 1)):
      next(batches)
    processes = [process.pid for process in multiprocessing.active_children()]
    everyone = [os.getpid(), *processes]
    start, busy = time.perf_counter(), sum(map(processor_seconds, everyone))
    while time.perf_counter() - start < seconds or count % workers:
      next(batches)["video"][...].max()
      count += BATCH
      shared = max(shared, shared_memory() - shared_before)
    wall = time.perf_counter() - start
    busy = sum(map(processor_seconds, everyone)) - busy
    workers_most = max(peak_memory(process) for process in processes)
  parent_most = peak_memory(os.getpid())
  return Throughput(workers, count / wall, count / busy, parent_most, workers_most, shared)


def measure_pipelines(folder: str, seconds: float, turns: int) -> dict[str, list[Throughput]]:
  """Returns the fastest run with one worker and with two, by kind of video."""
  cases = [(kind, workers) for kind in KINDS for workers in (1, 2)]
  best = {}
  for _ in range(turns):
    for case in cases:
      with spawn_process() as process:
        found = process.submit(run_pipeline, folder, *case, seconds).result()
      best[case] = max(best.get(case, found), found, key=lambda run: run.clips_per_second)
  return {kind: [best[case] for case in cases if case[0] == kind] for kind in KINDS}


def print_readers(seconds: dict[tuple[str, str], float], demand: float) -> None:
  ours = seconds["this library", "untouched"]
  print("\n| reader | videos | CPU ms/clip | clips/s per core | ratio | cores per device |")
  print("|---|---|---|---|---|---|")
  for (name, kind), each in seconds.items():
    print(
      f"| {name} | {kind} | {1e3 * each:.1f} | {1 / each:.1f} | {ours / each:.2f} "
      f"| {demand * each:.1f} |"
    )
  print("ratio: of the rate to that of this library on untouched videos", flush=True)


def print_pipelines(found: dict[str, list[Throughput]], demand: float) -> None:
  columns = ["videos", "workers", "clips/s", "clips/s per busy core", "cores per device"]
  columns += ["parent MiB", "worker MiB", "/dev/shm MiB"]
  print(f"\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
  for kind, rows in found.items():
    for row in rows:
      sizes = (row.parent_memory, row.worker_memory, row.shared_memory)
      print(
        f"| {kind} | {row.workers} | {row.clips_per_second:.1f} | {row.clips_per_core_second:.1f} "
        f"| {demand / row.clips_per_core_second:.1f} | "
        + " | ".join(f"{size / 2**20:,.0f}" for size in sizes)
        + " |"
      )
  for kind, (one, *_, most) in found.items():
    ratio = most.clips_per_second / one.clips_per_second
    print(f"{kind}: {most.workers} workers give {ratio:.2f} times the clips/s of one")


def define_flags() -> None:
  flags.DEFINE_integer("videos", 6, "Videos to generate.", lower_bound=1)
  flags.DEFINE_integer("clips", 24, "Clips per reader.", lower_bound=1)
  flags.DEFINE_integer("repetitions", 5, "Measurements of every clip.", lower_bound=1)
  flags.DEFINE_float("pipeline_seconds", 10.0, "For every pipeline; 0: skip.", lower_bound=0.0)
  flags.DEFINE_integer("pipeline_turns", 2, "Runs of every pipeline; the best counts.")
  flags.DEFINE_float(
    "clips_per_second_per_device", 233.0,
    "Training speed of one device. Default: Swin-B at 1.7 TFLOP a clip, forward and backward, on "
    "a device that reaches 40 % of 989 TFLOP/s in bfloat16.",
  )  # fmt: skip


def main(_):
  logging.set_verbosity(logging.WARNING)
  arguments = flags.FLAGS
  demand = arguments.clips_per_second_per_device
  videos = [make_videos(seed) for seed in range(arguments.videos)]
  for kind in KINDS:
    size = np.mean([len(kinds[kind]) for kinds in videos]) / 1e3
    print(f"{len(videos)} {kind} videos of {size:.0f} kB on average")
  clips = [draw_clip(seed % len(videos), seed) for seed in range(arguments.clips)]
  seconds = measure_readers(videos, clips, arguments.repetitions)
  print_readers(seconds, demand)
  if arguments.pipeline_seconds:
    with tempfile.TemporaryDirectory() as folder:
      for kind in KINDS:
        write_records(folder, kind, videos)
      found = measure_pipelines(folder, arguments.pipeline_seconds, arguments.pipeline_turns)
      print_pipelines(found, demand)
  print(
    f"cores per device: to feed {demand:g} clips/s (--clips_per_second_per_device; by default "
    "Swin-B at 1.7 TFLOP a clip, 40 % of 989 TFLOP/s)"
  )


if __name__ == "__main__":
  define_flags()
  app.run(main)
