"""Settings of the whole test run."""

import os

from tests.helpers.compiler import FAST_COMPILATION

# Before JAX is loaded: several virtual devices, so that sharding is tested without accelerators.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = " ".join(
  [
    os.environ.get("XLA_FLAGS", ""),
    "--xla_force_host_platform_device_count=8",
    FAST_COMPILATION,
  ]
)

# Only runs that are given a folder, see `helpers.runs`, keep compiled programs.
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"


import pathlib

import pytest


@pytest.fixture(scope="session")
def tiny_data_dir(tmp_path_factory) -> pathlib.Path:
  """A folder with the prepared data set "tiny_motion": 48 training and 21 validation clips."""
  from tests.helpers.tiny_motion import prepare

  folder = tmp_path_factory.mktemp("data")
  prepare(folder)
  return folder
