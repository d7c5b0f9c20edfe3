"""Saving, keeping and restoring checkpoints: damage, missing folders, full disks."""

import concurrent.futures
import json
import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import multihost_utils
from jax.sharding import PartitionSpec as P
from orbax.checkpoint import v1 as ocp

from tests.helpers.checkpoints import (
  METADATA,
  assert_same,
  flip_bits,
  save_all,
  shapes_of,
  small_disk,
  state_at,
)
from vswin_jax.checkpoints import integrity, manager
from vswin_jax.checkpoints.manager import CheckpointError, open_checkpoints
from vswin_jax.checkpoints.selection import complete_steps, newest_step, read_metadata
from vswin_jax.common.cli import TRANSIENT
from vswin_jax.common.logging import logger


@pytest.fixture
def warnings(caplog, monkeypatch):
  monkeypatch.setattr(logger, "propagate", True)
  caplog.set_level(logging.WARNING, logger.name)
  return caplog


@pytest.mark.parametrize(
  "options, kept",
  [
    ({"keep": 2}, [50, 60]),
    ({"keep": 1, "keep_best": 1}, [20, 60]),
    # Of equal scores the newer; those without a finite score are never among the best.
    ({"keep": 1, "keep_best": 2}, [20, 40, 60]),
    ({"keep": 1, "keep_best": 5}, [10, 20, 30, 40, 60]),
    ({"keep": 1, "keep_every": 30}, [30, 60]),
    ({"keep": 2, "keep_best": 1, "keep_every": 30}, [20, 30, 50, 60]),
  ],
)
def test_a_checkpoint_is_kept_if_anything_asks_for_it(tmp_path, options, kept):
  scores = {10: 0.5, 20: 0.9, 30: 0.5, 40: 0.5, 50: float("nan")}
  save_all(tmp_path / "checkpoints", [10, 20, 30], scores=scores, **options)
  save_all(tmp_path / "checkpoints", [40, 50, 60], scores=scores, **options)
  assert complete_steps(tmp_path / "checkpoints") == kept
  assert newest_step(tmp_path / "checkpoints") == 60


def test_a_checkpoint_that_is_scored_later_counts(tmp_path):
  scores = {}
  directory = tmp_path / "checkpoints"
  with open_checkpoints(directory, keep=1, keep_best=1, scores=scores) as checkpoints:
    for step, score in ((10, 0.9), (20, 0.5), (30, 0.1)):
      manager.save(checkpoints, state_at(step), METADATA)
      scores[step] = score
  assert complete_steps(directory) == [10, 30]


def test_saving_does_not_touch_the_preemption_counter(tmp_path, monkeypatch):
  """All processes agree by it when to stop; a step in it would make them miss each other."""
  steps = []
  monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", steps.append)
  save_all(tmp_path / "checkpoints", [10, 20], keep=1)
  assert steps == []


def test_looking_for_checkpoints_changes_nothing(tmp_path):
  assert complete_steps(tmp_path / "checkpoints") == []
  assert newest_step(tmp_path / "checkpoints") is None
  assert list(tmp_path.iterdir()) == []
  for name in ("8", "damaged-9", "12.orbax-checkpoint-tmp", "notes"):
    (tmp_path / name).mkdir()
  assert complete_steps(tmp_path) == [8]


def data_file(directory, step):
  """Returns the file of the arrays of a checkpoint."""
  files = (directory / str(step) / "state").glob("ocdbt.process_*/d/*")
  return max(files, key=lambda path: path.stat().st_size)


def cut(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 10])


def change_the_labels(directory, step):
  path = directory / str(step) / "_CHECKPOINT_METADATA"
  path.write_text(path.read_text().replace('["a", "b"]', '["a", "c"]'))


def cut_the_checksums(directory, step):
  path = directory / str(step) / "_CHECKPOINT_METADATA"
  values = json.loads(path.read_text())
  record = values["custom_metadata"]["checkpoint"]
  record["arrays"] = record["arrays"][:8]
  path.write_text(json.dumps(values))


