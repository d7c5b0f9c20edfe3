import pytest

from tests.launch.programs import FakePrograms


@pytest.fixture
def programs(tmp_path) -> FakePrograms:
  return FakePrograms(tmp_path)
