"""Output of `vswin_jax.predict`: printed labels, and files of timelines and features."""

import csv
import functools
import io
import json
import pathlib
import re
import sys
from collections.abc import Iterable, Iterator

import numpy as np
import tqdm

from vswin_jax.common.paths import local_path, replacing, write_table
from vswin_jax.data.clips import CROPS, Views, short_side_of_crops
from vswin_jax.data.preprocessing import Preprocessing
from vswin_jax.data.video_files import find_videos
from vswin_jax.inference.loading import load_model
from vswin_jax.inference.timeline import Timeline, iterate_timelines
from vswin_jax.inference.video_model import (
  Prediction,
  iterate_outputs,
  iterate_predictions,
  top_classes,
)

_CSV_HEADER = ("video", "rank", "label", "probability")
_TIMELINE_HEADER = ("start_seconds", "end_seconds", "rank", "label", "probability")


def predict_files(
  model: str,
  paths: Iterable[str],
  *,
  kind: str,
  views: str | None,
  dtype: str | None,
  output_dir: str,
  top: int,
  batch_size: int,
  num_workers: int,
) -> bool:
  """Labels videos, or writes their timelines or features.

  Args:
    model: folder of a trained or converted model.
    paths: files, folders and globs.
    kind: "table", "json" and "csv" print labels; "whole" writes timelines, "pooled" and "map"
      features into `output_dir`.
    views: clips x crops, as in "4x3"; None: those of the model.
    dtype: dtype of the computation; None: that of the model.
    top: number of classes to name.

  Returns:
    Whether all videos were read completely; those that were not are reported on stderr.

  Raises:
    CheckpointError: there is no model.
    ValueError: invalid views.
  """
  loaded = load_model(model, **({"dtype": dtype} if dtype else {}))
  videos = find_videos(paths)
  options = {
    "views": parse_views(views, loaded.preprocessing),
    "batch_size": batch_size,
    "num_workers": num_workers,
  }
  if kind in _FORMATS:
    if kind == "csv":
      tqdm.tqdm.write(",".join(_CSV_HEADER))
    predictions = _progress(iterate_predictions(loaded, videos, **options), len(videos))
    results = (
      (one.error, None if one.error else functools.partial(_FORMATS[kind], one, top))
      for one in predictions
    )
  else:
    folder = local_path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    stems = [folder / name for name in _distinct_names(videos)]
    if kind == "whole":
      timelines = iterate_timelines(loaded, videos, **options, progress=_progress)
      results = (
        (timeline.error, functools.partial(_write_timeline, timeline, top, stem))
        for timeline, stem in zip(timelines, stems)
      )
    else:
      outputs = iterate_outputs(loaded, [(video, None) for video in videos], kind, **options)
      results = (
        (error, None if error else functools.partial(_write_features, features, video, stem))
        for (features, error), video, stem in zip(_progress(outputs, len(videos)), videos, stems)
      )
  success = True
  for video, (error, write) in zip(videos, results):
    errors, text = [error] if error else [], None
    try:
      text = write and write()
    except OSError as failure:
      errors.append(str(failure))
    for message in errors:
      success = False
      tqdm.tqdm.write(f"error: {video}: {message}", file=sys.stderr)
    if text:
      tqdm.tqdm.write(text)
      sys.stdout.flush()
  return success


def parse_views(text: str | None, preprocessing: Preprocessing) -> Views | None:
  """Returns the views that "CLIPSxCROPS" describes, or None for None.

  Raises:
    ValueError: any other text.
  """
  if text is None:
    return None
  parts = re.fullmatch(r"(\d+)x([135])", text)
  if parts is None or int(parts[1]) == 0:
    raise ValueError(f"invalid --views={text}; expected CLIPSxCROPS, as in 4x3 or 1x1")
  clips = int(parts[1])
  crops = next(name for name, count in CROPS.items() if count == int(parts[2]))
  own = preprocessing.views
  short_side = short_side_of_crops(crops, preprocessing.clip.size, own.short_side)
  # Only a single clip can cover the whole video.
  return Views(clips, crops, short_side, own.whole_frames if clips == 1 else 0)


def _progress(results: Iterable, total: int) -> Iterator:
  """Shows progress on stderr if that is a terminal, and removes it at the end."""
  yield from tqdm.tqdm(results, total=total, leave=False, disable=not sys.stderr.isatty())


def _table(prediction: Prediction, top: int) -> str:
  lines = [prediction.path]
  for name, probability in prediction.top(top):
    lines.append(f"  {100 * probability:5.1f} %  {'#' * round(20 * probability):<20}  {name}")
  return "\n".join([*lines, ""])


def _json_line(prediction: Prediction, top: int) -> str:
  best = [{"label": name, "probability": value} for name, value in prediction.top(top)]
  return json.dumps({"video": prediction.path, "top": best})


def _csv_lines(prediction: Prediction, top: int) -> str:
  text = io.StringIO()
  rows = csv.writer(text, lineterminator="\n")
  for rank, (name, probability) in enumerate(prediction.top(top), 1):
    rows.writerow([prediction.path, rank, name, f"{probability:.6f}"])
  return text.getvalue().removesuffix("\n")


_FORMATS = {"table": _table, "json": _json_line, "csv": _csv_lines}


def _write_timeline(timeline: Timeline, top: int, stem: pathlib.Path) -> str | None:
  from vswin_jax.inference.timeline_plot import draw_timeline

  if np.isnan(timeline.probabilities).all():
    return None
  table, picture = (stem.with_name(f"{stem.name}.timeline.{end}") for end in ("csv", "png"))
  write_table(table, _TIMELINE_HEADER, _timeline_rows(timeline, top))
  with replacing(picture) as path:
    draw_timeline(path, timeline)
  return f"{timeline.path}: {table}, {picture}"


def _timeline_rows(timeline: Timeline, top: int) -> Iterator[tuple]:
  for start, end, values in zip(timeline.start, timeline.end, timeline.probabilities):
    if np.isnan(values).any():
      continue
    for rank, (name, probability) in enumerate(top_classes(values, timeline.labels, top), 1):
      yield f"{start:.3f}", f"{end:.3f}", rank, name, f"{probability:.6f}"


def _write_features(features: np.ndarray, video: str, stem: pathlib.Path) -> str:
  target = stem.with_name(f"{stem.name}.npz")
  with replacing(target) as path, path.open("wb") as file:
    np.savez(file, features=features, video=video)
  return f"{video}: {target} {list(features.shape)}"


def _distinct_names(videos: list[str]) -> list[str]:
  """Returns a file name per video, numbered where videos in several folders share a name."""
  names: dict[str, None] = {}
  for video in videos:
    stem = name = pathlib.Path(video).stem
    number = 1
    while name in names:
      number += 1
      name = f"{stem}-{number}"
    names[name] = None
  return list(names)
