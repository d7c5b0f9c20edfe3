"""Files of a run besides checkpoints and metrics: config and results."""

import json
import pathlib

from flax.traverse_util import flatten_dict

from vswin_jax.common.logging import logger
from vswin_jax.common.paths import AnyPath, replacing, write_table
from vswin_jax.experiment.config import Settings
from vswin_jax.training.evaluation import Evaluation

# Keys and sections that may change when a run resumes: results differ by rounding at most.
_FREE_TO_CHANGE = (
  "data.dir",
  "data.max_failed_share",
  "eval_batch_size",
  "init_from",
  "loader",
  "mesh",
  "starts_from",
  "test",
  "train.keep",
  "train.keep_best",
  "train.keep_every",
  "train.save_every",
)


def write_config(workdir: pathlib.Path, settings: Settings) -> None:
  """Writes `config.json`."""
  with replacing(workdir / "config.json") as path:
    path.write_text(json.dumps(settings.values(), indent=2, sort_keys=True) + "\n")


def read_config(workdir: AnyPath) -> dict | None:
  """Returns the config that a run was started with, as nested dicts; None if there is none."""
  path = workdir / "config.json"
  return json.loads(path.read_text()) if path.exists() else None


def warn_of_changes(workdir: pathlib.Path, settings: Settings) -> None:
  """Logs which config values differ from those that the run was started with."""
  started_with = read_config(workdir)
  if started_with is None:
    return
  # Keys missing in the file had their defaults.
  default = Settings(model={"name": settings.model["name"]})
  now, before, started_with = (
    flatten_dict(values, sep=".") for values in (settings.values(), default.values(), started_with)
  )
  before |= started_with
  for key in sorted(before.keys() | now.keys()):
    free = any(f"{key}.".startswith(f"{name}.") for name in _FREE_TO_CHANGE)
    if before.get(key) != now.get(key) and not free:
      logger.warning(
        "config.%s was %s when this run was started and is %s now: the run will differ from an "
        "uninterrupted one",
        key,
        before.get(key),
        now.get(key),
      )


def write_results(
  workdir: pathlib.Path,
  result: Evaluation,
  *,
  metadata: dict,
  class_names: tuple[str, ...],
  video_ids: list[str],
) -> None:
  """Writes `predictions.csv`, `per_class.csv` and, last, `evaluation.json`.

  Labels of a multi-label video share one field of `predictions.csv`, separated by "|".

  Args:
    metadata: written to `evaluation.json` beside the scores.
    video_ids: of the rows of `result.predictions`.
  """
  rows = (
    (video, "|".join(class_names[label] for label in labels), class_names[prediction], f"{p:.6f}")
    for video, (_, labels, prediction, p) in zip(video_ids, result.predictions)
  )
  write_table(workdir / "predictions.csv", ("id", "label", "prediction", "probability"), rows)
  write_table(workdir / "per_class.csv", *_class_table(result, class_names))
  numbers = metadata | result.scores | {"unreadable": len(result.failed)}
  with replacing(workdir / "evaluation.json") as path:
    path.write_text(json.dumps(numbers, indent=2) + "\n")


def _class_table(result: Evaluation, class_names: tuple[str, ...]) -> tuple[tuple, list[tuple]]:
  """Returns the header and the rows of `per_class.csv`; a field without a value is empty."""
  if result.multi_label:
    rows = zip(class_names, result.positives, result.average_precision)
    return ("class", "positives", "average_precision"), [
      (name, positives, f"{precision:.6f}" if positives else "")
      for name, positives, precision in rows
    ]
  header = ("class", "videos", "correct", "accuracy", "most_confused_with", "videos_confused")
  rows = []
  for name, row, accuracy, errors in zip(
    class_names, result.confusion, result.class_accuracies, result.errors
  ):
    videos, wrong = row.sum(), errors.argmax()
    rows.append(
      (
        name,
        videos,
        videos - errors.sum(),
        f"{accuracy:.6f}" if videos else "",
        class_names[wrong] if errors[wrong] else "",
        errors[wrong],
      )
    )
  return header, rows
