"""Trains or evaluates a model: `python -m vswin_jax.main --config=FILE --workdir=DIR`."""

import sys

from absl import app, flags
from ml_collections import config_flags

# Nothing heavy is imported here: worker processes that decode video import this module too.

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, logs, report.")
_MODE = flags.DEFINE_enum(
  "mode", "train", ["train", "eval"], "train: train or resume, then evaluate; eval: only evaluate."
)
_CHECKPOINT = flags.DEFINE_string(
  "checkpoint", None, "For --mode=eval: workdir of the run to evaluate instead of --workdir."
)


def main(_) -> None:
  from vswin_jax import experiment

  try:
    experiment.run(
      _CONFIG.value, workdir=_WORKDIR.value, mode=_MODE.value, checkpoint=_CHECKPOINT.value
    )
  except experiment.USER_ERRORS as error:
    sys.exit(f"error: {error}")


def _one_line_flag_errors(arguments: list[str]) -> list[str]:
  """Parses flags; a config key or value that does not exist ends the program with one line."""
  try:
    return app.parse_flags_with_usage(arguments)
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    sys.exit(f"error: config key {' '.join(str(error.args[0]).split())}")


if __name__ == "__main__":
  flags.mark_flags_as_required(["config", "workdir"])
  app.run(main, flags_parser=_one_line_flag_errors)
