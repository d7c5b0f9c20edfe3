"""Data set metadata, with and without files."""

import pytest

from vswin_jax.aot.dataset_metadata import dataset_metadata
from vswin_jax.data.records import DatasetError


@pytest.mark.parametrize(
  "name, classes, least, most",
  [
    ("kinetics400", 400, 240_436, 240_436),
    ("kinetics600", 600, 350_000, 400_000),
    ("kinetics700", 700, 520_000, 550_000),
    ("something_something_v2", 174, 168_913, 168_913),
    ("motion_clips", 6, 4096, 4096),
  ],
)
def test_known_data_sets_need_no_files(name, classes, least, most, tmp_path):
  metadata, _ = dataset_metadata(name, str(tmp_path), "train")
  assert metadata["num_classes"] == classes
  assert least <= metadata["num_videos"] <= most
  assert not metadata["multi_label"]


def test_prepared_data_sets(tiny_data_dir):
  metadata, source = dataset_metadata("tiny_motion", str(tiny_data_dir), "train")
  assert metadata == {"num_classes": 6, "num_videos": 48, "multi_label": False}
  assert str(tiny_data_dir) in source


def test_unreadable_data_sets(tmp_path, tiny_data_dir, monkeypatch):
  with pytest.raises(DatasetError, match=r"split 'trian' of .* are train"):
    dataset_metadata("tiny_motion", str(tiny_data_dir), "trian")
  (tmp_path / "kinetics400" / "1.0.0").mkdir(parents=True)
  with pytest.raises(DatasetError, match="can't read the data set 'kinetics400'"):
    dataset_metadata("kinetics400", str(tmp_path), "train")
  monkeypatch.setenv("HOME", str(tmp_path))
  with pytest.raises(DatasetError, match="can't read the data set"):
    dataset_metadata("kinetics400", "~", "train")


def test_unknown_data_sets(tmp_path):
  with pytest.raises(DatasetError, match="no data set 'my_videos'"):
    dataset_metadata("my_videos", str(tmp_path), "train")
