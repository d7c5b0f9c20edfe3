"""Report of a run: one page with scores, curves and errors."""

import pathlib

import matplotlib
import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from vswin_jax.common.messages import shorten
from vswin_jax.training.evaluation import SCORES, Evaluation

_SECONDARY = "#52606d"
ACCENT = "#2563eb"
_INK, _FAINT, _SECOND = "#1f2933", "#9aa5b1", "#f59e0b"
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
_MAX_NAMED_CLASSES = 40
_MAX_CELLS = 320
_HARDEST, _PAIRS = 20, 16
# Names of scores in metrics, and in words.
_TOP1 = ("top1", "Top-1 accuracy")
_PRECISION = ("mean_average_precision", "Mean average precision")


def write_report(
  path: str | pathlib.Path,
  *,
  title: str,
  subtitle: tuple[str, str],
  evaluation: Evaluation,
  class_names: tuple[str, ...],
  metrics: list[dict],
) -> None:
  """Draws the report as a PNG.

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
    if evaluation.multi_label:
      values, what, score = evaluation.average_precision, "average precision", _PRECISION
      _draw_precisions(right, evaluation)
    else:
      values, what, score = evaluation.class_accuracies, "accuracy", _TOP1
      _draw_confusion(right, evaluation, class_names)
    loss_axes, score_axes, class_axes = left.subplots(3, 1)
    _draw_loss(loss_axes, metrics)
    _draw_scores(score_axes, metrics, *score)
    _draw_hardest(class_axes, values, class_names, what)
    figure.savefig(path, dpi=110, format="png")


def _draw_header(figure, title, subtitle, evaluation) -> None:
  figure.text(0.02, 0.76, title, fontsize=17, fontweight="bold", va="center")
  videos = len(evaluation.predictions)
  failed = f", {len(evaluation.failed)} unreadable" if evaluation.failed else ""
  for y, line in zip((0.48, 0.27, 0.06), [*subtitle, f"{videos} videos evaluated{failed}"]):
    figure.text(0.02, y, line, fontsize=9.5, color=_SECONDARY, va="center")
  for place, (name, value) in enumerate(reversed(evaluation.scores.items())):
    x = 0.91 - 0.125 * place
    figure.text(
      x, 0.6, f"{100 * value:.1f}%", fontsize=22, fontweight="bold", color=ACCENT, ha="center",
      va="center",
    )  # fmt: skip
    figure.text(x, 0.2, SCORES[name], fontsize=10, color=_SECONDARY, ha="center", va="center")


def _series(metrics: list[dict], name: str) -> tuple[list[int], list[float]]:
  lines = [line for line in metrics if name in line]
  return [line["step"] for line in lines], [line[name] for line in lines]


def _draw_loss(axes, metrics) -> None:
  axes.set_title("Training loss and learning rate")
  axes.plot(*_series(metrics, "train/loss"), color=ACCENT)
  axes.set_ylabel("loss", color=ACCENT)
  axes.set_ylim(bottom=0)
  rate = axes.twinx()
  rate.plot(*_series(metrics, "train/learning_rate"), color=_SECOND, linewidth=1)
  rate.set_ylabel("learning rate", color=_SECOND)
  rate.set_ylim(bottom=0)


def _draw_scores(axes, metrics, name: str, title: str) -> None:
  axes.set_title(f"{title} over steps")
  for kind, label, color in (
    ("train", "training", _FAINT),
    ("validation", "validation", ACCENT),
    ("validation_ema", "validation, EMA", _SECOND),
  ):
    steps, values = _series(metrics, f"{kind}/{name}")
    if steps:
      axes.plot(steps, 100 * np.asarray(values), color=color, label=label, marker=".")
  axes.set_ylim(0, 101)
  axes.set_ylabel("%")
  if axes.lines:
    axes.legend(frameon=False, loc="lower right")


def _draw_hardest(axes, values: np.ndarray, class_names, what: str) -> None:
  """Draws the classes with the lowest values `[classes]`, between 0 and 1; NaN is omitted."""
  order = np.argsort(values, kind="stable")[: np.isfinite(values).sum()]
  is_all = len(order) <= _HARDEST
  axes.set_title(f"{what.capitalize()} per class" if is_all else f"The {_HARDEST} hardest classes")
  order = order[:_HARDEST]
  size = 8 if len(order) <= 10 else 6
  axes.barh(np.arange(len(order)), 100 * values[order], color=ACCENT, height=0.7)
  _name_ticks(axes.set_yticks, [class_names[index] for index in order], size, 34)
  for place, value in enumerate(100 * values[order]):
    axes.text(value + 1, place, f"{value:.0f}", va="center", fontsize=size, color=_SECONDARY)
  axes.set(xlim=(0, 108), ylim=(len(order) - 0.4, -0.6), xlabel=f"{what}, %")
  axes.set_xticks(range(0, 101, 20))
  axes.tick_params(axis="y", length=0)


def _name_ticks(set_ticks, names, size: float, width: int, **options) -> None:
  short = [shorten(name, width) for name in names]
  set_ticks(range(len(names)), short, fontsize=size, parse_math=False, **options)


def _set_title(figure, title: str) -> None:
  """Sets a title at the left of the figure, because long class names narrow the axes."""
  figure.suptitle(title, x=0.02, ha="left", fontsize=11, fontweight="bold")


def _draw_confusion(figure, evaluation, class_names) -> None:
  total = np.maximum(evaluation.confusion.sum(1, keepdims=True), 1)
  share = evaluation.confusion / total
  count = len(class_names)
  if count > _MAX_NAMED_CLASSES:
    _set_title(figure, "Confusion: share of each class (row) predicted as (column)")
    picture, table = figure.subplots(2, 1, height_ratios=[1.5, 1])
    _draw_large_confusion(picture, share)
    _draw_pairs(table, evaluation, class_names)
    return
  _set_title(figure, "Confusion: % of each class (row) predicted as (column)")
  axes = figure.subplots()
  axes.set_anchor("N")
  axes.imshow(share, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
  axes.spines[:].set_visible(False)
  size, width = (9, 24) if count <= 12 else (6, 28)
  _name_ticks(axes.set_xticks, class_names, size, width, rotation=45, ha="right")
  _name_ticks(axes.set_yticks, class_names, size, width)
  if count <= 12:
    for row, column in zip(*np.nonzero(evaluation.confusion)):
      axes.text(
        column, row, f"{100 * share[row, column]:.0f}", ha="center", va="center", fontsize=8,
        color="white" if share[row, column] > 0.5 else _INK,
      )  # fmt: skip


def _draw_large_confusion(axes, share: np.ndarray) -> None:
  """Draws a matrix of many classes without names; each pixel shows the darkest of its cells."""
  count = len(share)
  block = -(-count // _MAX_CELLS)
  padding = -count % block
  # The page has fewer pixels than a large matrix cells: the darkest of a block stands for it.
  blocks = np.pad(share, (0, padding)).reshape(-1, block, (count + padding) // block, block)
  extent = (0, count + padding, count + padding, 0)
  picture = axes.imshow(
    blocks.max((1, 3)), cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="nearest",
    extent=extent,
  )  # fmt: skip
  axes.set_xlim(0, count)
  axes.set_ylim(count, 0)
  axes.set_ylabel("number of the class")
  axes.tick_params(labelsize=8)
  ticks, percent = [0, 0.1, 0.25, 0.5, 1], PercentFormatter(1, symbol=" %")
  axes.figure.colorbar(picture, ax=axes, shrink=0.8, ticks=ticks, format=percent)


def _draw_pairs(axes, evaluation, class_names) -> None:
  """Lists the most frequent pairs of a class and a wrong prediction."""
  confusion, errors = evaluation.confusion, evaluation.errors
  order = np.argsort(-errors, axis=None, kind="stable")[:_PAIRS]
  rows = [(row, column) for row, column in zip(*np.unravel_index(order, errors.shape))]
  rows = [(row, column) for row, column in rows if errors[row, column]]
  axes.set_title("Most confused: videos, class, prediction")
  axes.axis("off")
  axes.set_ylim(_PAIRS + 0.5, -0.5)
  for place, (row, column) in enumerate(rows):
    style = {"fontsize": 7, "va": "center", "parse_math": False}
    count = f"{errors[row, column]} of {confusion[row].sum()}"
    axes.text(0.1, place, count, ha="right", color=ACCENT, **style)
    axes.text(0.13, place, shorten(class_names[row], 42), **style)
    axes.text(0.57, place, shorten(class_names[column], 42), **style)


def _draw_precisions(figure, evaluation) -> None:
  """Draws the average precision of all classes, the best first."""
  values = evaluation.average_precision
  values = 100 * np.sort(values[np.isfinite(values)])[::-1]
  _set_title(figure, f"Average precision of {len(values)} classes, best first")
  axes = figure.subplots()
  axes.bar(np.arange(len(values)), values, color=ACCENT, width=1.0)
  mean = 100 * evaluation.scores["mean_average_precision"]
  axes.axhline(mean, color=_SECOND, linewidth=1)
  axes.text(len(values), mean + 1, f"mean {mean:.1f} %", ha="right", fontsize=8, color=_SECONDARY)
  axes.set(xlim=(-0.5, len(values) - 0.5), ylim=(0, 101), ylabel="%", xlabel="classes")
