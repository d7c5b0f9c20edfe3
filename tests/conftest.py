"""Settings of the whole test run."""

import importlib.metadata
import os

# Before JAX is loaded: several virtual devices, so that sharding is tested without accelerators;
# and the compilers that are fastest, since most programs here take longer to compile than to run.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = " ".join(
  [
    os.environ.get("XLA_FLAGS", ""),
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",
  ]
)
# Newer versions have a single emitter and refuse the flag.
if importlib.metadata.version("jaxlib").startswith("0.10."):
  os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"


import pathlib

import pytest


@pytest.fixture(scope="session")
def tiny_data_dir(tmp_path_factory) -> pathlib.Path:
  """A folder with the prepared data set "tiny_motion": 48 training and 21 validation clips."""
  from tests.helpers.tiny_motion import prepare

  folder = tmp_path_factory.mktemp("data")
  prepare(folder)
  return folder
