"""Trains or evaluates a model: `python -m vswin_jax.main --config=FILE --workdir=DIR`.

Every host of a multi-host run executes the same command.
"""

import functools
import os
import sys

from absl import app, flags
from ml_collections import config_flags

from vswin_jax.common.cli import (
  UNEXPECTED,
  one_line_errors,
  parse_config_flags,
  refuse_arguments,
  unexpected_errors,
)
from vswin_jax.common.huge_pages import restart_with_huge_pages

# Worker processes import this module, so it imports nothing large.

# Python's resource tracker removes the shared memory of the last batches, and warns about it.
os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker:UserWarning")

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, logs, report.")
_MODE = flags.DEFINE_enum(
  "mode",
  "train",
  ["train", "eval", "compile", "selfcheck"],
  "train: train or resume, then evaluate; eval: only evaluate; compile: estimate memory and time "
  "of the training step on a slice you don't have; selfcheck: compare the kernels of this machine "
  "with XLA, for the model of --config or, without one, for a few.",
)
_CHECKPOINT = flags.DEFINE_string(
  "checkpoint", None, "For --mode=eval: a run, or converted weights, to evaluate in --workdir."
)
_TOPOLOGY = flags.DEFINE_string(
  "topology",
  "",
  "For --mode=compile: v5e:8x8, v4-128, 2*v5e:16x16, h100:1x1x8, or a comma-separated list.",
)
_EFFORT = flags.DEFINE_enum(
  "effort", "full", ["quick", "full"], "For --mode=compile: optimization effort of the compiler."
)
_SEARCH = flags.DEFINE_bool(
  "search", True, "For --mode=compile: search for the maximum batch size."
)
_PROFILE = flags.DEFINE_string(
  "profile",
  None,
  "For --mode=train: FIRST:LAST, the steps to trace; the trace is written to WORKDIR/profile.",
)
_COORDINATOR = flags.DEFINE_string(
  "coordinator",
  None,
  "HOST:PORT of process 0; detected under SLURM and on TPU pods.",
)
_NUM_PROCESSES = flags.DEFINE_integer(
  "num_processes", None, "Number of processes; 1 without --coordinator: this process alone.", 1
)
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Index of this process, from 0.", 0)
_START_TIMEOUT = flags.DEFINE_float(
  "start_timeout", 300.0, "Seconds within which all processes must have started.", 1.0
)
_HEARTBEAT_TIMEOUT = flags.DEFINE_float(
  "heartbeat_timeout", 60.0, "Seconds of silence after which a process counts as dead.", 5.0
)
_STOP_STATUS = flags.DEFINE_integer(
  "stop_status", 0, "Exit status after SIGTERM, when the run has saved and stopped.", 0, 255
)


def main(arguments: list[str]) -> None:
  refuse_arguments(arguments)
  if _CONFIG.value is None and _MODE.value != "selfcheck":
    sys.exit("error: give --config=FILE, such as configs/quickstart.py")
  if _WORKDIR.value is None and _MODE.value in ("train", "eval"):
    sys.exit("error: give --workdir=DIR, the folder for checkpoints, logs and report")
  if _TOPOLOGY.value and _MODE.value != "compile":
    sys.exit("error: --topology goes with --mode=compile")
  if _CHECKPOINT.value and _MODE.value != "eval":
    sys.exit("error: --checkpoint goes with --mode=eval; to start from weights: --config.init_from")
  if _PROFILE.value is not None and _MODE.value != "train":
    sys.exit("error: --profile goes with --mode=train")

  if _MODE.value == "selfcheck":
    _self_check()
    return
  overridden_keys = list(config_flags.get_override_values(flags.FLAGS["config"]))
  if _MODE.value == "compile":
    _compile(overridden_keys)
  else:
    _run(overridden_keys)


def _compile(overridden_keys: list[str]) -> None:
  from vswin_jax.aot.devices import prepare_environment

  prepare_environment()
  from vswin_jax.aot.compile import compile_config
  from vswin_jax.aot.topologies import TargetError
  from vswin_jax.experiment.run import USER_ERRORS

  with one_line_errors(
    "results so far are in --workdir, if it was given",
    (*USER_ERRORS, TargetError),
  ):
    results = compile_config(
      _CONFIG.value,
      _TOPOLOGY.value,
      workdir=_WORKDIR.value,
      effort=_EFFORT.value,
      search=_SEARCH.value,
      overridden_keys=overridden_keys,
    )
  if any(result.error for result in results):
    sys.exit(UNEXPECTED)


def _self_check() -> None:
  from vswin_jax.common.logging import set_up_logging
  from vswin_jax.experiment.config import ConfigError, read_settings
  from vswin_jax.experiment.run import USER_ERRORS
  from vswin_jax.inference import self_check

  set_up_logging()
  with unexpected_errors(), one_line_errors("nothing was written", USER_ERRORS):
    models = self_check.examples()
    if _CONFIG.value is not None:
      if _CONFIG.value.model.name is None:
        raise ConfigError("this config names no model; give --config.model.name")
      settings = read_settings(_CONFIG.value)
      models = [(settings.model, settings.clip.num_frames, settings.clip.size)]
    print(self_check.describe_machine())
    agreements = [one for model in models for one in self_check.check_all(*model)]
    print(self_check.table(agreements) if agreements else "this model has no kernels to compare")
  if not all(one.agrees for one in agreements):
    sys.exit("error: not all kernels agree with XLA; runs compute these models with XLA")


def _run(overridden_keys: list[str]) -> None:
  from vswin_jax.distributed import clusters, processes
  from vswin_jax.experiment.config import shared_flags
  from vswin_jax.experiment.run import USER_ERRORS, run

  one_line = functools.partial(
    one_line_errors, "the same command resumes from the last checkpoint", USER_ERRORS
  )
  with unexpected_errors(), one_line():
    processes.start(
      clusters.find_cluster(
        _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value, timeout=_START_TIMEOUT.value
      ),
      start_timeout=_START_TIMEOUT.value,
      heartbeat_timeout=_HEARTBEAT_TIMEOUT.value,
      metadata=shared_flags(_CONFIG.value.to_dict())
      | {
        "--workdir": _WORKDIR.value,
        "--mode": _MODE.value,
        "--checkpoint": str(_CHECKPOINT.value),
        "--profile": str(_PROFILE.value),
      },
    )
  with processes.ending_together(), one_line():
    result = run(
      _CONFIG.value,
      workdir=_WORKDIR.value,
      mode=_MODE.value,
      checkpoint=_CHECKPOINT.value,
      profile=_PROFILE.value,
      overridden_keys=overridden_keys,
    )
  if result is None:
    sys.exit(_STOP_STATUS.value)


if __name__ == "__main__":
  restart_with_huge_pages()
  app.run(main, flags_parser=parse_config_flags)
