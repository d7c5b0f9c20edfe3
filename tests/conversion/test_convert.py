import functools
import os
import subprocess
import sys

import numpy as np
import pytest

from tests.conversion.checkpoints import (
  golden_keys,
  official_tensors,
  save_official,
  save_torch,
  tiny_tensors,
)
from vswin_jax import create_model, load_model
from vswin_jax.checkpoints.manager import CheckpointError, checkpoints_of
from vswin_jax.checkpoints.selection import read_metadata
from vswin_jax.conversion import families, inflation, layouts, released, sizes
from vswin_jax.conversion.convert import convert_file
from vswin_jax.conversion.families import ConversionOptions
from vswin_jax.conversion.matching import ConversionError, find_tensors
from vswin_jax.data.clips import describe_views
from vswin_jax.data.label_names import label_names
from vswin_jax.models.parameters import flatten, split_model

CASE = "nano_16x56x56"


def params_of(model) -> dict[str, np.ndarray]:
  return {path: np.asarray(leaf) for path, leaf in flatten(split_model(model.network)[1]).items()}


def assert_same_params(actual, expected, but=()):
  actual, expected = params_of(actual), params_of(expected)
  assert actual.keys() == expected.keys()
  for path in expected:
    if path not in but:
      np.testing.assert_array_equal(actual[path], expected[path], err_msg=path)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
  """The tiny model, converted from an official file."""
  folder = tmp_path_factory.mktemp("reference")
  file = save_official(folder / "file.pth", tiny_tensors())
  convert_file(file, folder / "converted", ConversionOptions())
  return load_model(folder / "converted")


@pytest.mark.parametrize(
  "kind", ["bare", "without_backbone", "module", "legacy", "safetensors", "mmaction2"]
)
def test_wrappings_of_the_same_weights_give_the_same_model(kind, reference, tmp_path):
  torch = pytest.importorskip("torch")
  tensors = tiny_tensors()
  file = tmp_path / "file"
  if kind == "bare":
    save_torch(file, tensors)
  elif kind == "without_backbone":
    save_torch(file, {name.removeprefix("backbone."): t for name, t in tensors.items()})
  elif kind == "mmaction2":
    renamed = {name.replace("backbone.norm.", "backbone.norm3."): t for name, t in tensors.items()}
    save_torch(file, {"state_dict": renamed})
  elif kind == "module":
    save_official(file, {f"module.{name}": tensor for name, tensor in tensors.items()})
  elif kind == "legacy":
    content = {"state_dict": {name: torch.from_numpy(t) for name, t in tensors.items()}}
    torch.save(content, file, _use_new_zipfile_serialization=False)
  else:
    from safetensors.numpy import save_file

    save_file(tensors, file)
  convert_file(file, tmp_path / "converted", ConversionOptions())
  assert_same_params(load_model(tmp_path / "converted"), reference)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_files_are_widened_exactly(dtype, tmp_path):
  torch = pytest.importorskip("torch")
  tensors = {
    name: torch.from_numpy(t).to(getattr(torch, dtype)) if t.dtype == np.float32 else t
    for name, t in tiny_tensors().items()
  }
  save_torch(tmp_path / "file", {"state_dict": tensors})
  convert_file(tmp_path / "file", tmp_path / "converted", ConversionOptions())
  widened = {
    name: t.float().numpy() if isinstance(t, torch.Tensor) else t for name, t in tensors.items()
  }
  save_official(tmp_path / "widened", widened)
  convert_file(tmp_path / "widened", tmp_path / "expected", ConversionOptions())
  assert_same_params(load_model(tmp_path / "converted"), load_model(tmp_path / "expected"))


