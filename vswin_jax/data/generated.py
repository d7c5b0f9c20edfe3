"""Data sets that the library generates on first use."""

import os

from vswin_jax.data.motion import MotionClips
from vswin_jax.data.records import DatasetError, dataset_lock

# A generated data set is a TFDS builder in a file of its own and a line here.
BUILDERS = {MotionClips.name: MotionClips}


def ensure(name: str, data_dir: str) -> None:
  """Generates the data set `name` atomically if it is one of `BUILDERS` and missing.

  Raises:
    DatasetError: it can't be written under `data_dir`.
  """
  if name not in BUILDERS:
    return
  folder = os.path.expanduser(data_dir)
  builder = BUILDERS[name](data_dir=folder, file_format="array_record")
  try:
    if not builder.is_prepared():
      os.makedirs(folder, exist_ok=True)
      with dataset_lock(name, folder, wait=True):
        builder.download_and_prepare()  # does nothing if another process has done it
  except OSError as error:
    # On a shared disk without locks another host may have generated it first.
    if not builder.is_prepared():
      raise DatasetError(f"can't write the data set {name} to {data_dir}: {error}") from error
