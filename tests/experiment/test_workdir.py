"""Runs in a bucket, served on this machine: small files, checkpoints, weights."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("gcsfs")

from tests.helpers import fake_bucket
from vswin_jax.common.paths import LocalPathError, file_path
from vswin_jax.experiment.results import read_config
from vswin_jax.experiment.workdir import RunFolderError, open_run_folder
from vswin_jax.training.metrics import MetricsWriter, read_metrics


@pytest.fixture(scope="module")
def bucket():
  """Contents of a served bucket; gcsfs is told once of it, as it keeps its connections."""
  import fsspec

  with fake_bucket.serving() as (address, objects), pytest.MonkeyPatch.context() as patch:
    for name, value in fake_bucket.environment(address).items():
      patch.setenv(name, value)
    fsspec.filesystem("gcs").clear_instance_cache()
    yield objects


def test_a_local_folder_is_used_as_it_is(tmp_path):
  with open_run_folder(tmp_path / "a" / "run") as folder:
    assert folder.path == folder.local == tmp_path / "a" / "run"
    assert folder.local.is_dir()
    assert folder.checkpoints == tmp_path / "a" / "run" / "checkpoints"
    (folder.local / "train.log").write_text("line")
    folder.publish()
  assert (tmp_path / "a" / "run" / "train.log").read_text() == "line"


def test_a_folder_that_can_not_be_made_is_one_line(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(RunFolderError, match=r"can't create the workdir: .*file"):
    with open_run_folder(tmp_path / "file" / "run"):
      pass


def test_traces_are_stored_with_the_run(bucket, tmp_path):
  session = tmp_path / "trace/plugins/profile/steps_3_5"
  session.mkdir(parents=True)
  (session / "host.xplane.pb").write_bytes(b"trace")
  for workdir in (str(tmp_path / "run"), "gs://first/runs/traced"):
    with open_run_folder(workdir) as folder:
      folder.store_profile(tmp_path / "trace")
  name = "profile/plugins/profile/steps_3_5/host.xplane.pb"
  assert (tmp_path / "run" / name).read_bytes() == b"trace"
  assert bucket[f"first/runs/traced/{name}"] == b"trace"


def test_small_files_go_to_the_bucket_and_come_back(bucket):
  with open_run_folder("gs://first/runs/one") as folder:
    assert str(folder.path) == "gs://first/runs/one"
    assert os.fspath(folder.checkpoints) == "gs://first/runs/one/checkpoints"
    assert list(folder.local.iterdir()) == []
    (folder.local / "config.json").write_text('{"seed": 3}')
    (folder.local / ".train.log.tmp").write_text("half")
    writer = MetricsWriter(folder.local, 0)
    writer.write(5, {"train/loss": 2.0})
    folder.publish()
    assert bucket["first/runs/one/config.json"] == b'{"seed": 3}'
    assert bucket["first/runs/one/metrics.jsonl"] == b'{"step": 5, "train/loss": 2.0}\n'
    events = [key for key in bucket if key.startswith("first/runs/one/tensorboard/events")]
    assert len(events) == 1
    assert not any(".tmp" in key for key in bucket)
    # What did not change is not copied again.
    bucket["first/runs/one/config.json"] = b'{"seed": 4}'
    writer.write(6, {"train/loss": 1.0})
    writer.close()
    local = folder.local
  assert not local.exists()
  assert bucket["first/runs/one/config.json"] == b'{"seed": 4}'
  assert bucket["first/runs/one/metrics.jsonl"].count(b"\n") == 2
  before = bucket[events[0]]
  with open_run_folder("gs://first/runs/one") as folder:
    assert read_config(folder.local) == read_config(folder.path) == {"seed": 4}
    assert sorted(path.name for path in folder.local.iterdir()) == ["config.json", "metrics.jsonl"]
    with (folder.local / "metrics.jsonl").open("a") as file:
      file.write('{"step": 7}\n')
  lines = read_metrics("gs://first/runs/one/metrics.jsonl")
  assert [line["step"] for line in lines] == [5, 6, 7]
  assert bucket[events[0]] == before


def test_an_error_leaves_the_log_in_the_bucket(bucket):
  with pytest.raises(KeyError):
    with open_run_folder("gs://second/run") as folder:
      (folder.local / "train.log").write_text("why")
      raise KeyError
  assert bucket["second/run/train.log"] == b"why"


def test_only_the_first_process_writes(bucket, monkeypatch):
  monkeypatch.setattr("vswin_jax.experiment.workdir.is_first", lambda: False)
  with open_run_folder("gs://third/run") as folder:
    (folder.local / "train.log").write_text("another")
    folder.publish()
  assert not any(key.startswith("third/") for key in bucket)


def test_names_of_buckets(monkeypatch):
  assert os.fspath(file_path("gs://bucket/a") / "b") == "gs://bucket/a/b"
  with pytest.raises(LocalPathError, match="names no bucket; expected gs://BUCKET/FOLDER"):
    file_path("gs:///run")
  with pytest.raises(LocalPathError, match="s3://bucket/run is not a file or folder"):
    file_path("s3://bucket/run")
  monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
  with pytest.raises(LocalPathError, match=r"pip install 'vswin_jax\[gcs\]'"):
    file_path("gs://bucket/run")


# In a process of its own: TensorStore reads the address once.
_TRAINED_IN_A_BUCKET = """
import jax, jax.numpy as jnp, numpy as np, optax
from vswin_jax.experiment.workdir import open_run_folder
from vswin_jax.checkpoints import manager
from vswin_jax.checkpoints.metadata import CheckpointMetadata
from vswin_jax.checkpoints.selection import complete_steps, newest_step
from vswin_jax.data.preprocessing import Preprocessing
from vswin_jax.training.step import create_state

