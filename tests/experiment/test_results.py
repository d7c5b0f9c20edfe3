"""The tables that a run leaves, against values worked out by hand."""

import csv
import json

import numpy as np
import pytest

from vswin_jax.experiment.results import write_results
from vswin_jax.training.evaluation import summarize


def write(folder, names, label, probabilities):
  count = len(label)
  result = summarize(
    probabilities=np.asarray(probabilities, float),
    label=np.asarray(label),
    record=np.arange(count),
    failed=np.full(count, -1),
    weight=np.ones(count),
    num_classes=len(names),
  )
  write_results(
    folder,
    result,
    metadata={"step": 3},
    class_names=names,
    video_ids=[f"video {index}" for index in range(count)],
  )
  assert sorted(path.name for path in folder.iterdir()) == [
    "evaluation.json", "per_class.csv", "predictions.csv"
  ]  # fmt: skip
  tables = [
    list(csv.reader((folder / f"{name}.csv").open())) for name in ("predictions", "per_class")
  ]
  return *tables, json.loads((folder / "evaluation.json").read_text())


def test_tables_of_videos_with_one_label(tmp_path):
  names = ("run", 'a "jump", high', "$x_{$", "none")
  predicted = [0, 0, 1, 2, 1, 1, 2]
  predictions, per_class, evaluation = write(
    tmp_path, names, [0, 0, 0, 0, 1, 1, 2], np.eye(4)[predicted] * 0.5 + 0.1
  )
  assert predictions[0] == ["id", "label", "prediction", "probability"]
  assert predictions[3] == ["video 2", "run", 'a "jump", high', "0.600000"]
  assert per_class == [
    ["class", "videos", "correct", "accuracy", "most_confused_with", "videos_confused"],
    ["run", "4", "2", "0.500000", 'a "jump", high', "1"],
    ['a "jump", high', "2", "2", "1.000000", "", "0"],
    ["$x_{$", "1", "1", "1.000000", "", "0"],
    ["none", "0", "0", "", "", "0"],
  ]
  assert evaluation == {
    "step": 3, "top1": pytest.approx(5 / 7), "top5": 1.0, "mean_class": pytest.approx(2.5 / 3),
    "unreadable": 0,
  }  # fmt: skip


def test_tables_of_videos_with_any_number_of_labels(tmp_path):
  names = ("walk", "talk", "sit")
  label = np.array([[1, 1, 0], [0, 1, 0], [0, 0, 0], [1, 0, 0]], np.uint8)
  probabilities = [[0.9, 0.2, 0.1], [0.8, 0.4, 0.1], [0.1, 0.3, 0.1], [0.7, 0.95, 0.1]]
  predictions, per_class, evaluation = write(tmp_path, names, label, probabilities)
  assert [row[1:3] for row in predictions[1:]] == [
    ["walk|talk", "walk"], ["talk", "walk"], ["", "talk"], ["walk", "talk"],
  ]  # fmt: skip
  # "walk" is found at places 1 and 3, "talk" at 2 and 4.
  assert per_class == [
    ["class", "positives", "average_precision"],
    ["walk", "2", f"{(1 + 2 / 3) / 2:.6f}"],
    ["talk", "2", "0.500000"],
    ["sit", "0", ""],
  ]
  assert evaluation == {
    "step": 3, "mean_average_precision": pytest.approx((5 / 6 + 1 / 2) / 2), "unreadable": 0,
  }  # fmt: skip
