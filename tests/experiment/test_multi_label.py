"""Videos with any number of labels: a whole run through the command line, and its use."""

import csv
import json

import numpy as np
import pytest

from tests.helpers import multi_label
from tests.helpers.runs import metrics, run
from tests.tables.recipes import load
from vswin_jax import load_model
from vswin_jax.data.records import open_records
from vswin_jax.experiment.config import ConfigError, read_settings
from vswin_jax.experiment.plan import make_mesh, make_plan
from vswin_jax.training.evaluation import average_precisions


def test_label_smoothing_is_for_one_label():
  config = load("quickstart")
  config.train.label_smoothing = 0.1
  settings = read_settings(config)
  with pytest.raises(ConfigError, match="label_smoothing is for videos with one label"):
    make_plan(settings, make_mesh(settings), num_classes=6, num_videos=640, multi_label=True)


@pytest.mark.slow
def test_a_run_from_training_to_prediction(tiny_data_dir, tmp_path):
  multi_label.prepare(tiny_data_dir)
  options = [
    f"--config.data.name={multi_label.NAME}",
    "--config.train.epochs=2.0",
    "--config.train.repeats=2",
    "--config.train.log_every=2",
    "--config.loader.num_workers=0",
  ]
  smoothed = run(tiny_data_dir, tmp_path / "run", *options, "--config.train.label_smoothing=0.1")
  assert smoothed.returncode == 1
  assert "error: train.label_smoothing is for videos with one label" in smoothed.stderr
  assert "Traceback" not in smoothed.stderr

  workdir = tmp_path / "run"
  done = run(tiny_data_dir, workdir, *options)
  assert done.returncode == 0, done.stderr
  # 16 videos twice an epoch, in batches of 8.
  assert "8 steps of 8 clips" in done.stderr
  assert "mean average precision" in done.stderr
  last = metrics(workdir)[-1]
  assert "validation/mean_average_precision" in last and "validation/top1" not in last

  evaluation = json.loads((workdir / "evaluation.json").read_text())
  assert evaluation.keys() == {"step", "views", "mean_average_precision", "unreadable"}
  records = open_records(multi_label.NAME, str(tiny_data_dir), "validation")
  rows = list(csv.DictReader((workdir / "predictions.csv").open()))
  assert [row["id"] for row in rows] == [records.video_id(index) for index in range(11)]
  labels = np.zeros((11, 6), np.uint8)
  for index, row in enumerate(rows):
    given = multi_label.labels_of(records, index, "validation")
    assert row["label"] == "|".join(multi_label.CLASSES[label] for label in given)
    labels[index, list(given)] = 1

  model = load_model(workdir)
  assert model.multi_label
  files = []
  for index, row in enumerate(rows):
    files.append(tmp_path / f"{row['id']}.mp4")
    files[-1].write_bytes(records[index]["video"])
  probabilities = np.stack([result.probabilities for result in model.predict(files)])
  for row, values in zip(rows, probabilities):
    assert row["prediction"] == multi_label.CLASSES[values.argmax()]
    assert float(row["probability"]) == pytest.approx(values.max(), abs=1e-5)
  precisions = average_precisions(probabilities, labels)
  assert evaluation["mean_average_precision"] == pytest.approx(np.nanmean(precisions), abs=1e-6)
  table = list(csv.DictReader((workdir / "per_class.csv").open()))
  assert [int(row["positives"]) for row in table] == list(labels.sum(0))
  np.testing.assert_allclose(
    [float(row["average_precision"] or "nan") for row in table], precisions, atol=1e-6
  )

  one_label = [option for option in options if "data.name" not in option]
  other = run(
    tiny_data_dir, tmp_path / "eval", *one_label, "--mode=eval", f"--checkpoint={workdir}"
  )
  assert other.returncode == 1
  assert "gives a video one label, the other any number of them" in other.stderr
