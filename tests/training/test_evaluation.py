"""Accuracies against their definitions, and metrics files over restarts."""

import json

import numpy as np
import pytest

from vswin_jax.training.evaluation import EvaluationError, summarize
from vswin_jax.training.metrics import MetricsWriter, read_metrics


def test_accuracies_follow_their_definitions():
  random = np.random.default_rng(0)
  probabilities = random.dirichlet(np.ones(7), 200).astype(np.float32)
  label = random.integers(0, 6, 200)  # class 6 never occurs
  # Two rows more that must not count: padding, and a video that could not be decoded.
  result = summarize(
    probabilities=np.concatenate([probabilities, np.eye(7)[[6, 6]]]),
    label=np.concatenate([label, [6, 0]]),
    record=np.arange(202),
    failed=np.array([-1] * 201 + [201]),
    weight=np.array([1.0] * 200 + [0.0, 0.0]),
    num_classes=7,
  )
  ranks = (probabilities > probabilities[np.arange(200), label][:, None]).sum(1)
  assert result.top1 == pytest.approx((ranks == 0).mean())
  assert result.top5 == pytest.approx((ranks < 5).mean())
  per_class = [(ranks[label == c] == 0).mean() for c in range(6)]
  assert result.mean_class == pytest.approx(np.mean(per_class))
  assert result.confusion.sum() == 200 and result.confusion.shape == (7, 7)
  for want in range(7):
    for got in range(7):
      count = ((label == want) & (probabilities.argmax(1) == got)).sum()
      assert result.confusion[want, got] == count
  assert [row[0] for row in result.predictions] == list(range(200))
  assert result.failed == [201]


def test_nothing_to_evaluate_is_an_error():
  with pytest.raises(EvaluationError, match="no video of the evaluation split"):
    summarize(
      probabilities=np.ones((2, 3)),
      label=np.zeros(2, int),
      record=np.arange(2),
      failed=np.array([0, -1]),
      weight=np.zeros(2),
      num_classes=3,
    )


def test_metrics_beyond_the_resumed_step_are_dropped(tmp_path):
  writer = MetricsWriter(tmp_path, 0)
  for step in (10, 20, 30):
    writer.write(step, {"train/loss": 1.0 / step})
  writer.close()
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write('{"step": 40, "train/lo')  # cut off by a kill
  assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [10, 20, 30]
  writer = MetricsWriter(tmp_path, 20)
  writer.write(30, {"train/loss": 7.0})
  writer.close()
  lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  assert lines == [
    {"step": 10, "train/loss": 0.1},
    {"step": 20, "train/loss": 0.05},
    {"step": 30, "train/loss": 7.0},
  ]
  assert list((tmp_path / "tensorboard").glob("events*"))
