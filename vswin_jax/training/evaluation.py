"""Scores of a model over a split: every video once, all its views averaged."""

import dataclasses
import functools
import types
from collections.abc import Callable, Iterable

import jax
import numpy as np

from vswin_jax.training.sharding import batch_sharding, put_batch, replicated


class EvaluationError(ValueError):
  """An evaluation without a result; the message says why."""


# Scores of an evaluation, by field, in words.
SCORES = types.MappingProxyType(
  {
    "top1": "top-1",
    "top5": "top-5",
    "mean_class": "mean class",
    "mean_average_precision": "mean average precision",
  }
)


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """Result of `evaluate`; None: what does not fit the kind of labels.

  Attributes:
    predictions: rows (record, its labels, prediction, probability of the prediction), by record;
      the prediction is the most probable class.
    failed: records that could not be decoded and count nowhere.
    top1: of videos with one label: share of those whose most probable class is it; likewise `top5`.
    mean_class: mean over the classes present of the share of their videos that are right.
    confusion: int `[classes (label), classes (prediction)]`, videos.
    mean_average_precision: of videos with any number of labels: the mean of `average_precision`
      over the classes present.
    average_precision: float64 `[classes]`, see `average_precisions`.
    positives: int `[classes]`: videos with this label, among others.
  """

  predictions: list[tuple[int, tuple[int, ...], int, float]]
  failed: list[int]
  top1: float | None = None
  top5: float | None = None
  mean_class: float | None = None
  confusion: np.ndarray | None = None
  mean_average_precision: float | None = None
  average_precision: np.ndarray | None = None
  positives: np.ndarray | None = None

  @property
  def multi_label(self) -> bool:
    return self.average_precision is not None

  @functools.cached_property
  def class_accuracies(self) -> np.ndarray:
    """Share of the videos of each class that are right: float64 `[classes]`, NaN: it has none."""
    return _class_accuracies(self.confusion)

  @functools.cached_property
  def errors(self) -> np.ndarray:
    """The confusion without what is right, likewise."""
    return self.confusion - np.diag(self.confusion.diagonal())

  def scalars(self) -> dict[str, float]:
    """The scores that there are, by field."""
    scores = {name: getattr(self, name) for name in SCORES}
    return {name: value for name, value in scores.items() if value is not None}

  def describe(self) -> str:
    """The scores in words, one line."""
    return "  ".join(
      f"{SCORES[name]} {100 * value:.2f} %" for name, value in self.scalars().items()
    )


def jit_eval_step(step: Callable, mesh: jax.sharding.Mesh) -> Callable:
  """Jits an evaluation step over batches from `data.pipeline.eval_batches`.

  Returns:
    `step(params, batch)` -> the batch with "probabilities" `[batch, num_classes]` in place of
    "video" and "position_ids", whole on every host.
  """

  def run(params: dict, batch: dict) -> dict:
    metadata = dict(batch)
    inputs = metadata.pop("video"), metadata.pop("position_ids")
    return metadata | {"probabilities": step(params, *inputs)}

  return jax.jit(run, out_shardings=replicated(mesh))


def evaluate(
  eval_step: Callable,
  versions: dict[str, dict],
  batches: Iterable[dict],
  num_classes: int,
  mesh: jax.sharding.Mesh,
  check_stop: Callable[[], None] = lambda: None,
) -> dict[str, Evaluation]:
  """Evaluates several versions of the parameters in one pass over the videos.

  Args:
    eval_step: from `jit_eval_step`.
    versions: parameters by name, such as those trained and their moving average.
    batches: from `data.pipeline.eval_batches`.
    check_stop: called before each batch; what it raises ends the evaluation.

  Returns:
    The evaluation of each version, under its name.

  Raises:
    EvaluationError: no video could be decoded.
  """
  sharding = batch_sharding(mesh)
  columns: dict[str, dict[str, list]] = {name: {} for name in versions}
  pending: dict[str, dict] = {}

  def collect():
    for version, outputs in pending.items():
      for name, value in outputs.items():
        columns[version].setdefault(name, []).append(np.asarray(value))

  for batch in batches:
    check_stop()
    batch = put_batch(batch, sharding)
    outputs = {name: eval_step(params, batch) for name, params in versions.items()}
    # Reading the batch before this one lets the device work while the host fetches.
    collect()
    pending = outputs
  collect()
  return {
    name: summarize(
      **{column: np.concatenate(parts) for column, parts in parts_by_column.items()},
      num_classes=num_classes,
    )
    for name, parts_by_column in columns.items()
  }


