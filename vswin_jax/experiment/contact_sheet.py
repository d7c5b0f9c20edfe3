"""Contact sheet: statistics of a data set, and a picture of its training and evaluation inputs."""

import collections
import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterable

import jax
import matplotlib
import numpy as np
from matplotlib.figure import Figure

from vswin_jax.augmentation.augmentation import Augmentation
from vswin_jax.common.messages import shorten
from vswin_jax.data import pipeline
from vswin_jax.data.clips import ClipSpec, Views, describe_views, eval_clips
from vswin_jax.data.records import VideoRecords
from vswin_jax.data.video.decoding import VideoError
from vswin_jax.experiment.report import ACCENT
from vswin_jax.models.normalization import denormalize
from vswin_jax.training.inputs import augment_batch, model_inputs

_FRAMES, _VIEWS = 8, 6
_MAX_NAMED_CLASSES = 16
_LONGEST_ID = 50
# Names of videos and classes may contain "$", which begins a formula.
_STYLE = {
  "font.size": 8,
  "axes.titlesize": 9,
  "axes.titlelocation": "left",
  "text.parse_math": False,
}


@dataclasses.dataclass(frozen=True)
class Statistics:
  """Statistics of the videos of a split.

  Attributes:
    seconds: float64 `[videos]`, 0 where the frame rate is unknown.
    num_bytes: int64 `[videos]`.
    sizes: videos by (height, width) in pixels.
    rates: videos by frames per second.
    class_counts: int64 `[classes]`, videos with each label.
  """

  seconds: np.ndarray
  num_bytes: np.ndarray
  sizes: collections.Counter
  rates: collections.Counter
  class_counts: np.ndarray


