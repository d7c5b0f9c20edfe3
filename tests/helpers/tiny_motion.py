"""A small data set of generated clips."""

import pathlib
import types

from vswin_jax.data.motion import MotionClips


class TinyMotion(MotionClips):
  """ "tiny_motion": 48 training and 21 validation clips."""

  NUM_CLIPS = types.MappingProxyType({"train": 48, "validation": 21})


def prepare(folder: pathlib.Path) -> None:
  TinyMotion(data_dir=folder, file_format="array_record").download_and_prepare()
