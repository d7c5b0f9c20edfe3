"""Data sets that the library makes itself, on first use."""

import os

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
  builder = BUILDERS[name](data_dir=os.path.expanduser(data_dir), file_format="array_record")
  try:
    if not builder.is_prepared():
      builder.download_and_prepare()
  except OSError as error:
    # Another process may have made it meanwhile: then its folder is in the way of ours.
    if not builder.is_prepared():
      raise DatasetError(f"can't make the data set {name} under {data_dir}: {error}") from error