def read_statistics(
  records: VideoRecords,
  max_videos: int = 0,
  progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> Statistics:
  """Reads the metadata of the videos of a split.

  Args:
    max_videos: number of videos to read, spread evenly; 0: all.
    progress: wraps the iterable of indices, to show progress.
  """
  count = min(max_videos or len(records), len(records))
  indices = np.linspace(0, len(records) - 1, count).round().astype(int) if count else []
  seconds, num_bytes = [], []
  sizes, rates = collections.Counter(), collections.Counter()
  class_counts = np.zeros(len(records.class_names), np.int64)
  for index in progress(indices):
    record = records[int(index)]
    rate = record["fps_numerator"] / max(record["fps_denominator"], 1)
    seconds.append(record["num_frames"] / rate if rate else 0.0)
    num_bytes.append(len(record["video"]))
    sizes[int(record["height"]), int(record["width"])] += 1
    rates[round(float(rate), 2)] += 1
    np.add.at(class_counts, np.atleast_1d(np.asarray(record["label"], int)), 1)
  return Statistics(np.array(seconds), np.array(num_bytes), sizes, rates, class_counts)


def describe(split: str, num_videos: int, found: Statistics, class_names: tuple[str, ...]) -> str:
  """Returns a summary of a split of `num_videos`, a few lines."""
  read = len(found.seconds)
  lines = [f"{split}: {num_videos:,} videos, {len(class_names):,} classes"]
  if not read:
    return lines[0]
  if read < num_videos:
    lines.append(
      f"  only {read:,} of the videos were read, spread evenly; what follows is of these"
    )
  hours, gigabytes = found.seconds.sum() / 3600, found.num_bytes.sum() / 2**30
  lines.append(
    f"  {hours:.2f} hours, {gigabytes:.2f} GiB; seconds a video: {_spread(found.seconds)}; "
    f"KiB a video: {_spread(found.num_bytes / 1024)}"
  )
  sizes = _most_common(found.sizes, lambda size: f"{size[1]} x {size[0]}")
  lines.append(f"  width x height: {sizes}; frames a second: {_most_common(found.rates, str)}")
  order = np.argsort(found.class_counts, kind="stable")
  few, many = order[0], order[-1]
  empty = int((found.class_counts == 0).sum())
  lines.append(
    f"  videos a class: {found.class_counts[few]} ({class_names[few]}) to "
    f"{found.class_counts[many]} ({class_names[many]}), mean {found.class_counts.mean():.1f}"
    + (f"; {empty} classes have none" if empty else "")
  )
  return "\n".join(lines)


def _spread(values: np.ndarray) -> str:
  low, middle, high = np.percentile(values, [5, 50, 95])
  return f"{middle:.4g} (5 %: {low:.4g}, 95 %: {high:.4g})"


def _most_common(counter: collections.Counter, name: Callable) -> str:
  total = counter.total()
  parts = [f"{name(value)} {100 * count / total:.0f} %" for value, count in counter.most_common(3)]
  return ", ".join(parts) + (f" and {len(counter) - 3} more" if len(counter) > 3 else "")


@dataclasses.dataclass(frozen=True)
class Example:
  """Frames of a training clip and of evaluation views, uint8 `[count, height, width, 3]`."""

  title: str
  training: np.ndarray
  evaluation: np.ndarray


def make_examples(
  records: VideoRecords,
  spec: ClipSpec,
  views: Views,
  augmentation: Augmentation,
  *,
  count: int,
  repeats: int,
  seed: int,
  mean: tuple[float, ...],
  std: tuple[float, ...],
) -> list[Example]:
  """Returns the first training clips, augmented but not normalized, beside their evaluation views.

  Titles name videos that can't be decoded, for which training substitutes another one.
  """
  count = -(-count // repeats) * repeats
  batches = pipeline.train_batches(
    records,
    spec,
    batch_size=count,
    seed=seed,
    start_step=0,
    num_steps=1,
    options=pipeline.LoaderOptions(num_workers=0, num_threads=os.cpu_count() or 1),
    repeats=repeats,
  )
  with contextlib.closing(batches):
    batch = next(batches)
  clips, targets = _augment(batch, jax.random.key(seed), augmentation, mean, std, records)
  examples = []
  for place, (clip, target, failed) in enumerate(zip(clips, targets, batch["failed"])):
    _, index = pipeline.epoch_and_record(place // repeats, len(records), seed)
    try:
      evaluation, _ = eval_clips(records[index], spec, views, np.random.default_rng(seed))
      shown = _some_of_each(evaluation)
    except VideoError:
      shown = np.zeros((1, spec.size, spec.size, 3), np.uint8)
    title = f"{shorten(records.video_id(index), _LONGEST_ID)}: "
    if failed >= 0:
      title += "can't be decoded; another video in its place: "
    title += _name_target(target, records.class_names)
    examples.append(Example(title, _evenly(clip, _FRAMES), shown))
  return examples


def _augment(batch, key, augmentation, mean, std, records) -> tuple[np.ndarray, np.ndarray]:
  """Returns augmented clips, uint8, and their targets."""

  def augment(batch):
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

  inputs = {name: np.asarray(batch[name]) for name in ("video", "label")}
  clips, targets = jax.jit(augment)(inputs)
  return np.asarray(clips), np.asarray(targets)


def _some_of_each(views: np.ndarray) -> np.ndarray:
  """Returns at most `_VIEWS` frames of views `[views, time, height, width, 3]`: the middle frame of
  each view or, of fewer views, several frames each."""
  if len(views) >= _VIEWS:
    return _evenly(views[:, views.shape[1] // 2], _VIEWS)
  return np.concatenate([_evenly(view, _VIEWS // len(views)) for view in views])


def _evenly(pictures: np.ndarray, count: int) -> np.ndarray:
  count = min(count, len(pictures))
  return pictures[np.linspace(0, len(pictures) - 1, count).round().astype(int)]


def _name_target(target: np.ndarray, class_names: tuple[str, ...]) -> str:
  parts = [
    class_names[index] + ("" if target[index] == 1 else f" {target[index]:.2f}")
    for index in np.argsort(-target, kind="stable")[:3]
    if target[index] > 0.01
  ]
  return " + ".join(parts) or "no label"


def draw_contact_sheet(
  path,
  title: str,
  examples: list[Example],
  found: Statistics,
  class_names: tuple[str, ...],
  spec: ClipSpec,
  views: Views,
) -> None:
  """Draws one example a row, and below them the class balance and the lengths of the videos.

  Args:
    path: PNG or JPEG file.
  """
  with matplotlib.rc_context(_STYLE):
    height = 1.15 * len(examples) + 2.4
    figure = Figure(figsize=(14, height), layout="constrained", facecolor="white")
    figure.suptitle(title, fontsize=12, fontweight="bold", x=0.01, ha="left")
    top, bottom = figure.subfigures(2, 1, height_ratios=[1.15 * len(examples), 1.8])
    # The widths of both montages, gaps included.
    columns = top.subplots(len(examples), 2, width_ratios=[_FRAMES, _VIEWS], squeeze=False)
    for example, (left, right) in zip(examples, columns):
      for axes, pictures, count in (
        (left, example.training, _FRAMES),
        (right, example.evaluation, _VIEWS),
      ):
        axes.imshow(_montage(pictures, count))
        axes.axis("off")
      left.set_title(example.title[:100])
    columns[0, 1].set_title(
      f"evaluation: frames of {describe_views(spec, views)} views (clips x crops)"
    )
    balance, lengths = bottom.subplots(1, 2)
    _draw_balance(balance, found.class_counts, class_names)
    lengths.hist(found.seconds, bins=40, color=ACCENT)
    lengths.set_title("Seconds of each video")
    for axes in (balance, lengths):
      axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110, format="png")


def _draw_balance(axes, counts: np.ndarray, class_names: tuple[str, ...]) -> None:
  order = np.argsort(-counts, kind="stable")
  named = len(order) <= _MAX_NAMED_CLASSES
  axes.bar(range(len(order)), counts[order], 0.8 if named else 1.0, color=ACCENT)
  axes.set_title("Videos of each class, the largest first")
  if named:
    axes.set_xticks(
      range(len(order)), [shorten(class_names[index], 16) for index in order], rotation=20
    )
  else:
    axes.set_xlabel("classes")


def _montage(pictures: np.ndarray, count: int) -> np.ndarray:
  """Returns pictures side by side, padded to the width of `count`: uint8 `[height, width, 3]`."""
  _, height, width, _ = pictures.shape
  gap = max(width // 40, 1)
  montage = np.full((height, count * (width + gap), 3), 255, np.uint8)
  for place, picture in enumerate(pictures):
    left = place * (width + gap)
    montage[:, left : left + width] = picture
  return montage
