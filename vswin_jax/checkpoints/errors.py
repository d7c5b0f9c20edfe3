"""Errors of checkpoints: damage, failing storage, and the same error in all processes of a run."""

import contextlib
import errno
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from vswin_jax.common.cli import TRANSIENT, is_transient
from vswin_jax.common.messages import describe_error

# Errors of the environment: another attempt, another user or a larger machine may read the files.
_ENVIRONMENT_ERRORS = (
  MemoryError, PermissionError, TimeoutError, ConnectionError, jax.errors.JaxRuntimeError,
)  # fmt: skip
_ENVIRONMENT_NUMBERS = (
  errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENETDOWN,
  errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH,
)  # fmt: skip
_ENVIRONMENT_MODULES = ("aiohttp", "gcsfs", "google", "requests")
_ENVIRONMENT_CODES = re.compile(
  r"\b(RESOURCE_EXHAUSTED|PERMISSION_DENIED|UNAUTHENTICATED|UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED"
  r"|CANCELLED)\b"
)
# Bytes of the message that a process sends to the others.
_MESSAGE_SIZE = 1000


class CheckpointError(ValueError):
  """Raised when a checkpoint is missing, does not fit, or can't be read or written."""


class StorageError(CheckpointError):
  """Raised when a checkpoint can't be read or written for a reason that may be transient."""

  exit_status = TRANSIENT


class DamagedError(Exception):
  """Raised when the files of a checkpoint are not what was saved."""


# If processes raise different errors, all raise the first of these.
_KINDS = (CheckpointError, StorageError, DamagedError)


def storage_error(message: str, cause: BaseException) -> CheckpointError:
  """Returns a `StorageError` if the cause is transient, else a `CheckpointError`."""
  return (StorageError if is_transient(cause) else CheckpointError)(message)


def root_cause(error: BaseException) -> str:
  """Returns the error at the root of one that Orbax raised, as one line."""
  while error.__cause__ is not None:
    error = error.__cause__
  # TensorStore appends the specification of the file.
  return describe_error(error, str(error).partition("[tensorstore_spec")[0])


@contextlib.contextmanager
def reading(path) -> Iterator[None]:
  """Converts errors of reading a checkpoint.

  Raises:
    CheckpointError: the environment is at fault, such as missing rights or memory.
    DamagedError: any other error.
  """
  try:
    yield
  except _KINDS:
    raise
  except Exception as error:
    if not _is_of_environment(error):
      raise DamagedError(root_cause(error)) from error
    raise storage_error(
      f"can't read {path}: {root_cause(error)}. The checkpoint may be undamaged; fix the cause and "
      "run the same command again",
      error,
    ) from error


def _is_of_environment(error: BaseException | None) -> bool:
  while error is not None:
    if (
      isinstance(error, _ENVIRONMENT_ERRORS)
      or type(error).__module__.startswith(_ENVIRONMENT_MODULES)
      # A missing file, or a folder in place of one, may be damage.
      or (isinstance(error, OSError) and error.errno in _ENVIRONMENT_NUMBERS)
      or _ENVIRONMENT_CODES.search(str(error)[:500])
    ):
      return True
    error = error.__cause__
  return False


def in_all_processes(action: Callable[[], Any]) -> Any:
  """Runs an action in every process of a run, and returns its result if all succeed.

  Raises:
    CheckpointError, StorageError or DamagedError: the same in all processes, if the action raised
      one of them in any.
  """
  error = None
  try:
    result = action()
  except _KINDS as caught:
    error = caught
  if jax.process_count() > 1:
    text = "" if error is None else f"{_KINDS.index(type(error))} {error}"
    data = text.encode()[:_MESSAGE_SIZE].ljust(_MESSAGE_SIZE)
    gathered = multihost_utils.process_allgather(np.frombuffer(data, np.uint8))
    texts = [bytes(row).decode(errors="replace").strip() for row in gathered]
    if any(texts):
      kind, _, message = min(filter(None, texts)).partition(" ")
      error = _KINDS[int(kind)](message)
  if error is not None:
    raise error
  return result
