"""What goes wrong between the processes of a run."""

from vswin_jax.command_line import MAY_PASS


class StartupError(ValueError):
  """Processes that do not belong together; one line says which, and what to do."""


class MissingProcessError(StartupError):
  """Processes that did not come in time."""

  exit_status = MAY_PASS


class DifferenceError(ValueError):
  """Processes that see different things, where they must see the same."""