def test_everything_that_does_not_fit_is_listed_at_once_and_nothing_is_written(tmp_path):
  tensors = official_tensors(CASE)
  del tensors["backbone.layers.0.blocks.1.mlp.fc1.weight"]
  del tensors["backbone.norm.bias"]
  tensors["backbone.surprise.weight"] = np.zeros((3, 4), np.float32)
  tensors["backbone.layers.2.blocks.0.norm1.weight"] = np.zeros(5, np.float32)
  tensors["backbone.layers.1.blocks.0.norm1.weight"] = np.zeros(32, np.int64)
  file = save_official(tmp_path / "file.pth", tensors)
  with pytest.raises(ConversionError) as error:
    convert_file(file, tmp_path / "converted", ConversionOptions())
  message = str(error.value)
  assert "5 in all" in message
  for line in (
    "missing: backbone.layers.0.blocks.1.mlp.fc1.weight",
    "missing: backbone.norm.bias",
    "unknown: backbone.surprise.weight [3, 4]",
    "wrong shape: backbone.layers.2.blocks.0.norm1.weight [5]",
    "not floating point: backbone.layers.1.blocks.0.norm1.weight is int64",
  ):
    assert line in message
  assert sorted(os.listdir(tmp_path)) == ["file.pth"]


def test_an_existing_destination_is_left_alone(tmp_path):
  file = save_official(tmp_path / "file.pth", tiny_tensors())
  (tmp_path / "converted").mkdir()
  with pytest.raises(CheckpointError, match="exists"):
    convert_file(file, tmp_path / "converted", ConversionOptions())
  assert os.listdir(tmp_path / "converted") == []


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
  file = save_official(tmp_path / "file.pth", tiny_tensors())

  def fail(*_, **__):
    raise OSError("no space left on device")

  monkeypatch.setattr("orbax.checkpoint.v1.save", fail)
  with pytest.raises(CheckpointError, match="no space left"):
    convert_file(file, tmp_path / "converted", ConversionOptions())
  assert sorted(os.listdir(tmp_path)) == ["file.pth"]


def test_something_else_in_place_of_a_weight_is_named():
  tensors = dict(tiny_tensors())
  tensors["backbone.norm.bias"] = "a string"
  with pytest.raises(ConversionError, match=r"backbone.norm.bias \(str\)"):
    find_tensors({"state_dict": tensors})
  with pytest.raises(ConversionError, match="no weights in the file: it holds a dict of epoch"):
    find_tensors({"epoch": 3})


def test_a_new_head_needs_permission_and_leaves_the_rest(reference, tmp_path):
  file = save_official(tmp_path / "file.pth", tiny_tensors())
  with pytest.raises(ConversionError, match="--allow_missing=head"):
    convert_file(file, tmp_path / "converted", ConversionOptions(num_classes=7))
  request = ConversionOptions(num_classes=7, allow_missing=("head",))
  report = convert_file(file, tmp_path / "converted", request)
  model = load_model(tmp_path / "converted")
  assert model.network.head.kernel.shape == (16, 7)
  assert 0.005 < float(model.network.head.kernel[...].std()) < 0.02
  assert model.labels is None
  assert any("head is new" in note for note in report.notes)
  assert_same_params(model, reference, but=("head.kernel", "head.bias"))


def test_a_new_head_of_the_same_size_is_new_when_asked_for(reference, tmp_path):
  file = save_official(tmp_path / "file.pth", tiny_tensors())
  convert_file(file, tmp_path / "kept", ConversionOptions(allow_missing=("head",)))
  assert_same_params(load_model(tmp_path / "kept"), reference)
  report = convert_file(
    file, tmp_path / "new", ConversionOptions(num_classes=11, allow_missing=("head",))
  )
  assert report.random
  assert (params_of(load_model(tmp_path / "new"))["head.bias"] == 0).all()


def test_a_file_without_head_says_how_to_get_one(tmp_path):
  tensors = {n: t for n, t in tiny_tensors().items() if not n.startswith("cls_head")}
  file = save_official(tmp_path / "file.pth", tensors)
  with pytest.raises(ConversionError, match="--num_classes=N and --allow_missing=head"):
    convert_file(file, tmp_path / "converted", ConversionOptions())


