"""Labels, features and timelines of video files, with a loaded model."""

import contextlib
import dataclasses
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence

import jax
import numpy as np
from flax import nnx

from vswin_jax.common.checks import check_at_least
from vswin_jax.data.clips import Views, check_views
from vswin_jax.data.files import Item, clip_batches, find_videos
from vswin_jax.data.pipeline import LoaderOptions
from vswin_jax.data.preprocessing import Preprocessing
from vswin_jax.models.outputs import jitted_view_step, probabilities_of
from vswin_jax.models.parameters import split_model


@dataclasses.dataclass(frozen=True)
class Prediction:
  """What a model says of one video.

  Attributes:
    path: of the video.
    probabilities: float32 `[num_classes]`, the mean over the video's views; they sum to 1, or stand
      each by itself if the model gives several labels. None: see `error`.
    labels: names of the classes, by index.
    error: why the video could not be read; None if it could.
  """

  path: str
  probabilities: np.ndarray | None
  labels: tuple[str, ...]
  error: str | None = None

  def top(self, count: int = 5) -> list[tuple[str, float]]:
    """The most probable classes: (name, probability), best first.

    Raises:
      ValueError: the video could not be read.
    """
    if self.probabilities is None:
      raise ValueError(f"{self.path}: {self.error}")
    return top_classes(self.probabilities, self.labels, count)


def class_names(model: nnx.Module) -> tuple[str, ...]:
  """The names of a model's classes, or "class 0" and so on."""
  return model.labels or tuple(f"class {index}" for index in range(model.config.num_classes))


def top_classes(
  probabilities: np.ndarray, labels: Sequence[str], count: int
) -> list[tuple[str, float]]:
  """The `count` most probable classes: (name, probability), best first."""
  best = np.argsort(-probabilities, kind="stable")[:count]
  return [(labels[index], float(probabilities[index])) for index in best]


def predict(
  model: nnx.Module,
  paths: str | os.PathLike | Iterable[str | os.PathLike],
  *,
  views: Views | None = None,
  batch_size: int = 4,
  num_workers: int = 0,
) -> list[Prediction]:
  """Labels videos.

  Args:
    model: from `load_model`; its own preprocessing is used.
    paths: files, folders and globs.
    views: of each video; None: the model's own.
    batch_size: videos at a time on the device; their views follow each other.
    num_workers: processes that decode, which a script must be ready for (`if __name__ ==
      "__main__":`); 0: threads of this process.

  Returns:
    One prediction a video; those that can't be read carry an error.

  Raises:
    ValueError: views or numbers that do not fit.
  """
  preprocessing = with_views(model.preprocessing, views)
  videos = find_videos(paths)
  return list(
    iterate_predictions(
      model, videos, preprocessing, batch_size=batch_size, num_workers=num_workers
    )
  )


def iterate_predictions(
  model: nnx.Module,
  paths: Sequence[str],
  preprocessing: Preprocessing,
  *,
  batch_size: int,
  num_workers: int,
) -> Iterator[Prediction]:
  """Predictions of videos, each as soon as its batch is done, in order."""
  labels = class_names(model)
  items = [Item(path) for path in paths]
  output = probabilities_of(model.multi_label)
  results = iterate_outputs(
    model, items, preprocessing, output, batch_size=batch_size, num_workers=num_workers
  )
  for item, values, error in results:
    yield Prediction(items[item].path, None if error else values.mean(0), labels, error)


def iterate_features(
  model: nnx.Module,
  paths: Sequence[str],
  preprocessing: Preprocessing,
  output: str,
  *,
  batch_size: int,
  num_workers: int,
) -> Iterator[tuple[str, np.ndarray | None, str | None]]:
  """(path, features, error) of each video, in order.

  Features are float32 `[views, channels]` for the output "pooled", `[views, time, height, width,
  channels]` for "map"; None where there is an error.
  """
  items = [Item(path) for path in paths]
  results = iterate_outputs(
    model, items, preprocessing, output, batch_size=batch_size, num_workers=num_workers
  )
  for item, features, error in results:
    yield items[item].path, None if error else features, error


def iterate_outputs(
  model: nnx.Module,
  items: Sequence[Item],
  preprocessing: Preprocessing,
  output: str,
  *,
  batch_size: int,
  num_workers: int,
) -> Iterator[tuple[int, np.ndarray, str | None]]:
  """Runs a model over items: yields (index, output `[views, ...]`, error or None), in order.

  Args:
    output: a key of `models.outputs.OUTPUTS`.

  Raises:
    ValueError: an unknown output, or numbers that do not fit.
  """
  check_at_least(1, batch_size=batch_size)
  graph, params = split_model(model)
  step = jitted_view_step(graph, output, preprocessing.mean, preprocessing.std)
  batches = clip_batches(
    items,
    preprocessing.clip,
    preprocessing.views,
    batch_size=min(batch_size, max(len(items), 1)),
    options=LoaderOptions(
      num_workers=min(num_workers, len(items)),
      num_threads=1 if num_workers else os.cpu_count() or 1,
    ),
  )
  with contextlib.closing(batches):
    pending = None
    for batch in itertools.chain(batches, [None]):
      outputs = None if batch is None else step(params, batch["video"], batch["position_ids"])
      # Reading the batch before this one lets the device work while the host fetches.
      if pending is not None:
        yield from _rows(*pending)
      pending = batch, outputs


def _rows(batch: dict, outputs: jax.Array) -> Iterator[tuple[int, np.ndarray, str | None]]:
  for item, error, values in zip(batch["item"], batch["error"], np.asarray(outputs)):
    if item >= 0:
      yield int(item), values, error.decode(errors="replace") or None


def with_views(preprocessing: Preprocessing, views: Views | None) -> Preprocessing:
  """Preprocessing with other views; None keeps its own.

  Raises:
    ValueError: crops that do not fit the size of a clip.
  """
  if views is None:
    return preprocessing
  check_views(preprocessing.clip, views)
  return dataclasses.replace(preprocessing, views=views)
