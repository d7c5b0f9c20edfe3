"""What goes wrong between the processes of a run."""

from vswin_jax.command_line import MAY_PASS


class StartupError(ValueError):
  """Processes that do not belong together; one line says which, and what to do."""


class PassingStartupError(StartupError):
  """What may be over when all start again: a process that is late, a port that is in use."""

  exit_status = MAY_PASS


class DifferenceError(ValueError):
  """Processes that see different things, where they must see the same."""

  # Options were compared before; files on a shared disk may look to a host as they were a moment
  # ago.
  exit_status = MAY_PASS
