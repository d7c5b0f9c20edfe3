"""The one-page report of a run: a picture of what it reached and where it errs."""

import pathlib

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from vswin_jax.training.evaluation import Evaluation

_SECONDARY = "#52606d"
_INK, _FAINT, _ACCENT, _SECOND = "#1f2933", "#9aa5b1", "#2563eb", "#f59e0b"
_STYLE = {
  "font.size": 9,
  "text.color": _INK,
  "axes.labelcolor": _INK,
  "axes.edgecolor": _FAINT,
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.titlesize": 11,
  "axes.titlelocation": "left",
  "axes.titleweight": "bold",
  "xtick.color": _INK,
  "ytick.color": _INK,
}
_MOST_NAMED_CLASSES = 40


def write_report(
  path: str | pathlib.Path,
  *,
  title: str,
  subtitle: tuple[str, str],
  evaluation: Evaluation,
  class_names: tuple[str, ...],
  metrics: list[dict],
) -> None:
  """Draws the report to a PNG.

  Args:
    title: the model and its data.
    subtitle: how it was trained and evaluated, two lines.
    evaluation: of the finished model.
    metrics: lines of `metrics.jsonl`.
  """
  with matplotlib.rc_context(_STYLE):
    figure = Figure(figsize=(11, 8.5), layout="constrained", facecolor="white")
    header, body = figure.subfigures(2, 1, height_ratios=[1, 5])
    _draw_header(header, title, subtitle, evaluation)
    left, right = body.subfigures(1, 2, width_ratios=[1, 1.2])
    loss_axes, accuracy_axes, class_axes = left.subplots(3, 1)
    _draw_loss(loss_axes, metrics)
    _draw_accuracy(accuracy_axes, metrics)
    _draw_classes(class_axes, evaluation, class_names)
    _draw_confusion(right, evaluation, class_names)
    figure.savefig(path, dpi=110, format="png")


def _draw_header(figure, title, subtitle, evaluation) -> None:
  figure.text(0.02, 0.76, title, fontsize=17, fontweight="bold", va="center")
  videos = int(evaluation.confusion.sum())
  failed = f", {len(evaluation.failed)} unreadable" if evaluation.failed else ""
  for y, line in zip((0.48, 0.27, 0.06), [*subtitle, f"{videos} videos evaluated{failed}"]):
    figure.text(0.02, y, line, fontsize=9.5, color=_SECONDARY, va="center")
  tiles = [
    ("top-1", evaluation.top1),
    ("top-5", evaluation.top5),
    ("mean class", evaluation.mean_class),
  ]
  for place, (name, value) in enumerate(tiles):
    x = 0.66 + 0.125 * place
    figure.text(
      x, 0.6, f"{100 * value:.1f}%", fontsize=22, fontweight="bold", color=_ACCENT, ha="center",
      va="center",
    )  # fmt: skip
    figure.text(x, 0.2, name, fontsize=10, color=_SECONDARY, ha="center", va="center")


def _series(metrics: list[dict], name: str) -> tuple[list[int], list[float]]:
  lines = [line for line in metrics if name in line]
  return [line["step"] for line in lines], [line[name] for line in lines]


def _draw_loss(axes, metrics) -> None:
  axes.set_title("Training loss and learning rate")
  axes.plot(*_series(metrics, "train/loss"), color=_ACCENT)
  axes.set_ylabel("loss", color=_ACCENT)
  axes.set_ylim(bottom=0)
  rate = axes.twinx()
  rate.plot(*_series(metrics, "train/learning_rate"), color=_SECOND, linewidth=1)
  rate.set_ylabel("learning rate", color=_SECOND)
  rate.set_ylim(bottom=0)


def _draw_accuracy(axes, metrics) -> None:
  axes.set_title("Top-1 accuracy over steps")
  for name, label, color in (
    ("train/top1", "training", _FAINT),
    ("validation/top1", "validation", _ACCENT),
    ("validation_average/top1", "validation, averaged weights", _SECOND),
  ):
    steps, values = _series(metrics, name)
    if steps:
      axes.plot(steps, 100 * np.asarray(values), color=color, label=label, marker=".")
  axes.set_ylim(0, 101)
  axes.set_ylabel("%")
  axes.legend(frameon=False, loc="lower right")


def _draw_classes(axes, evaluation, class_names) -> None:
  """Accuracy per class, at most the 20 worst."""
  total = evaluation.confusion.sum(1)
  present = np.flatnonzero(total)
  accuracy = evaluation.confusion.diagonal()[present] / total[present]
  order = np.argsort(accuracy, kind="stable")[:20][::-1]
  axes.set_title("Accuracy per class" if len(present) <= 20 else "The 20 hardest classes")
  axes.barh(
    [class_names[present[i]] for i in order], 100 * accuracy[order], color=_ACCENT, height=0.7
  )
  axes.set_xlim(0, 100)
  axes.set_xlabel("%")
  axes.tick_params(axis="y", length=0, labelsize=8 if len(order) <= 10 else 6)


def _draw_confusion(figure, evaluation, class_names) -> None:
  axes = figure.subplots()
  axes.set_title("Confusion: % of each class (row) predicted as (column)")
  total = np.maximum(evaluation.confusion.sum(1, keepdims=True), 1)
  share = evaluation.confusion / total
  axes.imshow(share, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
  axes.spines[:].set_visible(False)
  count = len(class_names)
  if count <= _MOST_NAMED_CLASSES:
    size = 9 if count <= 12 else 6
    axes.set_xticks(range(count), class_names, rotation=45, ha="right", fontsize=size)
    axes.set_yticks(range(count), class_names, fontsize=size)
  if count <= 12:
    for row, column in zip(*np.nonzero(evaluation.confusion)):
      axes.text(
        column, row, f"{100 * share[row, column]:.0f}", ha="center", va="center", fontsize=8,
        color="white" if share[row, column] > 0.5 else _INK,
      )  # fmt: skip
