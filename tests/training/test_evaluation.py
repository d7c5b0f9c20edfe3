"""Scores against their definitions, every video once, and metrics files over restarts."""

import contextlib
import json

import jax
import numpy as np
import pytest

from tests.data.batches import rows_of
from tests.helpers import multi_label
from vswin_jax.data.clips import ClipSpec, Views
from vswin_jax.data.pipeline import LoaderOptions, eval_batches
from vswin_jax.data.records import open_records
from vswin_jax.training import sharding
from vswin_jax.training.evaluation import EvaluationError, average_precisions, evaluate, summarize
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
  assert result.scores["top1"] == pytest.approx((ranks == 0).mean())
  assert result.scores["top5"] == pytest.approx((ranks < 5).mean())
  per_class = [(ranks[label == c] == 0).mean() for c in range(6)]
  assert result.scores["mean_class"] == pytest.approx(np.mean(per_class))
  assert result.confusion.sum() == 200 and result.confusion.shape == (7, 7)
  for want in range(7):
    for got in range(7):
      count = ((label == want) & (probabilities.argmax(1) == got)).sum()
      assert result.confusion[want, got] == count
  assert [row[0] for row in result.predictions] == list(range(200))
  assert result.failed == [201]


@pytest.mark.parametrize(
  "scores, labels, expected",
  [
    # Labels at places 1 and 3: half of them with precision 1, half with 2/3.
    ([0.9, 0.8, 0.7, 0.6], [1, 0, 1, 0], 0.5 * 1 + 0.5 * 2 / 3),
    # The order of videos does not matter.
    ([0.6, 0.9, 0.7, 0.8], [0, 1, 1, 0], 0.5 * 1 + 0.5 * 2 / 3),
    # Two of the same score come at once: precision 1/3, then 2/4.
    ([0.9, 0.5, 0.5, 0.1], [0, 1, 0, 1], 0.5 / 3 + 0.5 * 2 / 4),
    ([0.9, 0.5, 0.5, 0.1], [0, 0, 1, 1], 0.5 / 3 + 0.5 * 2 / 4),
    # All alike: the share of labels.
    ([0.5, 0.5, 0.5, 0.5], [1, 0, 0, 0], 0.25),
    ([1.0, 1.0, 0.0, 0.0], [1, 1, 0, 1], 2 / 3 * 1 + 1 / 3 * 3 / 4),
    ([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1], 0.5 * 1 + 0.5 * 2 / 3),
    ([0.1, 0.2], [1, 1], 1.0),
    ([0.1, 0.2], [0, 0], np.nan),
  ],
)
def test_average_precision_by_hand(scores, labels, expected):
  result = average_precisions(np.array([scores]).T, np.array([labels], np.uint8).T)
  np.testing.assert_allclose(result, [expected], rtol=1e-12)


def test_average_precision_follows_its_definition_over_all_thresholds():
  random = np.random.default_rng(0)
  # Few different scores, so that many videos share one; more videos than a uint8 counts.
  scores = (random.integers(0, 40, (600, 5)) / 40).astype(np.float32)
  labels = (random.random((600, 5)) < 0.6).astype(np.uint8)
  for number, result in enumerate(average_precisions(scores, labels)):
    expected, recall = 0.0, 0.0
    for threshold in sorted(set(scores[:, number]), reverse=True):
      chosen = scores[:, number] >= threshold
      found = int(labels[chosen, number].sum(dtype=int))
      gain = found / labels[:, number].sum(dtype=int) - recall
      expected, recall = expected + gain * found / chosen.sum(), recall + gain
    assert result == pytest.approx(expected, rel=1e-12)


def test_scores_of_videos_with_any_number_of_labels():
  random = np.random.default_rng(0)
  probabilities = random.random((202, 7))
  labels = (random.random((202, 7)) < 0.3).astype(np.uint8)
  labels[:200, 6] = 0  # only in rows that do not count
  labels[200:] = 1
  result = summarize(
    probabilities=probabilities,
    label=labels,
    record=np.arange(202),
    failed=np.array([-1] * 201 + [201]),
    weight=np.array([1.0] * 200 + [0.0, 0.0]),
    num_classes=7,
  )
  np.testing.assert_array_equal(result.positives, labels[:200].sum(0))
  each = average_precisions(probabilities[:200, :6], labels[:200, :6])
  np.testing.assert_array_equal(result.average_precision[:6], each)
  assert np.isnan(result.average_precision[6])
  assert result.scores == {"mean_average_precision": pytest.approx(each.mean())}
  assert result.describe() == f"mean average precision {100 * each.mean():.2f} %"
  assert result.confusion is None and result.failed == [201]
  for row, (record, given, prediction, probability) in enumerate(result.predictions):
    assert record == row and given == tuple(np.flatnonzero(labels[row]))
    assert (prediction, probability) == (probabilities[row].argmax(), probabilities[row].max())


@pytest.mark.parametrize("hosts, batch_size", [(1, 8), (2, 8), (4, 8), (2, 32)])
@pytest.mark.parametrize("kind", ["one_label", "several_labels"])
def test_every_video_counts_once_however_batches_and_hosts_cut_them(
  tiny_data_dir, tmp_path_factory, kind, hosts, batch_size
):
  """Global batches are assembled from the parts of the hosts."""
  if kind == "one_label":
    records = open_records("tiny_motion", str(tiny_data_dir), "validation")
    labels = np.array([records[index]["label"] for index in range(len(records))])
  else:
    folder = tmp_path_factory.mktemp("data")
    multi_label.prepare(folder)
    records = open_records(multi_label.NAME, str(folder), "validation")
    labels = np.zeros((len(records), 6), np.uint8)
    for index in range(len(records)):
      labels[index, list(multi_label.labels_of(records, index, "validation"))] = 1
  count = len(records)
  # Rows beyond the last video are what padding would bring in.
  table = np.random.default_rng(0).dirichlet(np.ones(6), 64)
  spec = ClipSpec(num_frames=2, frame_interval=1, size=16)
  with contextlib.ExitStack() as stack:
    parts = [
      stack.enter_context(
        contextlib.closing(
          eval_batches(
            records, spec, Views(1, "center", 16), batch_size=batch_size, seed=0,
            options=LoaderOptions(0), rows=rows_of(host, hosts, batch_size),
          )
        )
      )
      for host in range(hosts)
    ]  # fmt: skip
    batches = (
      {name: np.concatenate([part[name] for part in batch]) for name in batch[0]}
      for batch in zip(*parts, strict=True)
    )

    def eval_step(_, batch):
      metadata = {name: batch[name] for name in ("label", "record", "failed", "weight")}
      return metadata | {"probabilities": table[np.asarray(batch["record"])]}

    mesh = sharding.make_mesh(1, jax.devices()[:1])
    result = evaluate(eval_step, {"test": {}}, batches, 6, mesh)["test"]
  expected = summarize(
    probabilities=table[:count],
    label=labels,
    record=np.arange(count),
    failed=np.full(count, -1),
    weight=np.ones(count),
    num_classes=6,
  )
  assert [row[0] for row in result.predictions] == list(range(count))
  assert result.predictions == expected.predictions
  assert result.scores == expected.scores


def test_an_evaluation_without_labels_is_an_error():
  with pytest.raises(EvaluationError, match="no video of the evaluation split has a label"):
    summarize(
      probabilities=np.ones((2, 3)),
      label=np.zeros((2, 3), np.uint8),
      record=np.arange(2),
      failed=np.full(2, -1),
      weight=np.ones(2),
      num_classes=3,
    )


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