def test_tables_resized_to_another_window_match_torch():
  torch = pytest.importorskip("torch")
  tensors = official_tensors(CASE)
  reference = families.convert_tensors(tensors, ConversionOptions())
  converted = families.convert_tensors(tensors, ConversionOptions(window=(16, 12, 12)))
  assert converted.model["window_size"] == (16, 12, 12)
  path = "stages.2.blocks.1.attention.relative_position_bias_table"
  table = torch.tensor(reference.params[path].reshape(15, 13, 13, -1)).permute(0, 3, 1, 2)
  space = torch.nn.functional.interpolate(table, (23, 23), mode="bicubic")
  lines = space.permute(2, 3, 1, 0).reshape(23 * 23, -1, 15)
  lines = torch.nn.functional.interpolate(lines, 31, mode="linear")
  expected = lines.reshape(23, 23, -1, 31).permute(3, 0, 1, 2).reshape(31 * 23 * 23, -1)
  # PyTorch computes the weights of the interpolation in float32.
  np.testing.assert_allclose(converted.params[path], expected, atol=3e-6)
  for path, value in converted.params.items():
    if not path.endswith("relative_position_bias_table"):
      np.testing.assert_array_equal(value, reference.params[path])


def test_resizing_a_table_to_its_own_window_changes_nothing():
  table = np.random.default_rng(0).normal(size=(15 * 13 * 13, 3)).astype(np.float32)
  np.testing.assert_array_equal(inflation.resize_table(table, (8, 7, 7), (8, 7, 7)), table)


def test_center_inflation_sees_one_frame(tmp_path):
  random = np.random.default_rng(0)
  kernel = random.normal(size=(4, 3, 4, 4)).astype(np.float32)
  table = random.normal(size=(169, 2)).astype(np.float32)
  tensors = {"patch_embed.proj.weight": kernel, "a.relative_position_bias_table": table}
  inflated, _ = inflation.inflate(tensors, (8, 7, 7), "center")
  patch = inflated["patch_embed.proj.weight"]
  np.testing.assert_array_equal(patch.sum(2), kernel)
  assert (patch == 0).any(axis=(0, 1, 3, 4)).sum() == 1
  offsets = inflated["a.relative_position_bias_table"].reshape(15, 169, 2)
  np.testing.assert_array_equal(offsets[7], table)
  assert (np.delete(offsets, 7, axis=0) == np.float32(-4.6)).all()


@pytest.mark.parametrize("window", [(8, 7, 7), (16, 7, 7), (8, 12, 12), (4, 4, 4), (5, 7, 7)])
def test_windows_are_inferred_from_tables_and_index(window):
  rows = int(np.prod([2 * size - 1 for size in window]))
  index = np.zeros((np.prod(window), np.prod(window)), np.int64)
  assert sizes.infer_window(rows, index) == window
  if window[1] in (7, 12) and window[0] != 5:
    assert sizes.infer_window(rows, None) == window
  else:
    with pytest.raises(ConversionError, match="--window"):
      sizes.infer_window(rows, None)
    assert sizes.infer_window(rows, None, window) == window


def test_a_table_of_absurd_length_fits_no_window():
  with pytest.raises(ConversionError, match="none square in space"):
    sizes.infer_window(2**60, None)


# They have every family, model, data set and window between them.
_VARIED = (
  "swin_t_k400_official",
  "swin_s_k710_mmaction2",
  "swin_b_in22k_k600_official",
  "swin_b_w16_ssv2_official",
  "swin_l_in22k_k700_mmaction2",
  "swin_b_k400_torchvision",
)
_VIDEO_MODELS = [
  pytest.param(entry, id=entry.name, marks=[] if entry.name in _VARIED else [pytest.mark.slow])
  for entry in released.RELEASED
  if entry.family in layouts.VIDEO_SWIN_FAMILIES
]


def _zeros(keys: dict) -> dict[str, np.ndarray]:
  """Tensors of these shapes that take no memory."""
  return {n: np.broadcast_to(np.zeros((), dtype), shape) for n, (shape, dtype) in keys.items()}


@pytest.mark.parametrize("entry", _VIDEO_MODELS)
def test_every_released_file_is_recognized_by_its_tensors(entry):
  classes = len(label_names(entry.dataset))
  model = create_shapes(entry.model, classes, entry.window)
  name_of = layouts.video_swin_names(entry.family)
  tensors = {
    name_of(path): np.broadcast_to(
      np.float32(0), layouts.to_source(path, _shaped(shape), (2, 4, 4)).shape
    )
    for path, shape in model.items()
  }
  converted = families.convert_tensors(tensors, families.ConversionOptions())
  assert converted.family == entry.family
  assert converted.model["name"] == entry.model
  assert converted.model["num_classes"] == classes
  assert tuple(converted.model.get("window_size", (8, 7, 7))) == tuple(entry.window)
  assert sum(int(np.prod(p.shape)) for p in converted.params.values()) == entry.parameters
  assert converted.dataset == entry.dataset
  clip, views = converted.preprocessing.clip, converted.preprocessing.views
  assert (clip.num_frames, clip.size) == (32, 224)
  dense = "dense" if entry.family == "official" else "dense_to_ends"
  assert clip.sampling == ("uniform" if classes == 174 else dense)
  assert entry.views in (None, describe_views(clip, views))


