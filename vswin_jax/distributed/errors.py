"""Errors of multi-process runs, with the exit status that launchers act on."""

from vswin_jax.common.cli import TRANSIENT


class StartupError(ValueError):
  """Raised when the processes are not those of one run: missing, or with other options or files."""


class TransientStartupError(StartupError):
  """Startup error that a restart may resolve: a late process, a port in use, a stale file view."""

  exit_status = TRANSIENT
