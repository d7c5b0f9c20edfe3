"""Accuracy of a model over a split: every video once, all its views averaged."""

import dataclasses
from collections.abc import Callable, Iterable

import jax
import numpy as np

from vswin_jax.training.sharding import batch_sharding, put_batch, replicated


class EvaluationError(ValueError):
  """An evaluation without a result; the message says why."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """Result of `evaluate`.

  Attributes:
    top1: share of videos whose most probable class is the label; likewise `top5`.
    mean_class: mean over the classes present of the share of their videos that are right.
    confusion: int `[classes (label), classes (prediction)]`, videos.
    predictions: rows (record, label, prediction, probability of the prediction), by record.
    failed: records that could not be decoded and count nowhere.
  """

  top1: float
  top5: float
  mean_class: float
  confusion: np.ndarray
  predictions: list[tuple[int, int, int, float]]
  failed: list[int]

  def scalars(self) -> dict[str, float]:
    return {"top1": self.top1, "top5": self.top5, "mean_class": self.mean_class}


def jit_eval_step(step: Callable, mesh: jax.sharding.Mesh) -> Callable:
  """Jits an evaluation step over batches from `data.pipeline.eval_batches`.

  Returns:
    `step(params, batch)` -> the batch with "probabilities" `[batch, num_classes]` in place of
    "video" and "position_ids", whole on every host.
  """

  def run(params: dict, batch: dict) -> dict:
    facts = dict(batch)
    inputs = facts.pop("video"), facts.pop("position_ids")
    return facts | {"probabilities": step(params, *inputs)}

  return jax.jit(run, out_shardings=replicated(mesh))


def evaluate(
  eval_step: Callable,
  versions: dict[str, dict],
  batches: Iterable[dict],
  num_classes: int,
  mesh: jax.sharding.Mesh,
) -> dict[str, Evaluation]:
  """Evaluates several versions of the parameters in one pass over the videos.

  Args:
    eval_step: from `jit_eval_step`.
    versions: parameters by name, such as those trained and their moving average.
    batches: from `data.pipeline.eval_batches`.

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
  """Accuracies of probabilities `[videos, classes]` against labels `[videos]`.

  Args:
    record: index of each video.
    failed: index of each video that could not be decoded, else -1.
    weight: 0 for rows that do not count.

  Raises:
    EvaluationError: no row counts.
  """
  counted = weight > 0
  if not counted.any():
    raise EvaluationError("no video of the evaluation split could be decoded; check the data set")
  probabilities, label, record = probabilities[counted], label[counted], record[counted]
  order = np.argsort(-probabilities, axis=-1, kind="stable")
  prediction = order[:, 0]
  confusion = np.zeros((num_classes, num_classes), np.int64)
  np.add.at(confusion, (label, prediction), 1)
  per_label = confusion.sum(1)
  present = per_label > 0
  return Evaluation(
    top1=float((prediction == label).mean()),
    top5=float((order[:, :5] == label[:, None]).any(-1).mean()),
    mean_class=float((confusion.diagonal()[present] / per_label[present]).mean()),
    confusion=confusion,
    predictions=sorted(
      (int(r), int(want), int(got), float(p[got]))
      for r, want, got, p in zip(record, label, prediction, probabilities)
    ),
    failed=sorted(map(int, failed[failed >= 0])),
  )
