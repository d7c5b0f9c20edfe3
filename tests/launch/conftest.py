import pytest

from tests.launch.shell import Cluster


@pytest.fixture
def cluster(tmp_path) -> Cluster:
  return Cluster(tmp_path)
