"""What `vswin_jax.predict` prints and writes."""

import csv
import json
import pathlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import tqdm
from flax import nnx

from vswin_jax.data.clips import Views
from vswin_jax.data.preprocessing import Preprocessing
from vswin_jax.loading import load_model
from vswin_jax.prediction import (
  Prediction,
  Timeline,
  expand,
  iterate_features,
  iterate_predictions,
  iterate_timelines,
  top_classes,
  with_views,
)

_CROPS = {1: "center", 3: "three"}


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
  videos = expand(paths)
  loading = {"batch_size": batch_size, "num_workers": num_workers}
  if kind in ("table", "json", "csv"):
    return _print_labels(loaded, videos, preprocessing, _PRINTERS[kind], top, loading)
  folder = pathlib.Path(output_dir).expanduser()
  folder.mkdir(parents=True, exist_ok=True)
  names = dict(zip(videos, _distinct_names(videos)))
  if kind == "whole":
    return _write_timelines(loaded, videos, preprocessing, folder, names, top, loading)
  return _write_features(loaded, videos, preprocessing, kind, folder, names, loading)


def parse_views(text: str | None, preprocessing: Preprocessing) -> Views | None:
  """Views from "CLIPSxCROPS".

  Raises:
    ValueError: something else.
  """
  if text is None:
    return None
  parts = re.fullmatch(r"(\d+)x([13])", text)
  if parts is None or int(parts[1]) == 0:
    raise ValueError(f"--views={text} is not understood; expected CLIPSxCROPS, as in 4x3 or 1x1")
  crops = _CROPS[int(parts[2])]
  own = preprocessing.views
  short_side = preprocessing.clip.size if crops == "three" else own.short_side
  return Views(int(parts[1]), crops, short_side)


def _progress(results: Iterable, total: int) -> Iterator:
  """Shows progress on stderr; leaves nothing there when done."""
  yield from tqdm.tqdm(
    results, total=total, unit="video", leave=False, disable=not sys.stderr.isatty()
  )


def _say_failed(path: str, error: str) -> int:
  tqdm.tqdm.write(f"error: {path}: {error}", file=sys.stderr)
  return 1


def _print_labels(
  model: nnx.Module,
  videos: list[str],
  preprocessing: Preprocessing,
  write: Callable[[Prediction, int, bool], None],
  top: int,
  loading: dict,
) -> int:
  failed = 0
  is_first = True
  for prediction in _progress(
    iterate_predictions(model, videos, preprocessing, **loading), len(videos)
  ):
    if prediction.error:
      failed += _say_failed(prediction.path, prediction.error)
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
  print(json.dumps({"video": prediction.path, "top": best}, ensure_ascii=False))


def _print_csv(prediction: Prediction, top: int, is_first: bool) -> None:
  rows = csv.writer(sys.stdout, lineterminator="\n")
  if is_first:
    rows.writerow(["video", "rank", "label", "probability"])
  for rank, (name, probability) in enumerate(prediction.top(top), 1):
    rows.writerow([prediction.path, rank, name, f"{probability:.6f}"])


_PRINTERS = {"table": _print_table, "json": _print_json, "csv": _print_csv}


def _write_timelines(
  model: nnx.Module,
  videos: list[str],
  preprocessing: Preprocessing,
  folder: pathlib.Path,
  names: dict[str, str],
  top: int,
  loading: dict,
) -> int:
  from vswin_jax.timeline import write_timeline

  failed = 0
  timelines = iterate_timelines(model, videos, preprocessing, **loading)
  for timeline in _progress(timelines, len(videos)):
    if timeline.error:
      failed += _say_failed(timeline.path, timeline.error)
    if np.isnan(timeline.probabilities).all():
      continue
    table, picture = (folder / f"{names[timeline.path]}.timeline.{end}" for end in ("csv", "png"))
    _write_whole(table, lambda path, timeline=timeline: _write_rows(path, timeline, top))
    _write_whole(picture, lambda path, timeline=timeline: write_timeline(path, timeline))
    tqdm.tqdm.write(f"{timeline.path}: {table}, {picture}")
  return failed


def _write_rows(path: pathlib.Path, timeline: Timeline, top: int) -> None:
  with path.open("w", newline="", encoding="utf-8") as file:
    rows = csv.writer(file)
    rows.writerow(["start_seconds", "end_seconds", "rank", "label", "probability"])
    for start, end, values in zip(timeline.start, timeline.end, timeline.probabilities):
      if np.isnan(values).any():
        continue
      for rank, (name, probability) in enumerate(top_classes(values, timeline.labels, top), 1):
        rows.writerow([f"{start:.3f}", f"{end:.3f}", rank, name, f"{probability:.6f}"])


def _write_features(
  model: nnx.Module,
  videos: list[str],
  preprocessing: Preprocessing,
  output: str,
  folder: pathlib.Path,
  names: dict[str, str],
  loading: dict,
) -> int:
  failed = 0
  results = iterate_features(model, videos, preprocessing, output, **loading)
  for path, features, error in _progress(results, len(videos)):
    if error:
      failed += _say_failed(path, error)
      continue
    target = folder / f"{names[path]}.npz"

    def write(temporary: pathlib.Path, features=features, path=path) -> None:
      with temporary.open("wb") as file:
        np.savez(file, features=features, video=path)

    _write_whole(target, write)
    tqdm.tqdm.write(f"{path}: {target} {list(features.shape)}")
  return failed


def _write_whole(path: pathlib.Path, write: Callable[[pathlib.Path], None]) -> None:
  """Writes a file that appears when it is complete."""
  temporary = path.with_name(f"{path.name}.tmp")
  write(temporary)
  temporary.replace(path)


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
