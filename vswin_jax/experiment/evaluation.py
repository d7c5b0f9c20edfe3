"""Evaluations of a run: during training, and the final one over all views."""

import contextlib
from collections.abc import Callable

from vswin_jax.checkpoints import manager
from vswin_jax.common.logging import logger
from vswin_jax.common.paths import AnyPath, replacing
from vswin_jax.data import pipeline
from vswin_jax.data.clips import Views, count_views, describe_views, view_frames
from vswin_jax.distributed.consistency import is_first
from vswin_jax.experiment import initialization, results
from vswin_jax.experiment.experiment import Experiment
from vswin_jax.experiment.report import write_report
from vswin_jax.models.parameters import with_shardings
from vswin_jax.training import sharding
from vswin_jax.training.evaluation import Evaluation, evaluate
from vswin_jax.training.metrics import read_metrics
from vswin_jax.training.step import TrainState
from vswin_jax.training.stopping import StopRequest


def validate(
  experiment: Experiment, eval_step: Callable, state: TrainState, stop: StopRequest
) -> dict[str, float]:
  """Returns the validation scores of the parameters and, if there is one, of their EMA.

  Raises:
    Stopped: the run was asked to stop.
  """
  versions = {"validation": state.params}
  if state.ema_params:
    versions["validation_ema"] = state.ema_params
  scores = {}
  views = experiment.settings.validation
  for name, result in _evaluate_params(experiment, eval_step, versions, views, stop).items():
    logger.info("step %d  %s  %s", int(state.step), name, result.describe())
    scores |= {f"{name}/{measure}": value for measure, value in result.scores.items()}
  return scores


def main_score(metrics: dict[str, float]) -> float | None:
  """Returns the validation score that ranks checkpoints, that of the EMA if there is one; None if
  there is no score among the metrics."""
  versions, measures = ("validation_ema", "validation"), ("top1", "mean_average_precision")
  names = (f"{version}/{measure}" for version in versions for measure in measures)
  return next((metrics[name] for name in names if name in metrics), None)


def evaluate_newest(experiment: Experiment, source: AnyPath, stop: StopRequest) -> Evaluation:
  """Evaluates the newest checkpoint of a folder over all views, and writes the results.

  Args:
    source: a workdir or converted weights.

  Raises:
    CheckpointError: no checkpoint that fits the model and the data.
    EvaluationError: no video could be decoded.
    Stopped: the run was asked to stop.
  """
  plan, settings = experiment.plan, experiment.settings
  shapes = with_shardings(plan.param_shapes, sharding.state_shardings(plan.mesh, plan.param_shapes))
  directory = manager.checkpoints_of(source)
  step, params, metadata = manager.restore_params(directory, shapes)
  initialization.check_metadata(directory, metadata, experiment.metadata, resuming=False)
  clip, views, records = settings.clip, settings.test, experiment.eval_records
  num_views = count_views(clip, views)
  logger.info(
    "evaluating step %d of %s: %d videos, %d views each", step, directory, len(records), num_views
  )
  eval_step = plan.jitted_eval_step()
  result = _evaluate_params(experiment, eval_step, {"test": params}, views, stop)["test"]
  logger.info(result.describe())
  if is_first():
    training = metadata.training
    origin = f"{step} steps of {training['batch_size']} clips" if training else "converted weights"
    local, class_names = experiment.folder.local, experiment.class_names
    curves = (local if source == experiment.folder.path else source) / "metrics.jsonl"
    frames = f"{view_frames(clip, views)} frames of {clip.size} x {clip.size}, {clip.frame_order}"
    results.write_results(
      local,
      result,
      metadata={"step": step, "views": num_views},
      class_names=class_names,
      video_ids=[records.video_id(row[0]) for row in result.predictions],
    )
    with replacing(local / "report.png") as path:
      write_report(
        path,
        title=f"{settings.model['name']} on {settings.data.name}",
        subtitle=(
          f"{origin}; clips of {frames}",
          f"{describe_views(clip, views)} views (clips x crops) of each video",
        ),
        evaluation=result,
        class_names=class_names,
        metrics=read_metrics(curves),
      )
    logger.info("report: %s", experiment.folder.path / "report.png")
  return result


def _evaluate_params(
  experiment: Experiment,
  eval_step: Callable,
  versions: dict[str, dict],
  views: Views,
  stop: StopRequest,
) -> dict[str, Evaluation]:
  """Evaluates versions of the parameters over the evaluation split; names unreadable videos."""
  records, mesh, settings = experiment.eval_records, experiment.plan.mesh, experiment.settings
  batch_size = -(-settings.eval_batch_size // mesh.size) * mesh.size
  batches = pipeline.eval_batches(
    records,
    settings.clip,
    views,
    batch_size=batch_size,
    seed=settings.seed,
    options=settings.loader,
    rows=sharding.local_rows(sharding.batch_sharding(mesh), batch_size),
  )
  with contextlib.closing(batches):
    found = evaluate(
      eval_step, versions, batches, len(experiment.class_names), mesh, check_stop=stop.check
    )
  for record in next(iter(found.values())).failed:
    logger.warning("skipped %s: can't decode it", records.video_id(record))
  return found
