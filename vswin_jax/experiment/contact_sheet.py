"""Contact sheet: statistics of a data set, and a picture of its training and evaluation inputs."""

import collections
import contextlib
import dataclasses
import os
import sys

import jax
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from vswin_jax.common.messages import shorten
from vswin_jax.data import pipeline
from vswin_jax.data.clips import eval_clips
from vswin_jax.data.records import VideoRecords
from vswin_jax.data.video.decoding import VideoError
from vswin_jax.experiment.config import Settings
from vswin_jax.experiment.report import ACCENT
from vswin_jax.models.normalization import denormalize
from vswin_jax.training.inputs import augment_batch, model_inputs

# Frames shown of a training clip, and of all evaluation views of its video.
_TRAINING, _EVALUATION = 8, 6
# Names of videos and classes may contain "$", which begins a formula.
_STYLE = {
  "font.size": 8,
  "axes.titlesize": 9,
  "axes.titlelocation": "left",
  "axes.spines.top": False,
  "axes.spines.right": False,
  "text.parse_math": False,
}


@dataclasses.dataclass(frozen=True)
class Statistics:
  """Statistics of the videos of a split.

  Attributes:
    seconds: float64 `[videos]`, 0 where the frame rate is unknown.
    num_bytes: int64 `[videos]`.
    sizes: videos by width and height in pixels, as in "340 x 256".
    rates: videos by frames per second.
    class_counts: int64 `[classes]`, videos with each label.
  """

  seconds: np.ndarray
  num_bytes: np.ndarray
  sizes: collections.Counter[str]
  rates: collections.Counter[float]
  class_counts: np.ndarray


def read_statistics(records: VideoRecords, max_videos: int = 0) -> Statistics:
  """Reads the metadata of `max_videos` videos of a split, spread evenly; 0: of all."""
  seconds, num_bytes = [], []
  sizes, rates = collections.Counter(), collections.Counter()
  class_counts = np.zeros(len(records.class_names), np.int64)
  indices = _evenly(np.arange(len(records)), max_videos or len(records))
  for index in tqdm(indices, desc="reading", unit="video", disable=not sys.stderr.isatty()):
    record = records[int(index)]
    rate = record["fps_numerator"] / max(record["fps_denominator"], 1)
    seconds.append(record["num_frames"] / rate if rate else 0.0)
    num_bytes.append(len(record["video"]))
    sizes[f"{record['width']} x {record['height']}"] += 1
    rates[round(float(rate), 2)] += 1
    np.add.at(class_counts, np.atleast_1d(np.asarray(record["label"], int)), 1)
  return Statistics(np.array(seconds), np.array(num_bytes), sizes, rates, class_counts)


def _evenly(items: np.ndarray, count: int) -> np.ndarray:
  count = min(count, len(items))
  return items[np.linspace(0, len(items) - 1, count).round().astype(int)]


def describe(split: str, num_videos: int, found: Statistics, class_names: tuple[str, ...]) -> str:
  """Returns a summary of a split of `num_videos`, a few lines."""
  read = len(found.seconds)
  lines = [f"{split}: {num_videos:,} videos, {len(class_names):,} classes"]
  if not read:
    return lines[0]
  if read < num_videos:
    lines.append(f"  only {read:,} of the videos were read, spread evenly:")
  hours, gigabytes = found.seconds.sum() / 3600, found.num_bytes.sum() / 2**30
  order = np.argsort(found.class_counts, kind="stable")
  few, many = (f"{found.class_counts[one]} ({class_names[one]})" for one in order[[0, -1]])
  lines += [
    f"  {hours:.2f} hours, {gigabytes:.2f} GiB; seconds a video: {_spread(found.seconds)}; "
    f"KiB a video: {_spread(found.num_bytes / 1024)}",
    f"  width x height: {_most_common(found.sizes)}; frames a second: {_most_common(found.rates)}",
    f"  videos a class: {few} to {many}, mean {found.class_counts.mean():.1f}; "
    f"{(found.class_counts == 0).sum()} classes have none",
  ]
  return "\n".join(lines)


def _spread(values: np.ndarray) -> str:
  low, middle, high = np.percentile(values, [5, 50, 95])
  return f"{middle:.4g} (5 %: {low:.4g}, 95 %: {high:.4g})"


def _most_common(counter: collections.Counter) -> str:
  parts = [f"{value} {count / counter.total():.0%}" for value, count in counter.most_common(3)]
  return ", ".join(parts) + (f" and {len(counter) - 3} more" if len(counter) > 3 else "")


