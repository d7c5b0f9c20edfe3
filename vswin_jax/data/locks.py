"""Locks between processes."""

import contextlib
import fcntl
import os
from collections.abc import Iterator

from vswin_jax.data.records import DatasetError


@contextlib.contextmanager
def dataset_lock(name: str, data_dir: str | os.PathLike, *, wait: bool) -> Iterator[None]:
  """Lets one process at a time make the data set `name` under `data_dir`.

  Has no effect on file systems without locks.

  Raises:
    DatasetError: another process holds the lock, and `wait` is false.
  """
  with open(os.path.join(data_dir, f".{name}.lock"), "w") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise DatasetError(f"another process is preparing {name} in {data_dir}") from error
    except OSError:
      pass
    yield
