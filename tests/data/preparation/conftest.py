"""Video files, and a data set prepared from them."""

import pytest

from tests.data.preparation.files import BROKEN, annotate, prepare, write_broken, write_valid


@pytest.fixture(scope="package")
def videos(tmp_path_factory):
  """A folder of valid and broken files, the names of the valid ones, and of the broken ones."""
  folder = tmp_path_factory.mktemp("videos")
  names = write_valid(folder)
  write_broken(folder)
  return folder, names, [name for names in BROKEN.values() for name in names]


@pytest.fixture(scope="package")
def annotations(videos):
  """All files, valid and broken; the last three are the validation split."""
  folder, names, broken = videos
  return annotate(folder, [*broken, *names], validation=3)


@pytest.fixture(scope="package")
def prepared(annotations, tmp_path_factory):
  """Summary of a data set of all files, made in this process with one video a shard."""
  return prepare(annotations, tmp_path_factory.mktemp("data"))
