"""Builders of PyTorch files and pickles without PyTorch, valid or damaged."""

import dataclasses
import pathlib
import pickle
import struct
import zipfile

from vswin_jax.conversion.torch_files import FileError, read_file


@dataclasses.dataclass(frozen=True)
class Name:
  """A class or function, by module and name."""

  module: str
  name: str


@dataclasses.dataclass(frozen=True)
class Call:
  """What calling `function` with `arguments` (anything that `opcodes` takes) gives."""

  function: object
  arguments: object


@dataclasses.dataclass(frozen=True)
class Persistent:
  """The object behind a persistent id."""

  saved_id: object


@dataclasses.dataclass(frozen=True)
class Raw:
  """Opcodes as they are."""

  opcodes: bytes


OS_SYSTEM = Name("posix", "system")
REBUILD = Name("torch._utils", "_rebuild_tensor_v2")


def storage(count, key="0", kind="FloatStorage", *view) -> Persistent:
  return Persistent(("storage", Name("torch", kind), key, "cpu", count, *view))


def tensor(shape, strides, offset=0, source=None, function=REBUILD) -> Call:
  """A float32 tensor, by default over a storage "0" of 6 elements."""
  return Call(function, (source or storage(6), offset, shape, strides, False, {}))


def pickled(value: object) -> bytes:
  return pickle.PROTO + b"\2" + opcodes(value) + pickle.STOP


def opcodes(value: object) -> bytes:
  """What leaves `value` on the stack of an unpickler."""
  match value:
    case Raw():
      return value.opcodes
    case Name():
      return pickle.GLOBAL + f"{value.module}\n{value.name}\n".encode()
    case Call():
      return opcodes(value.function) + opcodes(value.arguments) + pickle.REDUCE
    case Persistent():
      return opcodes(value.saved_id) + pickle.BINPERSID
    case tuple():
      return pickle.MARK + b"".join(map(opcodes, value)) + pickle.TUPLE
    case list():
      return pickle.MARK + b"".join(map(opcodes, value)) + pickle.LIST
    case dict():
      items = (opcodes(key) + opcodes(entry) for key, entry in value.items())
      return pickle.MARK + b"".join(items) + pickle.DICT
    case _:
      return pickle.dumps(value, protocol=2)[2:-1]


def write_zip(
  path: pathlib.Path,
  content: object,
  storages: dict[str, bytes] | None = None,
  extra: dict[str, bytes] | None = None,
  compression: int = zipfile.ZIP_STORED,
) -> pathlib.Path:
  """A file as torch.save writes it; `storages` by key, by default 24 bytes, `extra` by name."""
  storages = {"0": bytes(24)} if storages is None else storages
  with zipfile.ZipFile(path, "w", compression) as archive:
    archive.writestr("archive/data.pkl", pickled(content))
    for key, data in storages.items():
      archive.writestr(f"archive/data/{key}", data)
    for name, data in (extra or {"archive/byteorder": b"little"}).items():
      archive.writestr(name, data)
  return path


def write_legacy(
  path: pathlib.Path,
  content: object,
  storages: dict[str, tuple[int, bytes]] | None = None,
  protocol: int = 1001,
  little_endian: bool = True,
  keys: object = None,
) -> pathlib.Path:
  """A file as torch.save wrote it before 1.6; `storages`: key -> (elements, bytes)."""
  storages = {"0": (6, bytes(24))} if storages is None else storages
  system = {"protocol_version": 1001, "little_endian": little_endian, "type_sizes": {"int": 4}}
  parts = (
    0x1950A86A20F9469CFC6C,
    protocol,
    system,
    content,
    list(storages) if keys is None else keys,
  )
  data = b"".join(struct.pack("<q", count) + held for count, held in storages.values())
  path.write_bytes(b"".join(map(pickled, parts)) + data)
  return path


def refusal(path: pathlib.Path) -> str:
  """The message with which a file is refused: one line that names the file."""
  try:
    content = read_file(path)
  except FileError as error:
    prefix, message = f"{path}: ", str(error)
    assert len(message.splitlines()) == 1 and message.startswith(prefix), message
    assert len(message) < len(prefix) + 400, message
    return message.removeprefix(prefix)
  raise AssertionError(f"{path} was read: {content}")
