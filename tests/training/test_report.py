"""The report is a picture that shows the numbers it was given."""

import cv2
import numpy as np
import pytest

from vswin_jax.training.evaluation import summarize
from vswin_jax.training.report import write_report


@pytest.mark.parametrize("classes", [8, 60])
def test_report_is_drawn_for_few_and_many_classes(tmp_path, classes):
  random = np.random.default_rng(0)
  label = random.integers(0, classes, 500)
  probabilities = random.dirichlet(np.ones(classes), 500)
  good = np.eye(classes)[label]
  pictures = []
  for accuracy in (0.0, 0.9):
    result = summarize(
      probabilities=accuracy * good + (1 - accuracy) * probabilities,
      label=label,
      record=np.arange(500),
      failed=np.full(500, -1),
      weight=np.ones(500),
      num_classes=classes,
    )
    path = tmp_path / f"report_{accuracy}.png"
    write_report(
      path,
      title="a model on a data set",
      subtitle=("some steps", "some views"),
      evaluation=result,
      class_names=tuple(f"class {i}" for i in range(classes)),
      metrics=[
        {"step": 10, "train/loss": 2.0, "train/top1": 0.1, "train/learning_rate": 0.1},
        {"step": 20, "train/loss": 1.0, "train/top1": 0.5, "train/learning_rate": 0.2},
        {"step": 20, "validation/top1": 0.4},
      ],
    )
    pictures.append(cv2.imread(str(path)))
    assert pictures[-1].shape == (935, 1210, 3)
  # The confusion matrix takes the right half: its diagonal is dark where the model is right.
  blue = [
    (picture[300:800, 700:1190, 0].astype(int) - picture[300:800, 700:1190, 2])
    for picture in pictures
  ]
  assert (blue[1] > 60).sum() > 3 * (blue[0] > 60).sum()