@functools.cache
def create_shapes(name: str, classes: int, window) -> dict[str, tuple[int, ...]]:
  from flax import nnx

  build = lambda: create_model(name, num_classes=classes, window_size=tuple(window))  # noqa: E731
  _, shapes = split_model(nnx.eval_shape(build))
  return {path: leaf.shape for path, leaf in flatten(shapes).items()}


def _shaped(shape) -> np.ndarray:
  return np.broadcast_to(np.float32(0), shape)


@pytest.mark.parametrize(("side", "window"), [(7, (8, 7, 7)), (12, (8, 12, 12))])
def test_2d_files_with_their_masks_and_their_classifier_become_video_models(side, window):
  rows, tokens = (2 * side - 1) ** 2, side * side
  keys = {}
  for name, (shape, dtype) in golden_keys("swin_t_k400").items():
    name = name.removeprefix("backbone.")
    if name.endswith("relative_position_bias_table"):
      shape = [rows, shape[1]]
    elif name.endswith("relative_position_index"):
      shape = [tokens, tokens]
      if ".blocks.1." in name and not name.startswith("layers.3"):
        keys[name.replace("relative_position_index", "attn_mask")] = (
          [64, tokens, tokens],
          "float32",
        )
    elif name == "patch_embed.proj.weight":
      shape = [shape[0], *shape[1:2], 4, 4]
    keys[name.replace("cls_head.fc_cls", "head")] = (shape, dtype)
  # The reference keeps masks beside the blocks' attention.
  keys = {name.replace("attn.attn_mask", "attn_mask"): value for name, value in keys.items()}
  keys["head.weight"], keys["head.bias"] = ([21841, 768], "float32"), ([21841], "float32")
  converted = families.convert_tensors(_zeros(keys), families.ConversionOptions())
  assert converted.family == "swin_2d"
  assert converted.model["name"] == "video_swin_t"
  assert tuple(converted.model.get("window_size", (8, 7, 7))) == window
  assert converted.dataset is None


def test_weights_of_another_model_are_refused_by_name():
  with pytest.raises(ConversionError, match="of no model of this library"):
    families.convert_tensors(
      _zeros({"conv1.weight": ([64, 3, 7, 7], "float32")}), families.ConversionOptions()
    )
  v2 = {
    "patch_embed.proj.weight": ([96, 3, 4, 4], "float32"),
    "layers.0.blocks.0.attn.logit_scale": ([3, 1, 1], "float32"),
  }
  with pytest.raises(ConversionError, match="Swin Transformer V2"):
    families.convert_tensors(_zeros(v2), families.ConversionOptions())


def test_malformed_2d_weights_are_listed():
  tensors = {
    "patch_embed.proj.weight": np.zeros((4, 3, 4, 4), np.float32),
    "layers.0.blocks.0.attn.relative_position_bias_table": np.zeros((169, 2), np.float32),
    "layers.0.blocks.1.attn.relative_position_bias_table": np.zeros((170, 2), np.float32),
    "layers.1.blocks.0.attn.relative_position_bias_table": np.zeros((), np.float32),
  }
  with pytest.raises(ConversionError, match=r"0.blocks.1.*\[170, 2\].*1.blocks.0.* \[\]"):
    families.convert_tensors(tensors, families.ConversionOptions())


@pytest.mark.parametrize("damage", ["far block", "no channels", "no tables", "flat table"])
def test_inconsistent_tensors_are_refused(damage):
  tensors = dict(official_tensors(CASE))
  table = "backbone.layers.0.blocks.0.attn.relative_position_bias_table"
  if damage == "far block":
    tensors[table.replace("blocks.0", "blocks.2000")] = tensors[table]
  elif damage == "no channels":
    tensors["backbone.patch_embed.proj.weight"] = np.zeros((0, 3, 2, 4, 4), np.float32)
  elif damage == "no tables":
    tensors = {name: t for name, t in tensors.items() if "bias_table" not in name}
  else:
    tensors[table] = np.zeros(5, np.float32)
  with pytest.raises(ConversionError):
    families.convert_tensors(tensors, families.ConversionOptions())


