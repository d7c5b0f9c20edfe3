"""Log messages of this library."""

import functools
import logging
import sys

import absl.logging

# Messages about the whole run, which only the first process prints.
logger = logging.getLogger("vswin_jax")
# Messages about one process, which that process prints.
own_logger = logger.getChild("process")


@functools.cache
def log_once(message: str) -> None:
  """Logs a message about the whole run, unless it was logged before."""
  logger.info(message)


def set_up_logging(path=None, *, process: int = 0) -> None:
  """Sends messages to standard error and, if given, appends them to a file.

  Args:
    process: number of this process in its run.
  """
  absl.logging.set_verbosity(absl.logging.WARNING)
  logger.setLevel(logging.INFO if process == 0 else logging.ERROR)
  own_logger.setLevel(logging.WARNING)
  logger.propagate = False
  for handler in list(logger.handlers):
    logger.removeHandler(handler)
    handler.close()
  console = logging.StreamHandler(sys.stderr)
  console.setFormatter(logging.Formatter(f"[process {process}] %(message)s" if process else None))
  logger.addHandler(console)
  if path is not None:
    file = logging.FileHandler(path)
    file.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S"))
    logger.addHandler(file)
