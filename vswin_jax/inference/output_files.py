"""What `vswin_jax.predict` prints and writes."""

import csv
import json
import pathlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import tqdm

from vswin_jax.common.paths import local_path, replacing, write_table
from vswin_jax.data.clips import CROPS, Views
from vswin_jax.data.files import find_videos
from vswin_jax.data.preprocessing import Preprocessing
from vswin_jax.inference.loading import load_model
from vswin_jax.inference.predictor import (
  Prediction,
  iterate_features,
  iterate_predictions,
  top_classes,
  with_views,
)
from vswin_jax.inference.timeline import Timeline, iterate_timelines


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
) -> int:
  """Labels videos, or writes their timelines or features.

  Args:
    model: folder of a trained or converted model.
    paths: files, folders and globs.
    kind: "table", "json" and "csv" print labels; "whole" writes timelines, "pooled" and "map"
      features into `output_dir`.
    views: as in "4x3"; None: the model's own.
    dtype: of the computation; None: the model's own.
    top: classes to name.

  Returns:
    The number of videos that could not be read, or not whole; each is reported on stderr.

  Raises:
    CheckpointError: no model there.
    ValueError: views that can't be cut.
  """
  loaded = load_model(model, **({} if dtype is None else {"dtype": dtype}))
  preprocessing = with_views(loaded.preprocessing, parse_views(views, loaded.preprocessing))
  videos = find_videos(paths)
  arguments = (loaded, videos, preprocessing)
  loading = {"batch_size": batch_size, "num_workers": num_workers}
  if kind in _PRINTERS:
    results = iterate_predictions(*arguments, **loading)
    return _print_labels(_progress(results, len(videos)), _PRINTERS[kind], top)
  folder = local_path(output_dir)
  folder.mkdir(parents=True, exist_ok=True)
  names = dict(zip(videos, _distinct_names(videos)))
  if kind == "whole":
    timelines = iterate_timelines(*arguments, **loading, progress=_progress)
    return _write_timelines(timelines, folder, names, top)
  results = iterate_features(*arguments, kind, **loading)
  return _write_features(_progress(results, len(videos)), folder, names)


def parse_views(text: str | None, preprocessing: Preprocessing) -> Views | None:
  """Views from "CLIPSxCROPS".

  Raises:
    ValueError: something else.
  """
  if text is None:
    return None
  parts = re.fullmatch(r"(\d+)x([135])", text)
  if parts is None or int(parts[1]) == 0:
    raise ValueError(f"--views={text} is not understood; expected CLIPSxCROPS, as in 4x3 or 1x1")
  crops = next(name for name, count in CROPS.items() if count == int(parts[2]))
  own = preprocessing.views
  short_side = preprocessing.clip.size if crops == "three" else own.short_side
  clips = int(parts[1])
  # Several clips of a video are no whole ones.
  whole_frames = own.whole_frames if clips == 1 else 0
  return Views(clips, crops, short_side, whole_frames)


def _progress(results: Iterable, total: int) -> Iterator:
  """Shows progress on stderr, if that is a terminal; leaves nothing there when done."""
  yield from tqdm.tqdm(results, total=total, leave=False, disable=not sys.stderr.isatty())


def _say_failed(path: str, error: str) -> None:
  tqdm.tqdm.write(f"error: {path}: {error}", file=sys.stderr)


def _print_labels(
  predictions: Iterable[Prediction], write: Callable[[Prediction, int, bool], None], top: int
) -> int:
  failed = 0
  is_first = True
  for prediction in predictions:
    if prediction.error:
      failed += 1
      _say_failed(prediction.path, prediction.error)
      continue
    with tqdm.tqdm.external_write_mode():
      write(prediction, top, is_first)
      sys.stdout.flush()
    is_first = False
  return failed


def _print_table(prediction: Prediction, top: int, is_first: bool) -> None:
  if not is_first:
    print()
  print(prediction.path)
  for name, probability in prediction.top(top):
    print(f"  {100 * probability:5.1f} %  {'#' * round(20 * probability):<20}  {name}")


def _print_json(prediction: Prediction, top: int, is_first: bool) -> None:
  del is_first
  best = [{"label": name, "probability": value} for name, value in prediction.top(top)]
  print(json.dumps({"video": prediction.path, "top": best}))


def _print_csv(prediction: Prediction, top: int, is_first: bool) -> None:
  rows = csv.writer(sys.stdout, lineterminator="\n")
  if is_first:
    rows.writerow(["video", "rank", "label", "probability"])
  for rank, (name, probability) in enumerate(prediction.top(top), 1):
    rows.writerow([prediction.path, rank, name, f"{probability:.6f}"])


_PRINTERS = {"table": _print_table, "json": _print_json, "csv": _print_csv}


def _write_timelines(
  timelines: Iterable[Timeline], folder: pathlib.Path, names: dict[str, str], top: int
) -> int:
  from vswin_jax.inference.timeline_plot import draw_timeline

  failed = 0
  for timeline in timelines:
    if timeline.error:
      failed += 1
      _say_failed(timeline.path, timeline.error)
    if np.isnan(timeline.probabilities).all():
      continue
    table, picture = (folder / f"{names[timeline.path]}.timeline.{end}" for end in ("csv", "png"))
    try:
      write_table(
        table,
        ("start_seconds", "end_seconds", "rank", "label", "probability"),
        _timeline_rows(timeline, top),
      )
      with replacing(picture) as path:
        draw_timeline(path, timeline)
    except OSError as error:
      failed += 1
      _say_failed(timeline.path, str(error))
      continue
    tqdm.tqdm.write(f"{timeline.path}: {table}, {picture}")
  return failed


def _timeline_rows(timeline: Timeline, top: int) -> Iterator[tuple]:
  for start, end, values in zip(timeline.start, timeline.end, timeline.probabilities):
    if np.isnan(values).any():
      continue
    for rank, (name, probability) in enumerate(top_classes(values, timeline.labels, top), 1):
      yield f"{start:.3f}", f"{end:.3f}", rank, name, f"{probability:.6f}"


def _write_features(results: Iterable[tuple], folder: pathlib.Path, names: dict[str, str]) -> int:
  failed = 0
  for video, features, error in results:
    if error:
      failed += 1
      _say_failed(video, error)
      continue
    target = folder / f"{names[video]}.npz"
    try:
      with replacing(target) as path, path.open("wb") as file:
        np.savez(file, features=features, video=video)
    except OSError as error:
      failed += 1
      _say_failed(video, str(error))
      continue
    tqdm.tqdm.write(f"{video}: {target} {list(features.shape)}")
  return failed


def _distinct_names(videos: list[str]) -> list[str]:
  """A file name for each video; videos of one name in several folders are numbered."""
  names: dict[str, None] = {}
  for video in videos:
    stem = name = pathlib.Path(video).stem
    number = 1
    while name in names:
      number += 1
      name = f"{stem}-{number}"
    names[name] = None
  return list(names)
