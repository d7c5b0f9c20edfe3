"""The report is a picture that shows the numbers it was given."""

import cv2
import numpy as np
import pytest

from vswin_jax.experiment.report import write_report
from vswin_jax.training.evaluation import summarize


@pytest.mark.parametrize("classes", [8, 60, 400])
def test_report_is_drawn_for_few_and_many_classes(tmp_path, classes):
  random = np.random.default_rng(0)
  count = max(500, 20 * classes)
  label = random.integers(0, classes, count)
  probabilities = random.dirichlet(np.ones(classes), count)
  good = np.eye(classes)[label]
  pictures = []
  for accuracy in (0.0, 0.9):
    result = summarize(
      probabilities=accuracy * good + (1 - accuracy) * probabilities,
      label=label,
      record=np.arange(count),
      failed=np.full(count, -1),
      weight=np.ones(count),
      num_classes=classes,
    )
    path = tmp_path / f"report_{accuracy}.png"
    write_report(
      path,
      title="a model on a data set",
      subtitle=("some steps", "some views"),
      evaluation=result,
      class_names=tuple(f"$class_{{ {i}, of which there is much to say" for i in range(classes)),
      metrics=[
        {"step": 10, "train/loss": 2.0, "train/top1": 0.1, "train/learning_rate": 0.1},
        {"step": 20, "train/loss": 1.0, "train/top1": 0.5, "train/learning_rate": 0.2},
        {"step": 20, "validation/top1": 0.4},
      ],
    )
    pictures.append(cv2.imread(str(path)))
    assert pictures[-1].shape == (935, 1210, 3)
  # The confusion matrix takes the right half: its diagonal is dark where the model is right.
  dark = []
  for picture in pictures:
    matrix = picture[170:620, 690:1110]
    dark.append(((matrix[..., 2] < 50) & (matrix[..., 0] > 80)).sum())
  assert dark[1] > 400 and dark[1] > 5 * dark[0]


@pytest.mark.parametrize("classes", [6, 60])
def test_bars_of_average_precision_grow_with_it(tmp_path, classes):
  random = np.random.default_rng(0)
  label = (random.random((300, classes)) < 0.2).astype(np.uint8)
  blue = []
  for signal in (0.0, 2.0):
    result = summarize(
      probabilities=random.random((300, classes)) + signal * label,
      label=label,
      record=np.arange(300),
      failed=np.full(300, -1),
      weight=np.ones(300),
      num_classes=classes,
    )
    path = tmp_path / f"report_{signal}.png"
    write_report(
      path,
      title="a model on a data set",
      subtitle=("some steps", "some views"),
      evaluation=result,
      class_names=tuple(f"class {i}" for i in range(classes)),
      metrics=[{"step": 20, "validation/mean_average_precision": 0.4}],
    )
    picture = cv2.imread(str(path))[180:540, 600:1200].astype(int)
    blue.append((picture[..., 0] - picture[..., 2] > 60).sum())
  # From the share of labels, a fifth, to all found first.
  assert 3 < blue[1] / blue[0] < 6
