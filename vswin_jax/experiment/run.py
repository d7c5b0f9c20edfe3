"""A run: trains or resumes, then evaluates."""

from collections.abc import Collection

import jax
from ml_collections import config_dict

from vswin_jax.checkpoints.errors import CheckpointError
from vswin_jax.common.logging import logger, set_up_logging
from vswin_jax.common.paths import LocalPathError
from vswin_jax.data.pipeline import LostWorkerError
from vswin_jax.data.records import DatasetError
from vswin_jax.data.video.decoding import VideoError
from vswin_jax.distributed.compilation_cache import use_compilation_cache
from vswin_jax.distributed.consistency import check_same, check_shared, is_first
from vswin_jax.distributed.errors import StartupError
from vswin_jax.experiment.config import ConfigError, config_errors, read_settings, shared_flags
from vswin_jax.experiment.evaluation import evaluate_newest
from vswin_jax.experiment.experiment import open_experiment
from vswin_jax.experiment.initialization import InitializationError, find_source, override_config
from vswin_jax.experiment.training import train
from vswin_jax.experiment.workdir import RunFolderError, open_run_folder
from vswin_jax.training.evaluation import Evaluation, EvaluationError
from vswin_jax.training.loop import TrainingError
from vswin_jax.training.profile import parse_steps
from vswin_jax.training.stopping import Stopped, StopRequest

# Errors whose message is for the user; a command prints it in place of a traceback.
USER_ERRORS = (
  CheckpointError,
  ConfigError,
  DatasetError,
  EvaluationError,
  InitializationError,
  LocalPathError,
  LostWorkerError,
  RunFolderError,
  StartupError,
  TrainingError,
  VideoError,
)


def run(
  config: config_dict.ConfigDict,
  *,
  workdir: str,
  mode: str,
  checkpoint: str | None = None,
  profile: str | None = None,
  overridden_keys: Collection[str] = (),
) -> Evaluation | None:
  """Trains and evaluates, or only evaluates.

  Args:
    workdir: folder of the run, local or "gs://bucket/folder".
    mode: "train" (train or resume, then evaluate) or "eval".
    checkpoint: for "eval": a workdir or converted weights, whose newest checkpoint is evaluated;
      None: that of `workdir`. Its preprocessing overrides the config.
    profile: for "train": "FIRST:LAST", steps of which a trace is written; None: no trace.
    overridden_keys: keys given on the command line, which the checkpoint does not override.

  Returns:
    The evaluation of the final (or given) checkpoint; None if the run was asked to stop.

  Raises:
    one of `USER_ERRORS`, or OSError.
  """
  # Before JAX looks for devices and logs which kinds it does not find.
  set_up_logging()
  set_up_logging(process=jax.process_index())
  with StopRequest() as stop, open_run_folder(workdir) as folder:
    check_shared(folder.path)
    log = folder.local / f"{mode}.log" if is_first() else None
    set_up_logging(log, process=jax.process_index())
    use_compilation_cache()
    source = find_source(config, folder, mode, checkpoint)
    config = override_config(
      config, source, mode=mode, folder=folder, overridden_keys=overridden_keys
    )
    settings = read_settings(config, mode)
    experiment = open_experiment(settings, folder, mode)
    profile_steps = None
    if profile is not None:
      with config_errors():
        profile_steps = parse_steps(profile, experiment.plan.num_steps)
    check_same(
      shared_flags(settings.values()) | experiment.shared_values() | {"the weights": str(source)}
    )
    if mode == "train":
      step = train(experiment, source, stop, profile_steps)
      if stop.reached:
        logger.info("asked to stop: saved step %d; the same command resumes", step)
        return None
      source = folder.path
    try:
      return evaluate_newest(experiment, source, stop)
    except Stopped:
      logger.info("asked to stop during the evaluation; the same command starts it again")
      return None
