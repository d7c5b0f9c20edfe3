"""Errors of multi-process runs, with the exit status that launchers act on."""

from vswin_jax.common.cli import TRANSIENT


class StartupError(ValueError):
  """Raised when processes are missing or do not belong to one run."""


class TransientStartupError(StartupError):
  """Startup error that a restart may resolve: a late process, or a port that is in use."""

  exit_status = TRANSIENT


class ConsistencyError(ValueError):
  """Raised when processes see different values or folders where they must see the same."""


class TransientConsistencyError(ConsistencyError):
  """Consistency error that a restart may resolve: a stale view of a shared file system."""

  exit_status = TRANSIENT
