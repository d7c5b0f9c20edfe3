"""Video records: their schema, and random access to those of a TFDS data set; locks of data sets.

A data set is a folder of array_record files and metadata. TFDS reads it without TensorFlow and
without this library.
"""

import contextlib
import dataclasses
import fcntl
import os
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow_datasets as tfds

from vswin_jax.common.messages import describe_error
from vswin_jax.data.video.decoding import VideoMetadata


class DatasetError(ValueError):
  """Raised when a data set is missing or not as expected."""


def features(class_names: list[str], multi_label: bool = False) -> tfds.features.FeaturesDict:
  """Returns the schema of a record: encoded video, its `VideoMetadata`, id, and label or labels."""
  label = tfds.features.ClassLabel(names=class_names)
  return tfds.features.FeaturesDict(
    {
      "video": tfds.features.Scalar(np.bytes_),
      "id": tfds.features.Text(),
      "label": tfds.features.Sequence(label) if multi_label else label,
      **{field.name: tfds.features.Scalar(np.int32) for field in dataclasses.fields(VideoMetadata)},
    }
  )


def record(
  video: bytes, video_id: str, label: int | str | Sequence[int | str], metadata: VideoMetadata
) -> dict:
  """Returns a record in the schema of `features`; a multi-label one has a sequence of labels."""
  return {"video": video, "id": video_id, "label": label, **dataclasses.asdict(metadata)}


@dataclasses.dataclass(frozen=True)
class VideoRecords:
  """Random access to the records of one split. Picklable.

  Attributes:
    source: records by index.
    class_names: by label.
    multi_label: whether the label of a record is an array of any number of classes.
  """

  source: Sequence[dict]
  class_names: tuple[str, ...]
  multi_label: bool = False

  def __len__(self) -> int:
    return len(self.source)

  def __getitem__(self, index: int) -> dict:
    try:
      return self.source[index]
    except RuntimeError as error:
      raise DatasetError(f"record {index} can't be read: {describe_error(error)}") from error

  def video_id(self, index: int) -> str:
    return self[index]["id"].decode()


def open_records(name: str, data_dir: str, split: str) -> VideoRecords:
  """Opens a split of a prepared data set.

  Args:
    name: of a folder in `data_dir`; "name:1.0.0" selects a version, the default is the newest.
    data_dir: folder of TFDS data sets.
    split: TFDS split, such as "train" or "train[:10%]".

  Raises:
    DatasetError: no such data set or split, or records of another schema.
  """
  builder = _open_builder(name, data_dir)
  try:
    source = builder.as_data_source(split=split)
  except Exception as error:
    raise DatasetError(
      f"can't read split {split!r} of {name!r} under {data_dir}, whose splits are "
      f"{', '.join(builder.info.splits)}: {describe_error(error)}"
    ) from error
  label = builder.info.features["label"]
  multi_label = isinstance(label, tfds.features.Sequence)
  classes = label.feature if multi_label else label
  return VideoRecords(source, tuple(classes.names), multi_label)


def split_names(name: str, data_dir: str) -> list[str]:
  """Returns the splits of a data set; arguments and errors are those of `open_records`."""
  return list(_open_builder(name, data_dir).info.splits)


def _open_builder(name: str, data_dir: str) -> tfds.core.DatasetBuilder:
  if not name:
    raise DatasetError("no data set is named; give --config.data.name")
  where = f"{name!r} under {data_dir}"
  # TFDS would take some names for those of its own data sets.
  folder, _, version = name.partition(":")
  home = pathlib.Path(os.path.expanduser(data_dir), folder)
  versions = [
    path
    for path in home.glob("*")
    if tfds.core.Version.is_valid(path.name) and version in ("", path.name)
  ]
  if not versions:
    raise DatasetError(
      f"no data set {where}: expected {data_dir}/{folder}/{version or '<version>'}/ with "
      "dataset_info.json, features.json and array_record files of encoded videos in the schema of "
      "vswin_jax.data.records.features; make it with `python -m vswin_jax.prepare`, or point "
      "--config.data.dir at it"
    )
  try:
    newest = max(versions, key=lambda path: tfds.core.Version(path.name))
    builder = tfds.builder_from_directory(newest)
  except Exception as error:
    raise DatasetError(f"can't read the data set {where}: {describe_error(error)}") from error
  missing = set(features(["any"])) - set(builder.info.features)
  if missing:
    raise DatasetError(f"{where} holds no video records: no {', '.join(sorted(missing))}")
  return builder


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
