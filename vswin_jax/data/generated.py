"""Data sets that the library makes itself, on first use."""

import os

from vswin_jax.data.motion import MotionClips

# A generated data set is a TFDS builder in a file of its own and a line here.
BUILDERS = {MotionClips.name: MotionClips}


def ensure(name: str, data_dir: str) -> None:
  """Makes the data set `name` under `data_dir` if it is a generated one and not there yet.

  It appears under its final name only when it is whole.
  """
  if name not in BUILDERS:
    return
  builder = BUILDERS[name](data_dir=os.path.expanduser(data_dir), file_format="array_record")
  if not builder.is_prepared():
    builder.download_and_prepare()
