"""The reader of PyTorch files, compared with PyTorch and with known values."""

import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conversion.handmade_files import (
  OS_SYSTEM,
  Call,
  Name,
  Persistent,
  storage,
  tensor,
  write_legacy,
  write_zip,
)
from tests.conversion.make_fixtures import (
  CLASSES,
  CONFIG,
  FIXTURES,
  known_base,
  known_tensors,
)
from vswin_jax.conversion.torch_files import Placeholder, read_file

# The temporary folder serves all examples of a test, which write one after the other.
_SETTINGS = settings(
  max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
_FORMATS = pytest.mark.parametrize("new_format", [True, False])


@pytest.mark.parametrize("name", ["zip.pth", "legacy.pth"])
def test_known_values(name):
  content = read_file(FIXTURES / name)
  weights = content["state_dict"]
  for dtype, expected in known_tensors().items():
    _assert_same(weights[dtype], expected)
  base = known_base()
  views = {"base": base, "again": base, "transposed": base.transpose(2, 1, 0)}
  views |= {"inner": base[1, 1:, ::2], "expanded": np.broadcast_to(base[0, 0, :2], (3, 2))}
  for view, expected in views.items():
    _assert_same(weights[view], expected)
    assert weights[view].strides == expected.strides
    assert np.shares_memory(weights[view], weights["base"])
  _assert_same(weights["scalar"], np.array(7))
  _assert_same(weights["empty"], np.zeros((0, 3), np.float32))
  assert all(not array.flags.writeable for array in weights.values())
  with pytest.raises(ValueError, match="read-only"):
    weights["base"][0] = 1
  assert content["meta"].pop("args").name == "argparse.Namespace"
  assert content["meta"] == {"epoch": 3, "config": CONFIG, "CLASSES": CLASSES}
  assert content["optimizer"]["param_groups"] == [{"lr": 0.25}]
  assert content["optimizer"]["state"][0]["step"] == 12
  _assert_same(content["optimizer"]["state"][0]["exp_avg"], base)


def test_pytorch_is_not_needed():
  program = (
    "import sys; sys.modules['torch'] = None\n"
    "from vswin_jax.conversion.torch_files import read_file\n"
    "for path in sys.argv[1:]: read_file(path)\n"
    "assert 'jax' not in sys.modules"
  )
  files = [FIXTURES / name for name in ("zip.pth", "legacy.pth", "known.safetensors")]
  subprocess.run([sys.executable, "-c", program, *files], check=True)


@_FORMATS
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_all_contents_of_a_checkpoint(tmp_path, new_format, protocol):
  torch = pytest.importorskip("torch")
  model = torch.nn.Sequential(torch.nn.Conv3d(2, 3, 2), torch.nn.BatchNorm3d(3))
  optimizer = torch.optim.AdamW(model.parameters(), lr=0.5)
  model(torch.ones(2, 2, 3, 3, 3)).sum().backward()
  optimizer.step()
  with_attribute = torch.nn.Parameter(torch.arange(3.0))
  with_attribute.rule = "no decay"
  buffer = torch.arange(4)
  buffer.rule = "no decay"
  plain = {
    "none": None,
    "numbers": [True, -7, 2**80, 1e-300, float("inf"), 3 - 4j],
    "texts": ("ä", "𝄞", b"\x80\xff", ""),
    "sets": [{1, 2}, frozenset("ab")],
    (1, "key"): {},
  }
  content = {
    "state_dict": model.state_dict(),
    "parameters": list(model.parameters()),
    "optimizer": optimizer.state_dict(),
    "attributes": [with_attribute, buffer],
    "plain": plain,
    "torch": [torch.Size([2, 3]), torch.float16, torch.device("cuda", 1), torch.device("cpu")],
  }
  found = read_file(_save(torch, content, tmp_path / "saved.pth", new_format, protocol))
  assert type(found["state_dict"]) is dict
  assert list(found["state_dict"]) == list(content["state_dict"])
  for name, saved in content["state_dict"].items():
    _assert_equal(torch, found["state_dict"][name], saved)
  for array, saved in zip(found["parameters"], content["parameters"]):
    _assert_equal(torch, array, saved)
  for array, saved in zip(found["attributes"], content["attributes"]):
    _assert_equal(torch, array, saved)
  for index, state in content["optimizer"]["state"].items():
    for name, saved in state.items():
      _assert_equal(torch, found["optimizer"]["state"][index][name], saved)
  assert found["optimizer"]["param_groups"] == content["optimizer"]["param_groups"]
  assert found["plain"] == plain
  assert found["torch"] == [(2, 3), np.dtype(np.float16), "cuda:1", "cpu"]


@_FORMATS
def test_every_dtype(tmp_path, new_format):
  torch = pytest.importorskip("torch")
  data = torch.from_numpy(np.random.default_rng(0).integers(0, 256, 96, np.uint8))
  names = ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e4m3fnuz"]
  names += ["float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu", "complex64", "complex128"]
  names += ["int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8"]
  content = {name: data.clone().view(getattr(torch, name)).reshape(3, -1) for name in names}
  content["bool"] = data > 127
  found = read_file(_save(torch, content, tmp_path / "saved.pth", new_format))
  for name, saved in content.items():
    assert found[name].dtype.name == name
    _assert_equal(torch, found[name], saved)


@_FORMATS
def test_unsupported_objects_become_placeholders(tmp_path, new_format):
  torch = pytest.importorskip("torch")
  content = {
    "sparse": torch.zeros(3).to_sparse(),
    "conjugated": torch.zeros(2, dtype=torch.complex64).conj(),
    "negated": torch.zeros(2, dtype=torch.complex64).conj().imag,
    "meta": torch.empty(2, device="meta"),
    "module": torch.nn.Linear(2, 2),
    "path": pathlib.PurePosixPath("a"),
    "scalar": np.float64(3),
    "weight": torch.ones(2),
  }
  found = read_file(_save(torch, content, tmp_path / "saved.pth", new_format))
  _assert_equal(torch, found.pop("weight"), content["weight"])
  assert all(type(value) is Placeholder for value in found.values())
  assert found["module"].name == "torch.nn.modules.linear.Linear"
  assert found["path"].name == "pathlib.PurePosixPath"
  assert found["scalar"].name.endswith("multiarray.scalar")


@st.composite
def _strided_views(draw):
  """dtype, elements of a storage, and (shape, strides, offset) of several views of it."""
  views = []
  dtypes = ["float32", "bfloat16", "float64", "int64", "bool", "complex64", "float8_e5m2", "uint16"]
  axes = st.tuples(st.integers(0, 4), st.integers(0, 7))
  for _ in range(draw(st.integers(1, 3))):
    shape_and_strides = draw(st.lists(axes, max_size=4))
    offset = draw(st.integers(0, 5))
    views.append((*zip(*shape_and_strides), offset) if shape_and_strides else ((), (), offset))
  ends = [
    offset + sum(max(size - 1, 0) * stride for size, stride in zip(shape, strides))
    for shape, strides, offset in views
  ]
  count = max(ends) + 1 + draw(st.integers(0, 3))
  return draw(st.sampled_from(dtypes)), count, views


@_FORMATS
@_SETTINGS
@given(case=_strided_views(), protocol=st.integers(2, 5))
def test_strided_views(tmp_path, new_format, case, protocol):
  torch = pytest.importorskip("torch")
  dtype, count, views = case
  base = torch.arange(count).to(getattr(torch, dtype))
  content = [torch.as_strided(base, *view) for view in views]
  found = read_file(_save(torch, content, tmp_path / "saved.pth", new_format, protocol))
  starts = []
  for array, saved, (_, _, offset) in zip(found, content, views):
    _assert_equal(torch, array, saved)
    if saved.numel():
      starts.append(array.ctypes.data - offset * array.itemsize)
  assert len(set(starts)) <= 1, "the views do not share their storage"


@_FORMATS
def test_an_object_may_contain_itself(tmp_path, new_format):
  torch = pytest.importorskip("torch")
  content = {"weight": torch.ones(2), "list": []}
  content["self"] = content
  content["list"].append(content["list"])
  found = read_file(_save(torch, content, tmp_path / "saved.pth", new_format))
  assert found["self"] is found
  assert found["list"][0] is found["list"]


def test_storages_and_views_of_storages(tmp_path):
  data = np.arange(6, dtype=np.float32)
  content = [
    storage(6),
    tensor((2,), (1,), 1, storage(6, "0", "FloatStorage", ("view", 2, 3))),
    Persistent(("module", Name("models", "Net"), "net.py", "source")),
  ]
  file = write_legacy(tmp_path / "old.pth", content, {"0": (6, data.tobytes())})
  bare, view, module = read_file(file)
  np.testing.assert_array_equal(bare, data)
  np.testing.assert_array_equal(view, [3, 4])
  assert np.shares_memory(bare, view)
  assert module.name == "models.Net"
  file = write_zip(
    tmp_path / "new.pth", tensor((6,), (1,), 0, storage(6, kind="cuda.FloatStorage"))
  )
  assert read_file(file).dtype == np.float32
  assert (
    type(read_file(write_zip(tmp_path / "new.pth", storage(6, kind="OddStorage")))) is Placeholder
  )


def test_expanded_tensors_are_read(tmp_path):
  found = read_file(write_zip(tmp_path / "x.pth", tensor((1000, 1000, 6), (0, 0, 1))))
  assert (found.shape, found.strides) == ((1000, 1000, 6), (0, 0, 4))


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps"), reason="counts mapped pages by Linux")
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_data_is_mapped_and_not_read(tmp_path, kind):
  path = tmp_path / "large"
  data = bytes(range(256)) * 2**16
  count = len(data) // 4
  if kind == "zip":
    write_zip(path, [tensor((count,), (1,), 0, storage(count))], {"0": data})
  elif kind == "legacy":
    write_legacy(path, [tensor((count,), (1,), 0, storage(count))], {"0": (count, data)})
  else:
    header = b'{"x":{"dtype":"F32","shape":[%d],"data_offsets":[0,%d]}}' % (count, len(data))
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
  content = read_file(path)
  (array,) = content.values() if kind == "safetensors" else content
  assert _resident_bytes(path) < len(data) / 4
  assert array.tobytes() == data
  assert _resident_bytes(path) > len(data) / 2


def _resident_bytes(path: pathlib.Path) -> int:
  """What of a mapped file this process has touched."""
  maps = pathlib.Path("/proc/self/smaps").read_text()
  found = re.findall(rf"{re.escape(str(path))}\n(?:.*\n)*?Rss: *(\d+) kB", maps)
  assert len(found) == 1
  return int(found[0]) * 1024


@pytest.mark.parametrize("write", [write_zip, write_legacy])
def test_nothing_is_run(tmp_path, write):
  touched = tmp_path / "touched"
  command = f"touch {touched}"
  content = {
    "call": Call(OS_SYSTEM, (command,)),
    "eval": Call(Name("builtins", "eval"), (f"open({str(touched)!r}, 'w')",)),
    "getattr": Call(Call(Name("builtins", "getattr"), (Name("os", "path"), "system")), (command,)),
    "hooks": Call(Name("torch._utils", "_rebuild_parameter"), (Call(OS_SYSTEM, (command,)), True)),
    "weight": tensor((6,), (1,)),
  }
  found = read_file(write(tmp_path / "x.pth", content))
  assert found.pop("weight").shape == (6,)
  assert {key: value.name for key, value in found.items()} == {
    "call": "posix.system",
    "eval": "builtins.eval",
    "getattr": "builtins.getattr",
    "hooks": "posix.system",
  }
  assert not touched.exists()


def _save(torch, content, path, new_format=True, protocol=2) -> pathlib.Path:
  torch.save(content, path, _use_new_zipfile_serialization=new_format, pickle_protocol=protocol)
  return path


def _assert_same(found: np.ndarray, expected: np.ndarray) -> None:
  assert type(found) is np.ndarray
  assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
  assert found.tobytes() == expected.tobytes()


def _assert_equal(torch, found: np.ndarray, saved) -> None:
  """Bit by bit, for any dtype of PyTorch."""
  assert type(found) is np.ndarray
  saved = saved.detach()
  assert found.dtype.name == str(saved.dtype).removeprefix("torch.")
  assert found.shape == tuple(saved.shape)
  assert found.strides == tuple(stride * saved.element_size() for stride in saved.stride())
  in_order = saved.clone(memory_format=torch.contiguous_format).reshape(-1)
  assert found.tobytes() == in_order.view(torch.uint8).numpy().tobytes()
