"""Trained models applied to video files."""

import contextlib
import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import numpy as np
from flax import nnx

from vswin_jax.common.checks import check_at_least
from vswin_jax.data.clips import ClipSpec, Views, check_views
from vswin_jax.data.pipeline import LoaderOptions, clip_batches
from vswin_jax.data.preprocessing import Preprocessing
from vswin_jax.data.video_files import find_videos
from vswin_jax.models.outputs import make_view_step, probabilities_of
from vswin_jax.models.parameters import split_model


@dataclasses.dataclass(frozen=True)
class Prediction:
  """Prediction for one video.

  Attributes:
    probabilities: float32 `[num_classes]`, the mean over the views of the video: softmax, or
      sigmoid for a multi-label model. None if the video could not be read.
    labels: class names by index.
    error: why the video could not be read.
  """

  path: str
  probabilities: np.ndarray | None
  labels: tuple[str, ...]
  error: str | None = None

  def top(self, count: int = 5) -> list[tuple[str, float]]:
    """Returns the most probable classes as (name, probability), best first.

    Raises:
      ValueError: the video could not be read.
    """
    if self.probabilities is None:
      raise ValueError(f"{self.path}: {self.error}")
    return top_classes(self.probabilities, self.labels, count)


def top_classes(
  probabilities: np.ndarray, labels: Sequence[str], count: int
) -> list[tuple[str, float]]:
  """Returns the `count` most probable classes as (name, probability), best first."""
  best = np.argsort(-probabilities, kind="stable")[:count]
  return [(labels[index], float(probabilities[index])) for index in best]


@dataclasses.dataclass(frozen=True, eq=False)
class VideoModel:
  """Trained network with its labels and preprocessing, as `load_model` returns it.

  Attributes:
    network: the NNX module, such as a `VideoSwin` or a `VTN`.
    preprocessing: normalization, clips and views.
    labels: class names by index, or None if unknown.
    multi_label: whether a video may have several classes: probabilities are sigmoids of the logits,
      otherwise their softmax.
  """

  network: nnx.Module
  preprocessing: Preprocessing
  labels: tuple[str, ...] | None = None
  multi_label: bool = False
  # Jitted functions by name, so that repeated use compiles once.
  _jitted: dict[str, Callable] = dataclasses.field(default_factory=dict, init=False, repr=False)

  def __call__(self, video: jax.Array, position_ids: jax.Array | None = None) -> jax.Array:
    """Computes float32 logits `[batch, num_classes]`.

    Args:
      video: float `[batch, time, height, width, 3]`, normalized with `preprocessing.mean` and
        `preprocessing.std`.
      position_ids: int `[batch, time]`, frame numbers; only VTN uses them. None: 0, 1, 2, ...
    """
    return self.network(video, position_ids)

  def features(self, video: jax.Array, position_ids: jax.Array | None = None) -> jax.Array:
    """Computes pooled features `[batch, channels]`; arguments as in a call."""
    return self.network.features(video, position_ids)

  def feature_map(self, video: jax.Array, position_ids: jax.Array | None = None) -> jax.Array:
    """Computes features `[batch, time', height', width', channels]`; arguments as in a call."""
    return self.network.feature_map(video, position_ids)

  def predict(
    self,
    videos: str | os.PathLike | Iterable[str | os.PathLike],
    *,
    views: Views | None = None,
    batch_size: int = 4,
    num_workers: int = 0,
  ) -> list[Prediction]:
    """Labels video files: one prediction each, with `error` set if a video could not be read.

    Args:
      videos: files, folders and globs.
      views: views (clips x crops) of each video; None: those of `preprocessing`.
      batch_size: videos per batch; the views of a video run one after the other.
      num_workers: decoding processes. A script that uses them needs the guard `if __name__ ==
        "__main__":`. 0: threads of this process.

    Raises:
      ValueError: invalid views, batch size or number of workers.
    """
    options = {"views": views, "batch_size": batch_size, "num_workers": num_workers}
    return list(iterate_predictions(self, find_videos(videos), **options))

  @property
  def class_names(self) -> tuple[str, ...]:
    """The labels, or "class 0", "class 1", ... if they are unknown."""
    return self.labels or tuple(f"class {i}" for i in range(self.network.config.num_classes))

  def jit(self, name: str, build: Callable[[nnx.GraphDef], Callable]) -> Callable:
    """Returns a jitted function with the parameters of the network bound to its first argument.

    Args:
      name: key under which the compiled function is kept.
      build: from the graph of the network to `function(params, *arrays)`; called once per name.
    """
    graph, params = split_model(self.network)
    if name not in self._jitted:
      self._jitted[name] = jax.jit(build(graph))
    return functools.partial(self._jitted[name], params)

  def view_step(self, output: str) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Returns the jitted step of `models.outputs.make_view_step` with the parameters bound."""
    mean, std = self.preprocessing.mean, self.preprocessing.std
    return self.jit(output, lambda graph: make_view_step(graph, output, mean=mean, std=std))


def iterate_predictions(model: VideoModel, paths: Sequence[str], **options) -> Iterator[Prediction]:
  """Yields the predictions of videos in order; options as in `iterate_outputs`."""
  clips = [(path, None) for path in paths]
  outputs = iterate_outputs(model, clips, probabilities_of(model.multi_label), **options)
  for (values, error), path in zip(outputs, paths):
    yield Prediction(path, None if error else values.mean(0), model.class_names, error)


def iterate_outputs(
  model: VideoModel,
  clips: Sequence[tuple[str, int | None]],
  output: str,
  *,
  spec: ClipSpec | None = None,
  views: Views | None = None,
  batch_size: int,
  num_workers: int,
) -> Iterator[tuple[np.ndarray | None, str | None]]:
  """Runs a model over videos, or over single clips of them.

  Args:
    clips: (path, start), as in `clip_batches`.
    output: a key of `models.outputs.OUTPUTS`.
    spec: how clips are cut; None: the spec of the preprocessing.
    views: views (clips x crops) of each video; None: those of the preprocessing.

  Yields:
    (output `[views, ...]` or None, error or None), in the order of `clips`.

  Raises:
    ValueError: an unknown output, invalid views, batch size or number of workers.
  """
  spec = spec or model.preprocessing.clip
  views = views or model.preprocessing.views
  check_views(spec, views)
  check_at_least(1, batch_size=batch_size)
  step = model.view_step(output)
  batches = clip_batches(
    clips,
    spec,
    views,
    batch_size=min(batch_size, max(len(clips), 1)),
    options=LoaderOptions(
      num_workers=min(num_workers, len(clips)),
      num_threads=1 if num_workers else os.cpu_count() or 1,
    ),
  )
  with contextlib.closing(batches):
    pending = None
    for batch in itertools.chain(batches, [None]):
      outputs = None if batch is None else step(batch["video"], batch["position_ids"])
      # Reading the previous batch lets the device work while the host decodes.
      if pending is not None:
        before, values = pending
        for index, error, value in zip(before["index"], before["error"], np.asarray(values)):
          if index >= 0:
            yield (None, error.decode(errors="replace")) if error else (value, None)
      pending = batch, outputs
