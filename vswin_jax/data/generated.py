"""Data sets that the library makes itself, on first use."""

import contextlib
import fcntl
import os
from collections.abc import Iterator

from vswin_jax.data.motion import MotionClips
from vswin_jax.data.records import DatasetError

# A generated data set is a TFDS builder in a file of its own and a line here.
BUILDERS = {MotionClips.name: MotionClips}


def ensure(name: str, data_dir: str) -> None:
  """Makes the data set `name` under `data_dir` if it is a generated one and not there yet.

  It appears under its final name only when it is whole.
  """
  if name not in BUILDERS:
    return
  folder = os.path.expanduser(data_dir)
  builder = BUILDERS[name](data_dir=folder, file_format="array_record")
  if builder.is_prepared():
    return
  try:
    os.makedirs(folder, exist_ok=True)
    with _only_one(os.path.join(folder, f".{name}.lock")):
      if not builder.is_prepared():
        builder.download_and_prepare()
  except OSError as error:
    # On a shared disk without locks another host may have made it: its folder is in our way.
    if not builder.is_prepared():
      raise DatasetError(f"can't make the data set {name} under {data_dir}: {error}") from error


@contextlib.contextmanager
def _only_one(path: str) -> Iterator[None]:
  """Lets one process of this host at a time go on."""
  with open(path, "w") as file:
    # Where a disk has no locks, the work is done twice, no more.
    with contextlib.suppress(OSError):
      fcntl.flock(file, fcntl.LOCK_EX)
    yield
