"""Accuracy of a model over a split: every video once, all its views averaged."""

import dataclasses
from collections.abc import Callable, Iterable

import jax
import numpy as np

from vswin_jax.training.sharding import batch_sharding, put_batch, replicated


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


def jit_eval_step(step: Callable, mesh) -> Callable:
  """Jits an evaluation step so that every host gets the probabilities of the whole batch."""
  return jax.jit(step, out_shardings=replicated(mesh))


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
    ValueError: no video could be decoded.
  """
  sharding = batch_sharding(mesh)
  everywhere = jax.jit(lambda tree: tree, out_shardings=replicated(mesh))
  facts: dict[str, list] = {}
  probabilities: dict[str, list] = {}
  pending: list[tuple[dict[str, list], dict]] = []
  for batch in batches:
    batch = put_batch(batch, sharding)
    video = batch.pop("video")
    outputs = {name: eval_step(params, video) for name, params in versions.items()}
    # Reading the batch before this one lets the device work while the host fetches.
    _collect(pending)
    pending = [(probabilities, outputs), (facts, everywhere(batch))]
  _collect(pending)
  columns = {name: np.concatenate(parts) for name, parts in facts.items()}
  failed = sorted(int(record) for record in columns["failed"] if record >= 0)
  counted = columns["weight"] > 0
  return {
    name: summarize(
      np.concatenate(probabilities[name])[counted],
      columns["label"][counted],
      columns["record"][counted],
      num_classes,
      failed,
    )
    for name in versions
  }


def _collect(pending: list[tuple[dict[str, list], dict]]) -> None:
  for columns, values in pending:
    for name, value in values.items():
      columns.setdefault(name, []).append(np.asarray(value))


def summarize(
  probabilities: np.ndarray,
  label: np.ndarray,
  record: np.ndarray,
  num_classes: int,
  failed: list[int],
) -> Evaluation:
  """Accuracies of probabilities `[videos, classes]` against labels `[videos]`.

  Raises:
    ValueError: no video was evaluated.
  """
  if len(label) == 0:
    raise ValueError("no video of the evaluation split could be decoded")
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
    failed=failed,
  )