def summarize(
  *,
  probabilities: np.ndarray,
  label: np.ndarray,
  record: np.ndarray,
  failed: np.ndarray,
  weight: np.ndarray,
  num_classes: int,
) -> Evaluation:
  """Scores of probabilities `[videos, classes]`.

  Args:
    label: int `[videos]`, or 0 and 1 `[videos, classes]` where videos have any number of labels.
    record: index of each video.
    failed: index of each video that could not be decoded, else -1.
    weight: 0 for rows that do not count.

  Raises:
    EvaluationError: no row counts, or no video has a label.
  """
  counted = weight > 0
  if not counted.any():
    raise EvaluationError("no video of the evaluation split could be decoded; check the data set")
  probabilities, label, record = probabilities[counted], label[counted], record[counted]
  order = np.argsort(-probabilities, axis=-1, kind="stable")
  multi_label = label.ndim == 2
  if multi_label:
    scores = _scores_of_several_labels(probabilities, label)
    labels = [np.flatnonzero(row) for row in label]
  else:
    scores = _scores_of_one_label(order, label, num_classes)
    labels = label[:, None]
  return Evaluation(
    predictions=sorted(
      (int(r), tuple(map(int, wanted)), int(got), float(p[got]))
      for r, wanted, got, p in zip(record, labels, order[:, 0], probabilities)
    ),
    failed=sorted(map(int, failed[failed >= 0])),
    **scores,
  )


def _scores_of_one_label(order: np.ndarray, label: np.ndarray, num_classes: int) -> dict:
  """Fields of `Evaluation`.

  Args:
    order: classes by falling probability, int `[videos, classes]`.
    label: int `[videos]`.
  """
  prediction = order[:, 0]
  confusion = np.zeros((num_classes, num_classes), np.int64)
  np.add.at(confusion, (label, prediction), 1)
  return {
    "top1": float((prediction == label).mean()),
    "top5": float((order[:, :5] == label[:, None]).any(-1).mean()),
    "mean_class": float(np.nanmean(_class_accuracies(confusion))),
    "confusion": confusion,
  }


def _class_accuracies(confusion: np.ndarray) -> np.ndarray:
  total = confusion.sum(1)
  return np.where(total > 0, confusion.diagonal() / np.maximum(total, 1), np.nan)


def _scores_of_several_labels(probabilities: np.ndarray, label: np.ndarray) -> dict:
  """Fields of `Evaluation`.

  Args:
    label: 0 and 1 `[videos, classes]`, like the probabilities.

  Raises:
    EvaluationError: no video has a label.
  """
  precisions, positives = average_precisions(probabilities, label), label.sum(0, dtype=np.int64)
  if not positives.any():
    raise EvaluationError("no video of the evaluation split has a label; check the data set")
  return {
    "mean_average_precision": float(precisions[positives > 0].mean()),
    "average_precision": precisions,
    "positives": positives,
  }


def average_precisions(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Area under the precision-recall curve of every class: float64 `[classes]`.

  The sum of precision times gain in recall over all thresholds between different scores, without
  interpolation, as scikit-learn's `average_precision_score`; videos of the same score come at once.

  Args:
    scores: `[videos, classes]`, the higher the surer.
    labels: 0 and 1, of the same shape.

  Returns:
    NaN for classes without a video.
  """
  precisions = np.full(scores.shape[1], np.nan)
  for number, (score, is_label) in enumerate(zip(scores.T, labels.T)):
    positives = is_label.sum(dtype=np.int64)
    if not positives:
      continue
    order = np.argsort(-score, kind="stable")
    last_of_ties = np.append(np.flatnonzero(np.diff(score[order])), len(order) - 1)
    found = is_label[order].cumsum(dtype=np.int64)[last_of_ties]
    gains = np.diff(found, prepend=0) / positives
    precisions[number] = (gains * found / (last_of_ties + 1)).sum()
  return precisions
