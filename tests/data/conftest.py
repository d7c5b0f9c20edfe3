"""Records, and batches of them, that several files of tests use."""

import pytest

from tests.data.batches import training
from vswin_jax.data.records import open_records


@pytest.fixture(scope="module")
def train_records(tiny_data_dir):
  return open_records("tiny_motion", str(tiny_data_dir), "train")


@pytest.fixture(scope="module")
def eval_records(tiny_data_dir):
  return open_records("tiny_motion", str(tiny_data_dir), "validation")


@pytest.fixture(scope="module")
def reference_batches(train_records):
  return training(train_records)
