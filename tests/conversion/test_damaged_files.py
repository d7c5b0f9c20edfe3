"""Files that hold no weights or are damaged: each is refused with one line that says why."""

import io
import os
import re
import tarfile
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conversion.handmade_files import (
  Call,
  Name,
  Persistent,
  Raw,
  pickled,
  refusal,
  storage,
  tensor,
  write_legacy,
  write_zip,
)
from tests.conversion.make_fixtures import FIXTURES
from vswin_jax.conversion import torch_files
from vswin_jax.conversion.torch_files import FileError, read_file

_HTML = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>"
_LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
_NOT_WEIGHTS = {
  "empty": (b"", "the file is empty"),
  "web page": (_HTML, "a web page.*download failed"),
  "web page after blanks": (b"\xef\xbb\xbf\r\n " + _HTML, "a web page"),
  "Git LFS": (_LFS, "git lfs pull"),
  "text": ("Gewichte für 3 Modelle\n".encode() * 99, "a text file"),
  "JSON": (b'{"weights": {"a": [1, 2]}}', "a text file"),
  "gzip": (b"\x1f\x8b\x08\0" + bytes(50), "compressed file.*unpack"),
  "random": (np.random.default_rng(0).bytes(5000), "unknown format"),
  "zeros": (bytes(5000), "unknown format"),
  "one byte": (b"\x80", "torch.save did not write"),
  "pickle": (pickled({"a": 1}), "torch.save did not write"),
  "random after a pickle's start": (b"\x80\x02" + bytes(range(256)), "torch.save did not write"),
}


@pytest.mark.parametrize("name", _NOT_WEIGHTS)
def test_other_files_are_refused(tmp_path, name):
  content, message = _NOT_WEIGHTS[name]
  path = tmp_path / "weights.pth"
  path.write_bytes(content)
  assert re.search(message, refusal(path)), refusal(path)


def test_other_paths_are_refused(tmp_path):
  assert "a directory" in refusal(tmp_path)
  assert "no such file" in refusal(tmp_path / "absent.pth")
  os.mkfifo(tmp_path / "pipe")
  assert "not a regular file" in refusal(tmp_path / "pipe")
  with pytest.raises(FileError):
    read_file("a\0b")


def test_archives_of_other_kinds(tmp_path):
  path = tmp_path / "archive"
  with tarfile.open(path, "w") as archive:
    archive.addfile(tarfile.TarInfo("model.pth"), io.BytesIO())
  assert "a tar archive" in refusal(path)
  with path.open("wb") as file:
    np.savez(file, weight=np.ones(2))
  assert "a zip archive that torch.save did not write" in refusal(path)
  write_zip(path, {}, extra={"archive/constants.pkl": b"", "archive/code/x.py": b""})
  assert "TorchScript" in refusal(path) and "state_dict()" in refusal(path)
  write_zip(path, tensor((6,), (1,)), extra={"archive/byteorder": b"big"})
  assert "big-endian" in refusal(path)
  write_legacy(path, tensor((6,), (1,)), little_endian=False)
  assert "big-endian" in refusal(path)
  write_legacy(path, tensor((6,), (1,)), protocol=1002)
  assert "unknown version" in refusal(path)


