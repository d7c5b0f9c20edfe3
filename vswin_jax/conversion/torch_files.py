"""Reader of PyTorch and .safetensors files that needs no PyTorch and runs no code in them."""

import codecs
import dataclasses
import io
import mmap
import os
import re
import stat
import zipfile
from collections.abc import Callable

import numpy as np

from vswin_jax.common.messages import one_line
from vswin_jax.conversion import pickles
from vswin_jax.conversion.formats import DAMAGED, FileError, is_count
from vswin_jax.conversion.pickles import Placeholder
from vswin_jax.conversion.safetensors_files import read_safetensors
from vswin_jax.conversion.torch_tensors import (
  CALLS,
  CONSTANTS,
  StorageId,
  has_kind,
  parse_storage_id,
)

# Magic numbers of torch.save before 1.6.
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001

# Room for a hundred thousand entries; real checkpoints have hundreds to thousands.
_LONGEST_DIRECTORY = 16 * 2**20
_LOCAL_HEADER_BYTES = 30
_LONGEST_ENTRY_NAME = 100

_EXPECTED = "expected a file written by torch.save, or .safetensors"
# Patterns of files that are often saved in place of weights -> what they are.
_OTHER_FILES = {
  rb"(\xef\xbb\xbf)?\s*<(?i:!doctype|html|head|\?xml)": (
    "a web page, not weights: the download failed, or needs a login; download the file again from "
    "its direct link"
  ),
  rb"version https://git-lfs": (
    "a pointer of Git LFS, not the weights; fetch them with `git lfs pull`"
  ),
  rb"(?s:.{257})ustar": f"a tar archive; {_EXPECTED}: unpack it and give the file inside",
  rb"\x1f\x8b|\xfd7zXZ|BZh|\x28\xb5\x2f\xfd|7z\xbc\xaf": (
    f"a compressed file; {_EXPECTED}: unpack it first"
  ),
}
_BIG_ENDIAN = "written on a big-endian machine; load it there and save it on another"