DAMAGES = {
  "bits": lambda d, step: flip_bits(data_file(d, step)),
  "cut": lambda d, step: cut(data_file(d, step)),
  "no arrays": lambda d, step: data_file(d, step).unlink(),
  "empty": lambda d, step: data_file(d, step).write_bytes(b""),
  "cut list": lambda d, step: cut(d / str(step) / "state" / "_METADATA"),
  "no list": lambda d, step: (d / str(step) / "state" / "_METADATA").unlink(),
  "database": lambda d, step: cut(d / str(step) / "state" / "manifest.ocdbt"),
  "no arrays at all": lambda d, step: shutil.rmtree(d / str(step) / "state"),
  "cut metadata": lambda d, step: cut(d / str(step) / "_CHECKPOINT_METADATA"),
  "no metadata": lambda d, step: (d / str(step) / "_CHECKPOINT_METADATA").unlink(),
  "metadata": change_the_labels,
  "cut checksums": cut_the_checksums,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over(tmp_path, warnings, capfd, damage):
  directory = tmp_path / "checkpoints"
  save_all(directory, [10, 20, 30])
  DAMAGES[damage](directory, 30)
  names = sorted(path.name for path in directory.iterdir())

  # Reading alone renames nothing.
  step, params, metadata = manager.restore_params(directory, shapes_of(state_at(0).params))
  assert (step, metadata) == (20, METADATA)
  assert_same(params, state_at(20).ema_params)
  assert read_metadata(directory) == METADATA
  assert "the checkpoint of step 30 in" in warnings.text and "is damaged: " in warnings.text
  assert f"using step 20 of {directory}" in warnings.text
  assert sorted(path.name for path in directory.iterdir()) == names

  with open_checkpoints(directory) as checkpoints:
    state, metadata = manager.restore(checkpoints, shapes_of(state_at(0)))
    assert metadata == METADATA
    assert_same(state, state_at(20))
    assert newest_step(directory) == 20
    manager.save(checkpoints, state_at(30), METADATA)
  assert f"step 30 to {directory / 'damaged-30'}" in warnings.text
  names = sorted(path.name for path in directory.iterdir())
  assert names == ["10", "20", "30", "damaged-30"]
  with open_checkpoints(directory) as checkpoints:
    state, _ = manager.restore(checkpoints, shapes_of(state_at(0)))
  assert_same(state, state_at(30))
  assert "Traceback" not in capfd.readouterr().err


def test_several_damaged_checkpoints(tmp_path, warnings):
  directory = tmp_path / "checkpoints"
  save_all(directory, [10, 20, 30])
  (directory / "damaged-30").mkdir()
  for step in (20, 30):
    flip_bits(data_file(directory, step))
  with open_checkpoints(directory) as checkpoints:
    state, _ = manager.restore(checkpoints, shapes_of(state_at(0)))
  assert_same(state, state_at(10))
  names = sorted(path.name for path in directory.iterdir())
  assert names == ["10", "damaged-20", "damaged-30", "damaged-30-2"]
  assert "of 10 arrays differ: " in warnings.text


def test_without_an_undamaged_checkpoint_nothing_is_renamed(tmp_path):
  directory = tmp_path / "checkpoints"
  save_all(directory, [10, 20])
  flip_bits(data_file(directory, 10))
  DAMAGES["no metadata"](directory, 20)
  message = r"all 2 checkpoints in .* are damaged: step 20: .*; step 10: .*Restore one"
  with pytest.raises(CheckpointError, match=message):
    with open_checkpoints(directory) as checkpoints:
      manager.restore(checkpoints, shapes_of(state_at(0)))
  assert complete_steps(directory) == [10, 20]
  with pytest.raises(CheckpointError, match=r"no complete checkpoint in .*empty"):
    with open_checkpoints(tmp_path / "empty") as checkpoints:
      manager.restore(checkpoints, shapes_of(state_at(0)))
  with pytest.raises(CheckpointError, match=r"in .*absent; expected a workdir"):
    read_metadata(tmp_path / "absent")


def test_another_model_is_no_damage(tmp_path):
  directory = tmp_path / "checkpoints"
  save_all(directory, [10])
  with open_checkpoints(directory) as checkpoints:
    manager.save(checkpoints, state_at(20, width=301), METADATA)
  message = (
    r"step 20 in .* does not fit the model in 4 places: ema_params.stem.kernel is \[301, 40\]"
  )
  with pytest.raises(CheckpointError, match=message):
    with open_checkpoints(directory) as checkpoints:
      manager.restore(checkpoints, shapes_of(state_at(0)))
  assert complete_steps(directory) == [10, 20]


@pytest.mark.parametrize(
  "error", [MemoryError("no room"), PermissionError(13, "denied"), ValueError("UNAVAILABLE: later")]
)
def test_an_error_of_the_environment_is_no_damage(tmp_path, monkeypatch, error):
  directory = tmp_path / "checkpoints"
  save_all(directory, [10, 20])

  def load(*_):
    raise error

  monkeypatch.setattr(ocp, "load", load)
  message = r"can't read .*/20: .*may be undamaged"
  with pytest.raises(CheckpointError, match=message) as raised:
    with open_checkpoints(directory) as checkpoints:
      manager.restore(checkpoints, shapes_of(state_at(0)))
  # Missing rights are not transient.
  assert getattr(raised.value, "exit_status", 1) == (1 if error.args[0] == 13 else TRANSIENT)
  assert complete_steps(directory) == [10, 20]


def test_a_checkpoint_without_checksums_is_read(tmp_path):
  values = {key: METADATA.to_json()[key] for key in ("model", "preprocessing", "labels")}
  ocp.save(tmp_path / "checkpoints" / "10", state_at(10), custom_metadata=values)
  with open_checkpoints(tmp_path / "checkpoints", keep_best=1) as checkpoints:
    state, metadata = manager.restore(checkpoints, shapes_of(state_at(0)))
    manager.save(checkpoints, state_at(20), METADATA)
  assert_same(state, state_at(10))
  assert metadata == METADATA


def test_checkpoints_of_other_programs_and_versions_are_refused(tmp_path):
  state = state_at(10)
  shapes = shapes_of(state.params)
  ocp.save(tmp_path / "foreign" / "10", state)
  with pytest.raises(CheckpointError, match="does not say which model"):
    manager.restore_params(tmp_path / "foreign", shapes)
  # An EMA under another name must not be ignored.
  trees = {"params": state.params, "average": state.ema_params}
  ocp.save(tmp_path / "older" / "10", trees, custom_metadata=METADATA.to_json())
  with pytest.raises(CheckpointError, match=r"another version .* as 'average'"):
    manager.restore_params(tmp_path / "older", shapes)


def test_parameters_are_checked_in_the_type_they_were_saved_in(tmp_path):
  directory = tmp_path / "checkpoints"
  save_all(directory, [10])
  params = state_at(0).params
  wanted = jax.tree.map(lambda leaf: leaf.astype(jnp.float16), params)
  step, found, _ = manager.restore_params(directory, shapes_of(wanted))
  assert step == 10
  expected = jax.tree.map(lambda leaf: leaf.astype(jnp.float16), state_at(10).ema_params)
  assert_same(found, expected)


def words_of(array: np.ndarray) -> np.ndarray:
  size = array.dtype.itemsize
  kind = {1: np.uint8, 2: np.uint16, 4: np.uint32}[size]
  return np.ascontiguousarray(array).view(kind).reshape(-1).astype(np.uint64)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int32", "uint8", "bool"])
def test_checksums(dtype):
  values = np.random.default_rng(0).integers(0, 256, (8, 6, 2))
  array = np.asarray(jnp.asarray(values if dtype != "bool" else values > 127, dtype))
  checksum = integrity.array_checksums({"a": jnp.asarray(array)})["a"]
  # The same, word by word.
  expected = 0
  for place, word in enumerate(words_of(array)):
    number = place * 0x9E3779B1 % 2**32
    number = (number ^ number >> 15) * 0x85EBCA6B % 2**32 | 1
    expected = (expected + int(word) * number) % 2**32
  assert checksum == expected
  # Independent of the sharding.
  mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
  for spec in (P("x"), P("x", "y"), P(None, "y"), P(("x", "y"))):
    laid = jax.device_put(array, jax.sharding.NamedSharding(mesh, spec))
    assert integrity.array_checksums({"a": laid})["a"] == checksum
  changed = array.copy()
  changed[3, 2, 1] = not changed[3, 2, 1] if dtype == "bool" else changed[3, 2, 1] + 1
  swapped = array.copy()
  swapped[[0, 5]] = swapped[[5, 0]]
  for other in (changed, swapped):
    assert integrity.array_checksums({"a": jnp.asarray(other)})["a"] != checksum


def test_a_directory_that_was_removed_is_filled_anew(tmp_path, warnings):
  directory = tmp_path / "checkpoints"
  with open_checkpoints(directory) as checkpoints:
    for step in (10, 20):
      manager.save(checkpoints, state_at(step), METADATA)
    checkpoints.saving.result()
    shutil.rmtree(directory)
    manager.save(checkpoints, state_at(30), METADATA)
    manager.save(checkpoints, state_at(40), METADATA)
  assert f"checkpoints of steps 10, 20 are gone from {directory}; training" in warnings.text
  assert len(warnings.records) == 1
  with open_checkpoints(directory) as checkpoints:
    state, _ = manager.restore(checkpoints, shapes_of(state_at(0)))
  assert_same(state, state_at(40))
  assert complete_steps(directory) == [30, 40]


def test_a_workdir_that_is_gone_is_not_made_again(tmp_path):
  with pytest.raises(CheckpointError, match=r"the folder .*/run is gone. If it is on a disk"):
    with open_checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
      manager.save(checkpoints, state_at(10), METADATA)
      checkpoints.saving.result()
      shutil.rmtree(tmp_path / "run")
      manager.save(checkpoints, state_at(20), METADATA)
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("at_the_end", [False, True])
def test_a_full_disk_ends_the_run_and_keeps_complete_checkpoints(tmp_path, capfd, at_the_end):
  directory = tmp_path / "checkpoints"
  message = rf"can't write a checkpoint in {directory}: .*File too large.*same command"
  with pytest.raises(CheckpointError, match=message) as raised:
    with open_checkpoints(directory) as checkpoints:
      manager.save(checkpoints, state_at(10), METADATA)
      checkpoints.saving.result()
      # Room for what is tried before a save starts.
      with small_disk(70_000):
        manager.save(checkpoints, state_at(20), METADATA)
        concurrent.futures.wait([checkpoints.saving])
      if not at_the_end:
        manager.save(checkpoints, state_at(30), METADATA)
  assert raised.value.exit_status == TRANSIENT
  assert complete_steps(directory) == [10]
  assert "Traceback" not in capfd.readouterr().err
  # With more room the same steps are saved, and nothing is left of the attempt.
  with open_checkpoints(directory) as checkpoints:
    state, _ = manager.restore(checkpoints, shapes_of(state_at(0)))
    assert_same(state, state_at(10))
    manager.save(checkpoints, state_at(15), METADATA)
  assert sorted(path.name for path in directory.iterdir()) == ["10", "15"]


def test_a_full_disk_is_found_before_a_save_starts(tmp_path):
  with pytest.raises(CheckpointError, match=r"can't write a checkpoint in .*: .*File too large"):
    with open_checkpoints(tmp_path / "checkpoints") as checkpoints:
      with small_disk(1000):
        manager.save(checkpoints, state_at(10), METADATA)
  params = {"head": {"kernel": np.random.default_rng(0).normal(size=(300, 200))}}
  with pytest.raises(CheckpointError, match=r"can't write .*/weights: .*File too large"):
    with small_disk(70_000):
      manager.write_params(tmp_path / "weights", params, METADATA)
  assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]


def test_a_folder_that_can_not_be_written_is_refused(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(CheckpointError, match=r"can't keep checkpoints in .*: NotADirectoryError"):
    with open_checkpoints(tmp_path / "file" / "checkpoints"):
      pass
  directory = tmp_path / "checkpoints"
  with pytest.raises(CheckpointError, match=r"can't write a checkpoint in .*: FileExistsError"):
    with open_checkpoints(directory) as checkpoints:
      shutil.rmtree(directory)
      directory.write_text("")
      manager.save(checkpoints, state_at(10), METADATA)


def test_weights_are_written_with_checksums(tmp_path):
  params = {"head": {"kernel": np.arange(60_000, dtype=np.float32).reshape(300, 200)}}
  manager.write_params(tmp_path / "weights", params, METADATA)
  directory = manager.checkpoints_of(tmp_path / "weights")
  metadata = json.loads((directory / "0" / "_CHECKPOINT_METADATA").read_text())
  assert len(metadata["custom_metadata"]["checkpoint"]["arrays"]) == 8
  flip_bits(data_file(directory, 0))
  with pytest.raises(CheckpointError, match=r"all 1 checkpoints .*: params.head.kernel"):
    manager.restore_params(directory, shapes_of(params))
