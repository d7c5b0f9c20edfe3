import os
import subprocess
import sys

import numpy as np
import pytest

from tests.conversion.checkpoints import fill, golden_keys, official_tensors, save_official
from tests.conversion.checkpoints import save_torch as save
from vswin_jax.checkpoints.manager import CheckpointError, write_params
from vswin_jax.checkpoints.metadata import CheckpointMetadata
from vswin_jax.conversion.convert import convert_file
from vswin_jax.conversion.export import export_file
from vswin_jax.conversion.families import ConversionOptions
from vswin_jax.conversion.layouts import VIDEO_SWIN_FAMILIES
from vswin_jax.conversion.matching import ConversionError
from vswin_jax.conversion.torch_files import read_file
from vswin_jax.data.preprocessing import Preprocessing
from vswin_jax.models import create_model
from vswin_jax.models.parameters import split_model

CASE = "nano_16x56x56"


def source_tensors(family: str) -> dict[str, np.ndarray]:
  """The file of the golden model as its family's users hold it."""
  if family == "torchvision":
    return fill(golden_keys("torchvision_nano_16x56x56"))
  tensors = official_tensors(CASE)
  if family == "mmaction2":
    tensors = {n.replace("backbone.norm.", "backbone.norm3."): t for n, t in tensors.items()}
  return tensors


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
@pytest.mark.parametrize("family", VIDEO_SWIN_FAMILIES)
def test_round_trip_keeps_bits_and_names(family, ending, tmp_path):
  pytest.importorskip("torch")
  tensors = source_tensors(family)
  file = save(
    tmp_path / "file.pth", tensors if family == "torchvision" else {"state_dict": tensors}
  )
  convert_file(file, tmp_path / "converted", ConversionOptions())
  export_file(tmp_path / "converted", tmp_path / f"out{ending}", family)
  content = read_file(tmp_path / f"out{ending}")
  exported = content["state_dict"] if ending == ".pth" and family != "torchvision" else content
  assert set(exported) == set(tensors)
  for name, tensor in tensors.items():
    assert exported[name].dtype == tensor.dtype, name
    assert exported[name].shape == tensor.shape, name
    if tensor.dtype != np.int64:
      np.testing.assert_array_equal(exported[name], tensor, err_msg=name)
  assert sorted(os.listdir(tmp_path)) == sorted(["converted", "file.pth", f"out{ending}"])


def test_index_buffers_are_those_of_the_formula(tmp_path):
  pytest.importorskip("torch")
  file = save_official(tmp_path / "file.pth", official_tensors(CASE))
  convert_file(file, tmp_path / "converted", ConversionOptions())
  export_file(tmp_path / "converted", tmp_path / "out.safetensors", "official")
  index = read_file(tmp_path / "out.safetensors")[
    "backbone.layers.3.blocks.1.attn.relative_position_index"
  ]
  assert index.shape == (392, 392)
  # Values worked out in the reference: the diagonal, the neighbors of the first token, the ends.
  assert (np.diagonal(index) == 1267).all()
  assert (index[0, 1], index[1, 0], index.min(), index.max()) == (1266, 1268, 0, 2534)


def test_one_family_becomes_another(tmp_path):
  pytest.importorskip("torch")
  file = save_official(tmp_path / "file.pth", official_tensors(CASE))
  convert_file(file, tmp_path / "converted", ConversionOptions())
  export_file(tmp_path / "converted", tmp_path / "out.pth", "torchvision")
  convert_file(tmp_path / "out.pth", tmp_path / "again", ConversionOptions())
  export_file(tmp_path / "again", tmp_path / "back.pth", "official")
  back = read_file(tmp_path / "back.pth")["state_dict"]
  for name, tensor in official_tensors(CASE).items():
    if tensor.dtype != np.int64:
      np.testing.assert_array_equal(back[name], tensor, err_msg=name)


def test_files_are_as_readable_as_others_and_float32(tmp_path):
  model = {"name": "video_swin_t", "num_classes": 3, "embed_dim": 8, "depths": (1,)}
  model |= {"num_heads": (1,), "window_size": (2, 2, 2), "param_dtype": "bfloat16"}
  _, params = split_model(create_model(**model))
  metadata = CheckpointMetadata(model, Preprocessing())
  write_params(tmp_path / "model", params, metadata)
  (tmp_path / "other").touch()
  (tmp_path / "folder").mkdir()
  export_file(tmp_path / "model", tmp_path / "out.safetensors", "official")
  for ours, other in (("out.safetensors", "other"), ("model", "folder")):
    assert (tmp_path / ours).stat().st_mode == (tmp_path / other).stat().st_mode
  dtypes = {tensor.dtype.name for tensor in read_file(tmp_path / "out.safetensors").values()}
  assert dtypes == {"float32", "int64"}


def test_torch_loads_what_is_written(tmp_path):
  torch = pytest.importorskip("torch")
  file = save_official(tmp_path / "file.pth", official_tensors(CASE))
  convert_file(file, tmp_path / "converted", ConversionOptions())
  export_file(tmp_path / "converted", tmp_path / "out.pth", "official")
  loaded = torch.load(tmp_path / "out.pth", weights_only=True)["state_dict"]
  for name, (shape, dtype) in golden_keys(CASE).items():
    assert list(loaded[name].shape) == list(shape)
    assert loaded[name].dtype == getattr(torch, dtype)


def test_bad_requests_get_one_line(tmp_path):
  with pytest.raises(ConversionError, match=r"expected .safetensors, .pth or .pt"):
    export_file(tmp_path, tmp_path / "out.h5", "official")
  with pytest.raises(CheckpointError, match="no complete checkpoint in"):
    export_file(tmp_path, tmp_path / "out.safetensors", "official")
  command = [sys.executable, "-m", "vswin_jax.export", str(tmp_path), "out.h5", "--to=official"]
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 1
  assert done.stderr.strip().splitlines()[-1].startswith("error: ")
  assert "Traceback" not in done.stderr
