"""What the processes of a run, once connected, make sure to agree on.

Where they did not, they would do different things, and wait for each other forever or add up what
does not belong together. All processes call these functions together.
"""

import contextlib
import secrets
import zlib
from collections.abc import Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils

from vswin_jax.common.paths import AnyPath
from vswin_jax.distributed.errors import DifferenceError, TransientDifferenceError

_TOKEN = "processes_of_this_run"


def is_first() -> bool:
  """Whether this process, of all of the run, writes what the run leaves besides checkpoints."""
  return jax.process_index() == 0


def of_first(number: int) -> int:
  """The number that process 0 has."""
  if jax.process_count() == 1:
    return number
  return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def check_same(metadata: Mapping[str, str]) -> None:
  """Compares metadata, by name, with those of process 0.

  Raises:
    TransientDifferenceError: in all processes, if one has another. Options were compared before: it
      is about files.
  """
  if jax.process_count() == 1:
    return
  marks = np.array([zlib.crc32(str(value).encode()) for value in metadata.values()], np.uint32)
  differences = multihost_utils.process_allgather(marks)
  differences = differences != differences[0]
  if differences.any():
    process, place = (int(index) for index in np.argwhere(differences)[0])
    name = list(metadata)[place]
    own = f" (here: {metadata[name]})" if len(str(metadata[name])) < 200 else ""
    raise TransientDifferenceError(
      f"{name} is not the same in process {process} as in process 0{own}; all hosts must see the "
      "same files and be given the same options"
    )


def check_shared(folder: AnyPath) -> None:
  """Makes sure that all processes see one folder under its name.

  Raises:
    DifferenceError: in all processes, if one does not.
  """
  if jax.process_count() == 1:
    return
  token = of_first(secrets.randbelow(2**31))
  file = folder / f".{_TOKEN}"
  if is_first():
    file.write_text(str(token))
  multihost_utils.sync_global_devices("vswin_jax/token")
  try:
    sees_it = file.read_text() == str(token)
  except OSError:
    sees_it = False
  seen = multihost_utils.process_allgather(np.bool_(sees_it))
  if is_first():
    with contextlib.suppress(OSError):
      file.unlink()
  if not seen.all():
    blind = ", ".join(str(process) for process in np.flatnonzero(~seen))
    raise DifferenceError(
      f"{folder} is not the same folder in process {blind} as in process 0; give a --workdir on a "
      "disk that all hosts share, or in a bucket"
    )
