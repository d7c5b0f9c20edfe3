"""Evaluation of a model on a split: scores of predictions averaged over the views of each video."""

import dataclasses
import functools
import itertools
import types
from collections.abc import Callable, Iterable

import jax
import numpy as np
from flax import nnx

from vswin_jax.models.outputs import make_view_step, probabilities_of
from vswin_jax.training.sharding import batch_sharding, put_batch


class EvaluationError(ValueError):
  """Raised when no score can be computed."""


# Names of the scores for users, by key of `Evaluation.scores`.
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
  """Result of an evaluation. Arrays for another kind of labels (one, or any number) are None.

  Attributes:
    predictions: rows (record, its labels, prediction, probability of the prediction), by record;
      the prediction is the most probable class.
    failed: records that could not be decoded, which are excluded from all scores.
    scores: of videos with one label, the shares whose label is the most probable class ("top1") or
      among the five most probable ("top5"), and the mean over classes of the former ("mean_class");
      with any number of labels, the mean of `average_precision` over classes that have videos
      ("mean_average_precision").
    confusion: one label: int `[classes (label), classes (prediction)]`, number of videos.
    class_accuracies: one label: float64 `[classes]`, share of correct videos; NaN without videos.
    average_precision: any number of labels: float64 `[classes]`, see `average_precisions`.
    positives: any number of labels: int `[classes]`, number of videos with the label.
  """

  predictions: list[tuple[int, tuple[int, ...], int, float]]
  failed: list[int]
  scores: dict[str, float]
  confusion: np.ndarray | None = None
  class_accuracies: np.ndarray | None = None
  average_precision: np.ndarray | None = None
  positives: np.ndarray | None = None

  @property
  def multi_label(self) -> bool:
    return self.average_precision is not None

  @functools.cached_property
  def errors(self) -> np.ndarray:
    """The confusion with zeros on its diagonal."""
    return self.confusion - np.diag(self.confusion.diagonal())

  def describe(self) -> str:
    """Returns the scores as one line of text."""
    return "  ".join(f"{SCORES[name]} {100 * value:.2f} %" for name, value in self.scores.items())


def make_eval_step(
  graph: nnx.GraphDef,
  *,
  mean: tuple[float, ...],
  std: tuple[float, ...],
  multi_label: bool = False,
) -> Callable[[dict, dict], dict]:
  """Builds the evaluation step, to be jitted; arguments as in `training.step.make_train_step`.

  Returns:
    `step(params, batch)` with a batch from `data.pipeline.eval_batches` -> the batch with the means
    over views, "probabilities" float32 `[batch, num_classes]`, in place of "video" and
    "position_ids".
  """
  view_step = make_view_step(graph, probabilities_of(multi_label), mean=mean, std=std)

  def step(params: dict, batch: dict) -> dict:
    metadata = dict(batch)
    outputs = view_step(params, metadata.pop("video"), metadata.pop("position_ids"))
    return metadata | {"probabilities": outputs.mean(1)}

  return step


def evaluate(
  eval_step: Callable[[dict, dict], dict],
  versions: dict[str, dict],
  batches: Iterable[dict],
  num_classes: int,
  mesh: jax.sharding.Mesh,
  check_stop: Callable[[], None] = lambda: None,
) -> dict[str, Evaluation]:
  """Evaluates several versions of the parameters in one pass over the videos.

  Args:
    eval_step: from `make_eval_step`, jitted with replicated outputs.
    versions: parameters by name, such as those of the last step and their EMA.
    batches: from `data.pipeline.eval_batches`.
    check_stop: called before each batch; may raise to end the evaluation.

  Returns:
    The evaluation of each version, by name.

  Raises:
    EvaluationError: no video could be decoded, or none has a label.
  """
  sharding = batch_sharding(mesh)
  columns: dict[str, dict[str, list]] = {name: {} for name in versions}
  pending: dict[str, dict] = {}
  for batch in itertools.chain(batches, [None]):
    outputs = {}
    if batch is not None:
      check_stop()
      batch = put_batch(batch, sharding)
      outputs = {name: eval_step(params, batch) for name, params in versions.items()}
    # Reading the outputs of the previous batch lets the device compute while the host loads.
    for version, values in pending.items():
      for name, value in values.items():
        columns[version].setdefault(name, []).append(np.asarray(value))
    pending = outputs
  return {
    version: summarize(
      **{name: np.concatenate(parts) for name, parts in values.items()}, num_classes=num_classes
    )
    for version, values in columns.items()
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
  """Computes the scores of probabilities `[videos, classes]`.

  Args:
    probabilities: float `[videos, classes]`.
    label: int `[videos]`, or 0 and 1 `[videos, classes]` if videos have any number of labels.
    record: index of each video.
    failed: index of each video that could not be decoded, else -1.
    weight: 0 for rows to ignore.

  Raises:
    EvaluationError: no video could be decoded, or none has a label.
  """
  counted = weight > 0
  if not counted.any():
    raise EvaluationError("no video of the evaluation split could be decoded; check the data set")
  probabilities, label, record = probabilities[counted], label[counted], record[counted]
  order = np.argsort(-probabilities, axis=-1, kind="stable")
  if label.ndim == 2:
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
  """Returns fields of `Evaluation`, from classes by descending probability `[videos, classes]`."""
  prediction = order[:, 0]
  confusion = np.zeros((num_classes, num_classes), np.int64)
  np.add.at(confusion, (label, prediction), 1)
  total = confusion.sum(1)
  accuracies = np.where(total > 0, confusion.diagonal() / np.maximum(total, 1), np.nan)
  scores = {
    "top1": float((prediction == label).mean()),
    "top5": float((order[:, :5] == label[:, None]).any(-1).mean()),
    "mean_class": float(np.nanmean(accuracies)),
  }
  return {"scores": scores, "confusion": confusion, "class_accuracies": accuracies}


def _scores_of_several_labels(probabilities: np.ndarray, label: np.ndarray) -> dict:
  """Returns fields of `Evaluation`, from labels that are 0 and 1 `[videos, classes]`."""
  precisions, positives = average_precisions(probabilities, label), label.sum(0, dtype=np.int64)
  if not positives.any():
    raise EvaluationError("no video of the evaluation split has a label; check the data set")
  scores = {"mean_average_precision": float(precisions[positives > 0].mean())}
  return {"scores": scores, "average_precision": precisions, "positives": positives}


def average_precisions(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Returns the area under the precision-recall curve of every class: float64 `[classes]`.

  It is the sum of precision times gain in recall over all thresholds, without interpolation, as in
  scikit-learn's `average_precision_score`. Classes without a video get NaN.

  Args:
    scores: `[videos, classes]`, higher for more probable classes.
    labels: 0 and 1, of the same shape.
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