def metadata_at(step):
  return CheckpointMetadata({"name": "x"}, Preprocessing(), training={"step": step})

def state_at(step):
  params = {"head": {"kernel": jax.random.normal(jax.random.key(step), (200, 100))}}
  state = create_state(params, optax.adam(1e-3), with_ema=False)
  return state.replace(step=jnp.int32(step))

with open_run_folder("gs://fourth/run") as folder:
  assert newest_step(folder.checkpoints) is None
  with manager.open_checkpoints(folder.checkpoints, keep=2) as checkpoints:
    for step in (1, 2, 3):
      manager.save(checkpoints, state_at(step), metadata_at(step))
  assert complete_steps(folder.checkpoints) == [2, 3]
  data_files = folder.checkpoints / "3" / "state" / "ocdbt.process_0" / "d"
  largest = max(data_files.iterdir(), key=lambda path: path.stat().length)
  data = bytearray(largest.read_bytes())
  data[len(data) // 2] ^= 16
  largest.write_bytes(bytes(data))
  place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  shapes = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), state_at(0)
  )
  step, params, metadata = manager.restore_params(folder.checkpoints, shapes.params)
  assert (step, metadata) == (2, metadata_at(2))
  assert complete_steps(folder.checkpoints) == [2, 3]
  with manager.open_checkpoints(folder.checkpoints, keep=2) as checkpoints:
    state, metadata = manager.restore(checkpoints, shapes)
    assert metadata == metadata_at(2)
    for found, expected in zip(jax.tree.leaves(state), jax.tree.leaves(state_at(2))):
      np.testing.assert_array_equal(found, expected)
    manager.save(checkpoints, state_at(3), metadata_at(3))
  assert complete_steps(folder.checkpoints) == [2, 3]
  assert (folder.checkpoints / "damaged-3" / "state").is_dir()
print("done")
"""


@pytest.mark.slow
def test_checkpoints_in_a_bucket(bucket):
  done = subprocess.run(
    [sys.executable, "-c", _TRAINED_IN_A_BUCKET],
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout == "done\n"