def test_values_that_are_not_finite_are_named():
  tensors = dict(tiny_tensors())
  tensors["backbone.norm.bias"] = np.full(16, np.nan, np.float32)
  with pytest.raises(ConversionError, match=r"not finite: backbone\.norm\.bias"):
    families.convert_tensors(tensors, families.ConversionOptions())


def test_nested_wrappers_are_taken_off():
  tensors = {"_orig_mod.module.a": np.zeros(1), "_orig_mod.module.b": np.zeros(2)}
  assert set(find_tensors({"state_dict": tensors})) == {"a", "b"}


def labels_of(checkpoint) -> tuple[str, ...] | None:
  return read_metadata(checkpoints_of(checkpoint)).labels


def test_label_names_come_from_the_request_the_file_or_the_data_set(tmp_path):
  tensors = tiny_tensors(num_classes=400)
  file = save_official(tmp_path / "file.pth", tensors)
  convert_file(file, tmp_path / "data_set", ConversionOptions())
  labels = labels_of(tmp_path / "data_set")
  assert len(labels) == 400
  assert labels[0] == "abseiling"
  names = tuple(f"name {index}" for index in range(400))
  # Whatever the number of classes.
  own = {"meta": {"CLASSES": list(map(str, range(11)))}, "state_dict": tiny_tensors()}
  convert_file(save_torch(tmp_path / "own.pth", own), tmp_path / "own", ConversionOptions())
  assert labels_of(tmp_path / "own") == tuple(map(str, range(11)))
  in_file = save_torch(
    tmp_path / "with_names.pth", {"meta": {"CLASSES": list(names)}, "state_dict": tensors}
  )
  convert_file(in_file, tmp_path / "in_file", ConversionOptions())
  assert labels_of(tmp_path / "in_file") == names
  newer = save_torch(
    tmp_path / "newer.pth",
    {"meta": {"dataset_meta": {"classes": list(names)}}, "state_dict": tensors},
  )
  convert_file(newer, tmp_path / "newer", ConversionOptions())
  assert labels_of(tmp_path / "newer") == names
  (tmp_path / "labels.txt").write_text("\n".join(reversed(names)) + "\n")
  request = ConversionOptions(labels=tmp_path / "labels.txt")
  convert_file(in_file, tmp_path / "asked", request)
  assert labels_of(tmp_path / "asked") == names[::-1]
  (tmp_path / "labels.txt").write_text("one\ntwo\n")
  with pytest.raises(ConversionError, match="names 2 classes, the head has 400"):
    convert_file(in_file, tmp_path / "wrong", request)


def test_the_source_is_remembered(tmp_path):
  import hashlib

  file = save_official(tmp_path / "file.pth", tiny_tensors())
  convert_file(
    file, tmp_path / "converted", ConversionOptions(clip={"num_frames": 16, "size": 112})
  )
  source = read_metadata(checkpoints_of(tmp_path / "converted")).source
  assert source["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
  assert source["family"] == "official"
  assert source["license"]
  preprocessing = load_model(tmp_path / "converted").preprocessing
  assert (preprocessing.clip.num_frames, preprocessing.clip.size) == (16, 112)
  assert preprocessing.views.short_side == 112


def test_the_command_converts_and_says_what_it_found(tmp_path):
  file = save_official(tmp_path / "file.pth", tiny_tensors())
  command = [sys.executable, "-m", "vswin_jax.convert", str(file), str(tmp_path / "converted")]
  done = subprocess.run(command, capture_output=True, text=True, check=True)
  for fact in ("official", "(2, 2, 2)", "11 (", "file.pth"):
    assert fact in done.stdout
  again = subprocess.run(command, capture_output=True, text=True)
  assert again.returncode == 1
  assert again.stderr.strip().splitlines()[-1].startswith("error: ")
  assert "exists" in again.stderr
  assert "Traceback" not in again.stderr
