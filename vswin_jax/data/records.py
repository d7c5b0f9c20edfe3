"""Records: what one example of a video data set holds, on disk and in memory.

A data set is a folder of TFDS records (array_record, encoded video bytes), readable without
TensorFlow and without the code that made it.
"""

import dataclasses
import os
import pathlib
from collections.abc import Sequence

import numpy as np
import tensorflow_datasets as tfds

from vswin_jax.common.messages import describe_error
from vswin_jax.data.video.decoding import VideoMetadata


class DatasetError(ValueError):
  """A data set that is missing or not what was expected; the message says what to do."""


def features(class_names: list[str], multi_label: bool = False) -> tfds.features.FeaturesDict:
  """Schema of a record: encoded video, its metadata (from `decoding.probe`), id and label.

  Args:
    class_names: by index.
    multi_label: a video may show any number of classes: its label is a sequence.
  """
  label = tfds.features.ClassLabel(names=class_names)
  return tfds.features.FeaturesDict(
    {
      "video": tfds.features.Scalar(np.bytes_),
      "id": tfds.features.Text(),
      "label": tfds.features.Sequence(label) if multi_label else label,
      "num_frames": tfds.features.Scalar(np.int32),
      "height": tfds.features.Scalar(np.int32),
      "width": tfds.features.Scalar(np.int32),
      "fps_numerator": tfds.features.Scalar(np.int32),
      "fps_denominator": tfds.features.Scalar(np.int32),
    }
  )


def record(
  video: bytes, video_id: str, label: int | str | Sequence[int | str], metadata: VideoMetadata
) -> dict:
  """One example in the schema of `features`; with several labels, `label` is a sequence."""
  return {"video": video, "id": video_id, "label": label, **dataclasses.asdict(metadata)}


@dataclasses.dataclass(frozen=True)
class VideoRecords:
  """Random access to the records of one split: `len(records)`, `records[i]`; picklable.

  Attributes:
    source: of records, by index.
    class_names: by index.
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
    return self.source[index]["id"].decode()


def open_records(name: str, data_dir: str, split: str) -> VideoRecords:
  """Opens a split of a prepared data set.

  Args:
    name: of the data set, a folder below `data_dir`; "name:1.0.0" asks for one version.
    data_dir: folder of data sets, as TFDS lays them out.
    split: TFDS split, such as "train" or "train[:10%]".

  Raises:
    DatasetError: no such data set or split, or records of another kind.
  """
  where = f"{name!r} under {data_dir}"
  builder = _open_builder(name, data_dir)
  known = ", ".join(builder.info.splits)
  try:
    source = builder.as_data_source(split=split)
  except (ValueError, KeyError) as error:
    raise DatasetError(f"{where} has no split {split!r}; it has {known}") from error
  except NotImplementedError as error:
    raise DatasetError(
      f"{where} is not stored as array_record: {describe_error(error)}; prepare it with "
      'file_format="array_record"'
    ) from error
  except Exception as error:
    raise DatasetError(f"can't read the files of {where}: {describe_error(error)}") from error
  label = builder.info.features["label"]
  multi_label = isinstance(label, tfds.features.Sequence)
  classes = label.feature if multi_label else label
  return VideoRecords(source, tuple(classes.names), multi_label)


def split_names(name: str, data_dir: str) -> list[str]:
  """The splits of a prepared data set.

  Raises:
    DatasetError: as `open_records`.
  """
  return list(_open_builder(name, data_dir).info.splits)


def _open_builder(name: str, data_dir: str) -> tfds.core.DatasetBuilder:
  where = f"{name!r} under {data_dir}"
  if not name:
    raise DatasetError("no data set is named; give --config.data.name")
  # By its folder, not by its name: some names are those of data sets that TFDS makes itself.
  folder, _, version = name.partition(":")
  home = pathlib.Path(os.path.expanduser(data_dir), folder)
  versions = [
    path
    for path in (home.iterdir() if home.is_dir() else ())
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
