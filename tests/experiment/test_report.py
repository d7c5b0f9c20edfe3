"""The report shows the numbers it was given."""

import cv2
import numpy as np
import pytest
from matplotlib.figure import Figure

from vswin_jax.experiment.report import write_report
from vswin_jax.training.evaluation import summarize


@pytest.fixture
def draw(tmp_path, monkeypatch):
  """Writes a report and returns its axes; checks the size of the picture."""
  figures, save = [], Figure.savefig

  def keep(figure, *arguments, **options):
    figures.append(figure)
    save(figure, *arguments, **options)

  monkeypatch.setattr(Figure, "savefig", keep)

  def write(evaluation, class_names, metrics):
    path = tmp_path / "report.png"
    write_report(
      path,
      title="a model on a data set",
      subtitle=("some steps", "some views"),
      evaluation=evaluation,
      class_names=class_names,
      metrics=metrics,
    )
    assert cv2.imread(str(path)).shape == (935, 1210, 3)
    return figures[-1].get_axes()

  return write


def evaluate(label, probabilities):
  count, classes = probabilities.shape
  return summarize(
    probabilities=probabilities,
    label=label,
    record=np.arange(count),
    failed=np.full(count, -1),
    weight=np.ones(count),
    num_classes=classes,
  )


@pytest.mark.parametrize("classes", [8, 60, 400])
def test_the_confusion_matrix_is_that_of_the_evaluation(draw, classes):
  random = np.random.default_rng(0)
  count = max(500, 20 * classes)
  label = random.integers(0, classes, count)
  probabilities = random.dirichlet(np.ones(classes), count)
  result = evaluate(label, 0.9 * np.eye(classes)[label] + 0.1 * probabilities)
  names = tuple(f"$class_{{ {i}, of which there is much to say" for i in range(classes))
  metrics = [
    {"step": 10, "train/loss": 2.0, "train/top1": 0.1, "train/learning_rate": 0.1},
    {"step": 20, "train/loss": 1.0, "train/top1": 0.5, "train/learning_rate": 0.2},
    {"step": 20, "validation/top1": 0.4},
  ]
  axes = draw(result, names, metrics)
  share = result.confusion / result.confusion.sum(1, keepdims=True)
  (drawn,) = [np.asarray(one.get_images()[0].get_array()) for one in axes if one.get_images()]
  if classes > 320:
    # Each pixel shows the largest of 2 x 2 cells.
    share = share.reshape(classes // 2, 2, classes // 2, 2).max((1, 3))
  np.testing.assert_allclose(drawn, share)
  lines = [line.get_xydata().tolist() for one in axes for line in one.get_lines()]
  assert [[10.0, 2.0], [20.0, 1.0]] in lines and [[20.0, 40.0]] in lines


@pytest.mark.parametrize("classes", [6, 60])
def test_bars_are_as_long_as_the_average_precision(draw, classes):
  random = np.random.default_rng(0)
  label = (random.random((300, classes)) < 0.2).astype(np.uint8)
  result = evaluate(label, random.random((300, classes)) + 0.5 * label)
  names = tuple(f"class {i}" for i in range(classes))
  axes = draw(result, names, [{"step": 20, "validation/mean_average_precision": 0.4}])
  bars = [[max(bar.get_width(), bar.get_height()) for bar in one.patches] for one in axes]
  expected = np.sort(100 * result.average_precision)
  drawn = [np.sort(sizes) for sizes in bars if len(sizes) == classes]
  # Up to 20 classes are also drawn with their names.
  assert len(drawn) == (2 if classes <= 20 else 1)
  for sizes in drawn:
    np.testing.assert_allclose(sizes, expected)