def test_compressed_and_damaged_archives(tmp_path, monkeypatch):
  path = write_zip(tmp_path / "x.pth", tensor((6,), (1,)), compression=zipfile.ZIP_DEFLATED)
  assert "compressed" in refusal(path)
  write_zip(path, tensor((6,), (1,)), {})
  assert "storage '0' is missing" in refusal(path)
  write_zip(path, tensor((6,), (1,)), {"0": bytes(23)})
  assert "has 23 bytes, expected 24" in refusal(path)
  good = write_zip(path, tensor((6,), (1,))).read_bytes()
  for length in (5, 30, len(good) // 2, len(good) - 1):
    path.write_bytes(good[:length])
    assert "was cut off" in refusal(path)
  directory = good.index(b"PK\x01\x02")
  name = good.index(b"archive/data.pkl", directory)
  for position, change, message in [
    (name - 26, b"\xff\xff\xff\x7f" * 2, "which the file does not"),
    (name - 4, b"\x01\0\0\0", "not where the archive says"),
    (name - 38, b"\1\0", "encrypted"),
  ]:
    path.write_bytes(good[:position] + change + good[position + len(change) :])
    assert message in refusal(path)
  path.write_bytes(good)
  monkeypatch.setattr(torch_files, "_LONGEST_DIRECTORY", 100)
  assert "the directory of the archive" in refusal(path)


def test_damaged_legacy_files(tmp_path):
  path = tmp_path / "x.pth"
  good = write_legacy(path, tensor((6,), (1,))).read_bytes()
  assert read_file(path).shape == (6,)
  for removed, message in [
    (1, "24 bytes, the file has 23"),
    (33, "cut off"),
    (60, "ends too early"),
  ]:
    path.write_bytes(good[:-removed])
    assert message in refusal(path)
  write_legacy(path, tensor((6,), (1,)), {"0": (5, bytes(24))})
  assert "5 elements, expected 6" in refusal(path)
  write_legacy(path, tensor((6,), (1,)), keys=["0", "1"])
  assert "list of storages" in refusal(path)
  write_legacy(path, tensor((6,), (1,)), keys=[])
  assert "storage '0' is missing" in refusal(path)
  write_legacy(path, [storage(6), storage(6, kind="IntStorage")])
  assert "a second type" in refusal(path)
  write_legacy(path, storage(6, "0", "FloatStorage", ("view", 4, 3)))
  assert "goes beyond it" in refusal(path)


_REBUILD_V3 = Name("torch._utils", "_rebuild_tensor_v3")
_REBUILD_TYPE = Name("torch._tensor", "_rebuild_from_type_v2")
_BAD_TENSORS = {
  "too long": (tensor((7,), (1,)), "beyond its storage"),
  "offset": (tensor((6,), (1,), 1), "beyond its storage"),
  "strides": (tensor((2, 3), (4, 1)), "beyond its storage"),
  "overflow of a size": (tensor((2**62 - 1, 2), (1, 1)), "beyond its storage"),
  "overflow of a stride": (tensor((2, 2), (2**62 - 1, 2**62 - 1)), "beyond its storage"),
  "overflow of the offset": (tensor((1,), (1,), 2**62 - 1), "beyond its storage"),
  "empty at an offset beyond": (tensor((2**61, 2**61, 0), (1, 1, 1)), "damaged"),
  "scalar of nothing": (tensor((), (), 6), "beyond its storage"),
  "stride bomb": (tensor((2**31, 2**31), (0, 0)), "far too often"),
  "windows bomb": (tensor((2**40,) + (2,) * 5, (0,) + (1,) * 5), "far too often"),
  "negative size": (tensor((-1,), (1,)), "impossible shape"),
  "negative stride": (tensor((2,), (-1,), 1), "impossible shape"),
  "negative offset": (tensor((2,), (1,), -1), "impossible shape"),
  "size of 63 bits": (tensor((2**63,), (0,)), "impossible shape"),
  "size that is no number": (tensor((2.0,), (1,)), "impossible shape"),
  "shape that is no tuple": (tensor("a", "b"), "impossible shape"),
  "fewer strides than sizes": (tensor((2, 3), (1,)), "impossible shape"),
  "many axes": (tensor((1,) * 65, (1,) * 65), "65 axes"),
  "no storage": (tensor((2,), (1,), 0, "storage"), "no storage"),
  "no arguments": (Call(Name("torch._utils", "_rebuild_tensor"), ()), "damaged"),
  "dtype that is none": (
    Call(_REBUILD_V3, (storage(24, kind="UntypedStorage"), 0, (6,), (1,), False, {}, "float32")),
    "no dtype",
  ),
  "beyond bytes": (
    Call(
      _REBUILD_V3,
      (storage(24, kind="UntypedStorage"), 5, (2,), (1,), False, {}, Name("torch", "float32")),
    ),
    "beyond its storage of 6",
  ),
  "parameter of no tensor": (
    Call(Name("torch._utils", "_rebuild_parameter"), ("x", True, {})),
    "not a tensor",
  ),
  "endless recursion": (
    Call(_REBUILD_TYPE, (Raw(b"(0]q\0h\0"), Name("torch", "Tensor"), (), None)),
    "damaged",
  ),
  "negative count": (storage(-1), "impossible storage"),
  "huge count": (storage(2**70), "impossible storage"),
  "count too large": (storage(2**61), "expected"),
  "no storage id": (Persistent("storage"), "not a storage"),
  "short storage id": (Persistent(("storage", "0")), "not a storage"),
  "tensor as storage id": (Persistent((storage(6), "0")), "not a storage"),
  "call of a text": (Call("torch.Size", ()), "damaged"),
  "size that is a list": (Call(Name("torch", "Size"), ([2],)), "not a tuple"),
  "device that is none": (Call(Name("torch", "device"), (3,)), "torch.device"),
}


@pytest.mark.parametrize("name", _BAD_TENSORS)
def test_impossible_tensors(tmp_path, name):
  content, message = _BAD_TENSORS[name]
  assert message in refusal(write_zip(tmp_path / "x.pth", [content]))
  refusal(write_legacy(tmp_path / "x.pth", [content], {"0": (6, bytes(24))}))


@pytest.mark.parametrize("name", ["zip.pth", "legacy.pth", "known.safetensors"])
# The temporary folder serves all examples, which are written one after the other.
@settings(
  max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_damage_is_refused_or_harmless(tmp_path, name, data):
  content = bytearray((FIXTURES / name).read_bytes())
  for _ in range(data.draw(st.integers(0, 4))):
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
  if data.draw(st.booleans()):
    del content[data.draw(st.integers(0, len(content))) :]
  path = tmp_path / "x.pth"
  path.write_bytes(content)
  try:
    found = read_file(path)
  except FileError:
    refusal(path)
  else:
    repr(found)