def read_file(path: str | os.PathLike) -> object:
  """Reads a .safetensors file, or a file of torch.save in the zip or the legacy format.

  The contents of the file decide how it is read, not its name. Nothing in it is run: classes and
  functions outside a closed list become `Placeholder`s, and so do their instances.

  Returns:
    For PyTorch: the saved object, of dicts (also for OrderedDict), lists, tuples, sets, strings,
    bytes and numbers. Tensors and parameters are read-only numpy arrays of the same dtype, shape
    and strides (bfloat16 and float8 from `ml_dtypes`), views of the mapped file that share memory
    as the tensors did; bare storages are arrays `[elements]`. torch.Size is a tuple, torch.dtype a
    `np.dtype`, torch.device a string. Sparse, quantized and conjugated tensors are placeholders.
    The object can contain itself.
    For .safetensors: dict of name -> read-only array. The file must not change while these live.

  Raises:
    FileError: the file can't be read; one line.
  """
  try:
    if not stat.S_ISREG(os.stat(path).st_mode):
      kind = "a directory" if os.path.isdir(path) else "not a regular file"
      raise FileError(f"{kind}; give the path of a checkpoint file")
    with _BoundedReader(path, "rb") as file:
      if os.fstat(file.fileno()).st_size == 0:
        raise FileError("the file is empty; download or save it again")
      return _read(path, file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
  except Exception as error:
    match error:
      case OSError():
        problem = (error.strerror or str(error)).lower()
      case FileError():
        problem = str(error)
      # Others depend on the bytes of the file only, or on an impossible path.
      case _:
        problem = f"can't be read ({type(error).__name__}); {DAMAGED}"
    raise FileError(one_line(f"{os.fspath(path)}: {problem}")) from error


class _BoundedReader(io.FileIO):
  """File for `zipfile`, which would read a directory of any length."""

  def read(self, size: int | None = -1) -> bytes:
    if size is not None and size > _LONGEST_DIRECTORY:
      raise FileError(f"the directory of the archive has {size} bytes; {DAMAGED}")
    return super().read(size)


def _read(path: str | os.PathLike, file: io.FileIO, data: mmap.mmap) -> object:
  head = data[:1024]
  if head.startswith(b"PK\x03\x04"):
    return _read_zip(file, data)
  for pattern, problem in _OTHER_FILES.items():
    if re.match(pattern, head):
      raise FileError(problem)
  if _is_text(head):
    raise FileError(f"a text file, not weights; {_EXPECTED}")
  # A length, then a header in JSON.
  if head[8:9] == b"{":
    return read_safetensors(path, np.frombuffer(data, np.uint8))
  if head.startswith(b"\x80"):
    return _read_legacy(data)
  raise FileError(f"a file of unknown format; {_EXPECTED}")


def _is_text(head: bytes) -> bool:
  try:
    # Incremental: the last character may be cut off.
    text = codecs.getincrementaldecoder("utf-8")().decode(head)
  except UnicodeDecodeError:
    return False
  return all(character.isprintable() or character.isspace() for character in text)


def _read_zip(file: io.FileIO, data: mmap.mmap) -> object:
  """Reads the format since PyTorch 1.6: data.pkl and a file per storage in one folder."""
  try:
    with zipfile.ZipFile(file) as archive:
      entries = {entry.filename: entry for entry in archive.infolist()}
  except FileError:
    raise
  # zipfile raises many types of errors for a damaged directory.
  except Exception as error:
    raise FileError(
      "a zip archive whose directory, at its end, is missing or damaged: the file was cut off; "
      "download or save it again"
    ) from error
  folders = [name.removesuffix("/data.pkl") for name in entries if name.endswith("/data.pkl")]
  folders = [name for name in folders if "/" not in name]
  if any(name.endswith("/constants.pkl") or "/code/" in name for name in entries):
    raise FileError(
      "a TorchScript archive, which holds a program; load it with torch.jit.load and save its "
      "state_dict() with torch.save"
    )
  if len(folders) != 1:
    raise FileError(f"a zip archive that torch.save did not write; {_EXPECTED}")
  folder = folders[0]
  if f"{folder}/byteorder" in entries:
    start, end = _locate(data, entries[f"{folder}/byteorder"])
    if data[start : min(end, start + 16)] != b"little":
      raise FileError(_BIG_ENDIAN)
  raw = np.frombuffer(data, np.uint8)
  storages: dict[str, np.ndarray] = {}

  def load_storage(saved_id: object) -> object:
    storage = parse_storage_id(saved_id)
    if storage.dtype is None:
      return Placeholder(storage.kind)
    if storage.key not in storages:
      entry = entries.get(f"{folder}/data/{storage.key}")
      if entry is None and storage.count > 0:
        raise FileError(f"storage {storage.key!a} is missing from the archive; {DAMAGED}")
      start, end = (0, 0) if entry is None else _locate(data, entry)
      storages[storage.key] = raw[start:end]
    held = storages[storage.key]
    if len(held) != storage.nbytes:
      raise FileError(
        f"storage {storage.key!a} has {len(held)} bytes, expected {storage.nbytes}; {DAMAGED}"
      )
    return held.view(storage.dtype)

  start, end = _locate(data, entries[f"{folder}/data.pkl"])
  return pickles.load(data, start, end, CALLS, CONSTANTS, load_storage)[0]


def _locate(data: mmap.mmap, entry: zipfile.ZipInfo) -> tuple[int, int]:
  """Returns start and end of the bytes of an entry."""
  name = ascii(entry.filename[:_LONGEST_ENTRY_NAME])
  if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
    raise FileError(
      f"{name} in the archive is compressed or encrypted, which torch.save never does; "
      "unpack the archive and zip its folder without compression"
    )
  offset = entry.header_offset
  header = data[offset : offset + _LOCAL_HEADER_BYTES] if offset >= 0 else b""
  if len(header) < _LOCAL_HEADER_BYTES or not header.startswith(b"PK\x03\x04"):
    raise FileError(f"{name} is not where the archive says; {DAMAGED}")
  lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
  start = offset + _LOCAL_HEADER_BYTES + lengths
  if entry.compress_size != entry.file_size or start + entry.file_size > len(data):
    raise FileError(
      f"{name} should have {entry.file_size} bytes, which the file does not; {DAMAGED}"
    )
  return start, start + entry.file_size


def _read_legacy(data: mmap.mmap) -> object:
  """Reads the format before PyTorch 1.6: five pickles, then count and bytes of each storage."""

  def load(position: int, load_storage: Callable) -> tuple[object, int]:
    return pickles.load(data, position, len(data), CALLS, CONSTANTS, load_storage)

  def refuse(saved_id: object):
    raise FileError(f"its pickle refers to a storage out of place; {DAMAGED}")

  try:
    magic, position = load(0, refuse)
  except FileError:
    magic = None
  if magic != _LEGACY_MAGIC:
    raise FileError(f"starts like a pickle, but torch.save did not write it; {_EXPECTED}")
  protocol, position = load(position, refuse)
  system, position = load(position, refuse)
  if protocol != _LEGACY_PROTOCOL:
    raise FileError(f"of an unknown version of PyTorch's legacy format; {DAMAGED}")
  if not isinstance(system, dict) or system.get("little_endian") is not True:
    raise FileError(_BIG_ENDIAN)
  del system

  # Storages follow the object that refers to them: the first pass collects their dtypes.
  declared: dict[str, StorageId] = {}

  def declare_storage(saved_id: object) -> object:
    # Classes of modules were saved with their source code.
    if not has_kind(saved_id, "module"):
      storage = parse_storage_id(saved_id)
      known = declared.setdefault(storage.key, dataclasses.replace(storage, view=None))
      if storage.dtype is None or (known.dtype, known.count) != (storage.dtype, storage.count):
        raise FileError(f"storage {storage.key!a} has an unknown or a second type; {DAMAGED}")
    return Placeholder("torch.storage")

  object_position = position
  position = load(object_position, declare_storage)[1]
  keys, position = load(position, refuse)
  storages = _map_storages(data, position, declared, keys)

  def load_storage(saved_id: object) -> object:
    if has_kind(saved_id, "module"):
      return saved_id[1]
    storage = parse_storage_id(saved_id)
    if storage.key not in storages:
      raise FileError(f"storage {storage.key!a} is missing from the file; {DAMAGED}")
    held = storages[storage.key]
    if storage.view is None:
      return held
    match storage.view:
      case (_, offset, count) if is_count(offset) and is_count(count):
        if offset + count <= len(held):
          return held[offset : offset + count]
    raise FileError(f"a view of storage {storage.key!a} goes beyond it; {DAMAGED}")

  return load(object_position, load_storage)[0]


def _map_storages(
  data: mmap.mmap, position: int, declared: dict[str, StorageId], keys: object
) -> dict[str, np.ndarray]:
  """Returns the storages that start at `position`, in the order of `keys`."""
  if type(keys) is not list or not all(type(key) is str and key in declared for key in keys):
    raise FileError(f"its list of storages does not match its object; {DAMAGED}")
  raw = np.frombuffer(data, np.uint8)
  storages = {}
  for key in keys:
    storage = declared[key]
    count = int.from_bytes(data[position : position + 8], "little")
    start, position = position + 8, position + 8 + storage.nbytes
    if position > len(data):
      raise FileError(
        f"cut off: storage {key!a} needs {storage.nbytes} bytes, the file has "
        f"{max(len(data) - start, 0)} left; download or save it again"
      )
    if count != storage.count:
      raise FileError(f"storage {key!a} has {count} elements, expected {storage.count}; {DAMAGED}")
    storages[key] = raw[start:position].view(storage.dtype)
  return storages