@dataclasses.dataclass(frozen=True)
class Example:
  """Frames of a training clip and of evaluation views, uint8 `[count, size, size, 3]`."""

  title: str
  training: np.ndarray
  evaluation: np.ndarray


def make_examples(records: VideoRecords, settings: Settings, count: int) -> list[Example]:
  """Returns the first training clips, augmented but not normalized, beside their evaluation views.

  Titles name videos that can't be decoded, for which training substitutes another one.
  """
  seed, repeats = settings.seed, settings.train.repeats
  batches = pipeline.train_batches(
    records,
    settings.clip,
    batch_size=-(-count // repeats) * repeats,
    seed=seed,
    start_step=0,
    num_steps=1,
    options=pipeline.LoaderOptions(num_workers=0, num_threads=os.cpu_count() or 1),
    repeats=repeats,
  )
  with contextlib.closing(batches):
    batch = next(batches)
  clips, targets = _augment(batch, settings, records)
  examples = []
  for place, (clip, target, failed) in enumerate(zip(clips, targets, batch["failed"])):
    _, index = pipeline.epoch_and_record(place // repeats, len(records), seed)
    random = np.random.default_rng(seed)
    try:
      views, _ = eval_clips(records[index], settings.clip, settings.test, random)
    except VideoError:
      views = np.zeros((_EVALUATION, *clip.shape[1:]), np.uint8)
    named = [
      records.class_names[label] + ("" if target[label] == 1 else f" {target[label]:.2f}")
      for label in np.argsort(-target, kind="stable")[:3]
      if target[label] > 0.01
    ]
    note = "can't be decoded; another video in its place: " if failed >= 0 else ""
    title = f"{shorten(records.video_id(index), 50)}: {note}{' + '.join(named) or 'no label'}"
    evaluation = _evenly(views.reshape(-1, *clip.shape[1:]), _EVALUATION)
    examples.append(Example(title, _evenly(clip, _TRAINING), evaluation))
  return examples


def _augment(
  batch: dict, settings: Settings, records: VideoRecords
) -> tuple[np.ndarray, np.ndarray]:
  """Returns augmented clips, uint8, and their targets."""
  augmentation, mean, std = settings.augmentation, settings.data.mean, settings.data.std

  @jax.jit
  def augment(batch):
    key = jax.random.key(settings.seed)
    pixels, targets = model_inputs(
      augment_batch(batch, key, augmentation),
      key,
      augmentation,
      mean=mean,
      std=std,
      num_classes=len(records.class_names),
      multi_label=records.multi_label,
    )
    return denormalize(pixels, mean, std), targets

  return jax.device_get(augment({name: np.asarray(batch[name]) for name in ("video", "label")}))


def draw_contact_sheet(
  path, title: str, examples: list[Example], found: Statistics, class_names: tuple[str, ...]
) -> None:
  """Draws one example a row, and below them the class balance and the lengths of the videos.

  Args:
    path: PNG or JPEG file.
  """
  with matplotlib.rc_context(_STYLE):
    heights = [1.15 * len(examples), 1.8]
    figure = Figure(figsize=(14, sum(heights) + 0.6), layout="constrained", facecolor="white")
    figure.suptitle(title, fontsize=12, fontweight="bold", x=0.01, ha="left")
    top, bottom = figure.subfigures(2, 1, height_ratios=heights)
    for example, axes in zip(examples, top.subplots(len(examples), squeeze=False)[:, 0]):
      axes.imshow(_side_by_side(example))
      axes.set_title(example.title[:100])
      axes.axis("off")
    balance, lengths = bottom.subplots(1, 2)
    order = np.argsort(-found.class_counts, kind="stable")
    balance.bar(range(len(order)), found.class_counts[order], color=ACCENT)
    balance.set_title("Videos of each class, the largest first")
    names = [shorten(class_names[index], 16) for index in order] if len(order) <= 16 else []
    balance.set_xticks(range(len(names)), names, rotation=20)
    lengths.hist(found.seconds, bins=40, color=ACCENT)
    lengths.set_title("Seconds of each video")
    figure.savefig(path, dpi=110, format="png")


def _side_by_side(example: Example) -> np.ndarray:
  """Returns the frames of training and, after a gap, of evaluation: uint8 `[height, width, 3]`."""
  white = np.full_like(example.training[0], 255)[:, : example.training.shape[2] // 40 + 1]
  frames = [*example.training, *4 * [white], *example.evaluation]
  return np.concatenate([part for frame in frames for part in (frame, white)], axis=1)
