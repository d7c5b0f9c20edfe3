"""The reader of .safetensors files: known values, files of the library, damaged headers."""

import json
import pathlib

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.conversion.handmade_files import refusal
from tests.conversion.make_fixtures import FIXTURES, known_tensors
from vswin_jax.conversion import safetensors_files
from vswin_jax.conversion.torch_files import read_file


def _write(path: pathlib.Path, header: object, data: bytes = b"", length: int | None = None):
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
  return path


def _entry(shape, begin: int, end: int, dtype: str = "F32") -> dict:
  return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_known_values():
  found = read_file(FIXTURES / "known.safetensors")
  expected = known_tensors()
  del expected["complex128"]
  expected |= {"scalar": np.array(7), "empty": np.zeros((0, 3), np.float32)}
  assert found.keys() == expected.keys()
  for name, values in expected.items():
    assert (found[name].dtype, found[name].shape) == (values.dtype, values.shape)
    assert found[name].tobytes() == values.tobytes()
    assert not found[name].flags.writeable


def test_files_of_the_library(tmp_path):
  random = np.random.default_rng(0)
  tensors = {
    "b": random.normal(size=(3, 4)),
    "a": random.integers(0, 9, (2, 0, 5)),
    "ä": random.integers(0, 2, 7).astype(bool),
    "scalar": np.array(2.5, np.float16),
    "u": random.integers(0, 2**64, 5, np.uint64),
  }
  save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "np"})
  found = read_file(tmp_path / "x.safetensors")
  assert found.keys() == tensors.keys()
  for name, values in tensors.items():
    assert found[name].dtype == values.dtype
    np.testing.assert_array_equal(found[name], values)


def test_empty_file_of_tensors(tmp_path):
  assert read_file(_write(tmp_path / "x", {})) == {}


_DAMAGED = {
  "header beyond the file": (b'{"a":1}', b"", 2**40, "header too large"),
  "header of 2^63 bytes": (b'{"a":1}', b"", 2**63, "header too large"),
  "no JSON": (b'{"a', b"", None, "invalid JSON"),
  "not UTF-8": (b'{"\xff":1}', b"", None, "invalid UTF-8"),
  "nested without end": (b'{"a":' + b"[" * 10**5, b"", None, "invalid JSON"),
  "number of many digits": (b'{"a":' + b"1" * 5000 + b"}", b"", None, "invalid JSON"),
  "name twice": (
    b'{"a":%s,"a":%s}' % ((json.dumps(_entry([1], 0, 4)).encode(),) * 2),
    bytes(4),
    None,
    "a name occurs twice",
  ),
  "no tensor": ({"a": 1}, b"", None, "invalid JSON"),
  "no place": ({"a": {"dtype": "F32", "shape": [1]}}, b"", None, "data_offsets"),
  "dtype that does not exist": ({"a": _entry([1], 0, 1, "F3")}, bytes(1), None, "F3"),
  "dtype that numpy lacks": ({"a": _entry([2], 0, 1, "F4")}, bytes(1), None, "the dtype F4"),
  "negative size": ({"a": _entry([-1], 0, 4)}, bytes(4), None, "-1"),
  "size of true": ({"a": _entry([True], 0, 4)}, bytes(4), None, "true"),
  "size of a half": ({"a": _entry([0.5], 0, 2)}, bytes(2), None, "0.5"),
  "overflow": ({"a": _entry([2**61, 8], 0, 0)}, b"", None, "overflow"),
  "wrong size": ({"a": _entry([2], 0, 4)}, bytes(4), None, "invalid shape"),
  "backwards": ({"a": _entry([1], 4, 0)}, bytes(4), None, "invalid offset"),
  "many axes": ({"a": _entry([1] * 65, 0, 4)}, bytes(4), None, "can't be read"),
  "zero size beyond memory": ({"a": _entry([2**61, 2**61, 0], 0, 0)}, b"", None, "overflow"),
  "place beyond the file": ({"a": _entry([2], 0, 8)}, bytes(7), None, "not fully covered"),
  "more than is named": ({"a": _entry([1], 0, 4)}, bytes(5), None, "not fully covered"),
  "overlap": ({"a": _entry([1], 0, 4), "b": _entry([1], 2, 6)}, bytes(6), None, "tensor `b`"),
  "hole": ({"a": _entry([1], 0, 4), "b": _entry([1], 5, 9)}, bytes(9), None, "tensor `b`"),
  "name with a line break": (
    {"a\n\x1b[31mb" * 999: _entry([1], 1, 5)},
    bytes(5),
    None,
    r"a\n\x1b[31mb",
  ),
}


@pytest.mark.parametrize("name", _DAMAGED)
def test_damaged_headers(tmp_path, name):
  header, data, length, message = _DAMAGED[name]
  assert message in refusal(_write(tmp_path / "x.safetensors", header, data, length))


def test_cut_off_files(tmp_path):
  whole = (FIXTURES / "known.safetensors").read_bytes()
  path = tmp_path / "x.safetensors"
  for length in (9, 100, len(whole) - 200, len(whole) - 1):
    path.write_bytes(whole[:length])
    assert "the file is damaged" in refusal(path)


def test_long_headers_are_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(safetensors_files, "LONGEST_HEADER", 100)
  assert "expected at most 100" in refusal(_write(tmp_path / "x", b"{" + b" " * 100 + b"}"))
