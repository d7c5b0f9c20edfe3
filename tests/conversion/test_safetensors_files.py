"""Files of .safetensors: known values, the library's own, and headers that lie."""

import json
import pathlib

import numpy as np
import pytest

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
  library = pytest.importorskip("safetensors.numpy")
  random = np.random.default_rng(0)
  tensors = {
    "b": random.normal(size=(3, 4)),
    "a": random.integers(0, 9, (2, 0, 5)),
    "ä": random.integers(0, 2, 7).astype(bool),
    "scalar": np.array(2.5, np.float16),
    "u": random.integers(0, 2**64, 5, np.uint64),
  }
  library.save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "np"})
  found = read_file(tmp_path / "x.safetensors")
  assert found.keys() == tensors.keys()
  for name, values in tensors.items():
    assert found[name].dtype == values.dtype
    np.testing.assert_array_equal(found[name], values)


def test_empty_file_of_tensors(tmp_path):
  assert read_file(_write(tmp_path / "x", {})) == {}


_LIES = {
  "header beyond the file": (b'{"a":1}', b"", 2**40, "cut off: its header should have"),
  "header of 2^63 bytes": (b'{"a":1}', b"", 2**63, "cut off: its header should have"),
  "no JSON": (b'{"a', b"", None, "no valid JSON"),
  "not UTF-8": (b'{"\xff":1}', b"", None, "no valid JSON"),
  "nested without end": (b'{"a":' + b"[" * 10**5, b"", None, "no valid JSON"),
  "number of many digits": (b'{"a":' + b"1" * 5000 + b"}", b"", None, "no valid JSON"),
  "name twice": (b'{"a":1,"a":1}', b"", None, "no valid JSON"),
  "no tensor": ({"a": 1}, b"", None, "no dtype, shape or place"),
  "no place": ({"a": {"dtype": "F32", "shape": [1]}}, b"", None, "no dtype, shape or place"),
  "unknown dtype": ({"a": _entry([1], 0, 1, "F4")}, bytes(1), None, "unknown dtype 'F4'"),
  "negative size": ({"a": _entry([-1], 0, 4)}, bytes(4), None, "no count"),
  "size of true": ({"a": _entry([True], 0, 4)}, bytes(4), None, "no count"),
  "size of a half": ({"a": _entry([0.5], 0, 2)}, bytes(2), None, "no count"),
  "overflow": ({"a": _entry([2**61, 8], 0, 0)}, b"", None, "not what F32"),
  "wrong size": ({"a": _entry([2], 0, 4)}, bytes(4), None, "not what F32"),
  "backwards": ({"a": _entry([1], 4, 0)}, bytes(4), None, "not what F32"),
  "many axes": ({"a": _entry([1] * 65, 0, 4)}, bytes(4), None, "65 axes"),
  "zero size beyond memory": ({"a": _entry([2**61, 2**61, 0], 0, 0)}, b"", None, "can't be read"),
  "place beyond the file": ({"a": _entry([2], 0, 8)}, bytes(7), None, "should have 8 bytes"),
  "more than is named": ({"a": _entry([1], 0, 4)}, bytes(5), None, "should have 4 bytes"),
  "overlap": ({"a": _entry([1], 0, 4), "b": _entry([1], 2, 6)}, bytes(6), None, "starts at byte 2"),
  "hole": ({"a": _entry([1], 0, 4), "b": _entry([1], 5, 9)}, bytes(9), None, "starts at byte 5"),
  "name with a line break": ({"a\nb" * 999: _entry([2], 0, 4)}, bytes(4), None, "not what F32"),
}


@pytest.mark.parametrize("name", _LIES)
def test_headers_that_lie(tmp_path, name):
  header, data, length, message = _LIES[name]
  assert message in refusal(_write(tmp_path / "x.safetensors", header, data, length))


def test_cut_off_files(tmp_path):
  whole = (FIXTURES / "known.safetensors").read_bytes()
  path = tmp_path / "x.safetensors"
  for length in (9, 100, len(whole) - 200, len(whole) - 1):
    path.write_bytes(whole[:length])
    assert "cut off" in refusal(path)


def test_long_headers_are_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(safetensors_files, "LONGEST_HEADER", 100)
  assert "expected at most 100" in refusal(_write(tmp_path / "x", b"{" + b" " * 100 + b"}"))
