"""Consistency checks across connected processes (config, data set, shared workdir).

Processes that differ would compute different things, or wait for each other forever. All processes
must call each of these functions, in the same order.
"""

import contextlib
import secrets
import zlib
from collections.abc import Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils

from vswin_jax.common.paths import AnyPath
from vswin_jax.distributed.errors import StartupError, TransientStartupError


def is_first() -> bool:
  """Returns whether this is process 0, which alone writes logs, metrics and reports."""
  return jax.process_index() == 0


def broadcast_from_first(number: int) -> int:
  """Returns the number that process 0 passed."""
  return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def holds_everywhere(condition: bool) -> bool:
  """Returns whether all processes passed True."""
  return bool(multihost_utils.process_allgather(np.bool_(condition)).all())


def check_same(metadata: Mapping[str, str]) -> None:
  """Checks that values are the same in all processes.

  Args:
    metadata: values by name; the same names in all processes.

  Raises:
    TransientStartupError: in all processes, if one differs from process 0. The startup barrier has
      compared the options, so the cause is what hosts see of the files.
  """
  checksums = np.array([zlib.crc32(str(value).encode()) for value in metadata.values()], np.uint32)
  gathered = multihost_utils.process_allgather(checksums)
  differences = np.argwhere(gathered != gathered[0])
  if differences.size:
    process, column = differences[0]
    name, value = list(metadata.items())[column]
    own = f" (here: {value})" if len(str(value)) < 200 else ""
    raise TransientStartupError(
      f"{name} is not the same in process {process} as in process 0{own}; all hosts must see the "
      "same files and be given the same options"
    )


def sees_same_folder(folder: AnyPath) -> np.ndarray:
  """Returns for each process whether it sees the same folder under its name as process 0.

  Raises:
    OSError: process 0 can't write to the folder.
  """
  if jax.process_count() == 1:
    return np.ones(1, bool)
  # Other runs may check the same folder at the same time.
  file = folder / f".processes_of_run_{broadcast_from_first(secrets.randbelow(2**31))}"
  if is_first():
    file.write_text("checks that all processes see this folder\n")
  multihost_utils.sync_global_devices("vswin_jax/token")
  try:
    is_shared = file.exists()
  except OSError:
    is_shared = False
  shared = multihost_utils.process_allgather(np.bool_(is_shared))
  if is_first():
    with contextlib.suppress(OSError):
      file.unlink()
  return shared


def check_shared(folder: AnyPath) -> None:
  """Checks that all processes see the same folder under its name.

  Raises:
    StartupError: in all processes, if one does not.
  """
  shared = sees_same_folder(folder)
  if not shared.all():
    others = ", ".join(map(str, np.flatnonzero(~shared)))
    raise StartupError(
      f"{folder} is not the same folder in process {others} as in process 0; give a --workdir on a "
      "disk that all hosts share, or in a bucket"
    )
