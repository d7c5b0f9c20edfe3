"""What goes wrong between the processes of a run."""

from vswin_jax.common.cli import TRANSIENT


class StartupError(ValueError):
  """Processes that do not belong together; one line says which, and what to do."""


class TransientStartupError(StartupError):
  """What may be over when all start again: a process that is late, a port that is in use."""

  exit_status = TRANSIENT


class DifferenceError(ValueError):
  """Processes that see different things, where they must see the same."""


class TransientDifferenceError(DifferenceError):
  """What hosts may see alike a moment later: files on a shared disk look to some as they were."""

  exit_status = TRANSIENT
