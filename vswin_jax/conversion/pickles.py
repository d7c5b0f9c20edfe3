"""A reader of pickles that yields plain data and never imports or calls what a pickle names.

Based on the standard library's unpickler in Python. The one in C can't be bounded: its memo grows
to any index, nested tuples as keys take exponential time to hash, and it sets attributes.
"""

import dataclasses
import pickle
import struct
from collections.abc import Callable, Mapping, Sequence

from vswin_jax.conversion.formats import FileError

# Far above the pickles of real checkpoints; within them, one takes less than a minute and 1 GB.
LONGEST_PICKLE = 256 * 2**20
MOST_STEPS = 10_000_000

_STEPS_PER_CALL = 8
# Numbers as keys can be chosen to collide.
_STEPS_PER_NUMBER_KEY = 300
# An empty set takes as much memory as four empty lists.
_STEPS_PER_SET = 3
_MAX_ARGUMENTS = 16
_LONGEST_NAME = 200
_LONGEST_LINE = 2000
_LONGEST_KEY = 10_000
_LONGEST_TUPLE_KEY = 8


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Placeholder:
  """A class, function or object that is not rebuilt.

  Attributes:
    name: dotted name in the file, such as "mmcv.utils.Config"; for an object that of its class.
  """

  name: str

  def ignore(self, *arguments: object) -> None:
    """Takes the place of methods by which a pickle fills an object."""

  append = extend = add = __setitem__ = ignore


def load(
  data,
  start: int,
  end: int,
  calls: Mapping[str, Callable],
  constants: Mapping[str, object],
  load_persistent: Callable[[object], object],
) -> tuple[object, int]:
  """Reads one pickle of protocol 2 to 5.

  Rebuilds plain data, OrderedDict (as dict), set, frozenset, complex, bytes and bytearray (as
  bytes). Dictionary keys that could take long to hash become placeholders.

  Args:
    data: bytes or an mmap.
    start: position of the pickle in `data`.
    end: position by which it must end; at most `LONGEST_PICKLE` bytes are read.
    calls: dotted name -> function that replaces calls of that name.
    constants: dotted name -> value that replaces that name.
    load_persistent: maps a persistent id (any object) to the object that it stands for.

  Returns:
    The object, and the position after the pickle.

  Raises:
    FileError: the pickle is cut off, damaged, or beyond the limits; or raised by the functions.
  """
  reader = _Reader(data, start, end)
  try:
    value = _DataUnpickler(reader, calls, constants, load_persistent).load()
  except FileError:
    raise
  # A damaged pickle can make any opcode fail, in ways that depend on its bytes only.
  except Exception as error:
    raise FileError(
      f"its pickle is damaged at byte {reader.position}, or not of protocol 2 to 5 "
      f"({type(error).__name__}); download or save the file again"
    ) from error
  return value, reader.position


class _Reader:
  """The bytes of a pickle as a file with limits on length and on the number of reads."""

  def __init__(self, data, start: int, end: int):
    self.data = data
    self.position = start
    self.too_long = end - start > LONGEST_PICKLE
    self.end = min(end, start + LONGEST_PICKLE)
    self.steps_left = MOST_STEPS

  def spend(self, steps: int) -> None:
    """Counts work, so that a small pickle can't ask for much."""
    self.steps_left -= steps
    if self.steps_left < 0:
      raise FileError(
        f"its pickle takes more than {MOST_STEPS} steps, far beyond that of any model; "
        "save the weights alone"
      )

  def read(self, count: int) -> bytes:
    # Text takes up to four times the memory of its bytes.
    self.spend(1 + count // 16)
    start, self.position = self.position, self.position + count
    if self.position <= self.end:
      return self.data[start : self.position]
    if self.too_long:
      raise FileError(
        f"its pickle is longer than {LONGEST_PICKLE} bytes, far beyond that of any model; "
        "save the weights alone"
      )
    raise FileError("its pickle ends too early, the file is cut off; download or save it again")

  def readline(self) -> bytes:
    last = min(self.end, self.position + _LONGEST_LINE)
    length = self.data.find(b"\n", self.position, last) - self.position
    if length < 0:
      raise FileError("its pickle has a line without end, the file is damaged; download it again")
    return self.read(length + 1)


class _DataUnpickler(pickle._Unpickler):
  """Unpickler whose names are placeholders, except in a closed table of calls."""

  def __init__(self, reader: _Reader, calls, constants, load_persistent):
    super().__init__(reader)
    self.spend = reader.spend
    self.calls = calls
    self.constants = constants
    self.load_persistent = load_persistent

  def persistent_load(self, saved_id: object) -> object:
    self.spend(_STEPS_PER_CALL)
    return self.load_persistent(saved_id)

  def find_class(self, module: str, name: str) -> object:
    if module == "__builtin__":  # of Python 2
      module = "builtins"
    # Both are cut first: a long text can be used as a name many times.
    full = f"{module[:_LONGEST_NAME]}.{name[:_LONGEST_NAME]}"
    if full in self.constants:
      return self.constants[full]
    full = full[:_LONGEST_NAME]
    plain = full.isascii() and full.isprintable()
    return Placeholder(full if plain else ascii(full)[:_LONGEST_NAME])

  def load_reduce(self) -> None:
    arguments, function = self.stack.pop(), self.stack.pop()
    if type(function) is not Placeholder or type(arguments) is not tuple:
      raise TypeError("not a call")
    self.spend(_STEPS_PER_CALL)
    name = function.name
    if name not in _CALLS and name not in self.calls:
      self.append(Placeholder(name))
    elif len(arguments) > _MAX_ARGUMENTS:
      raise TypeError("too many arguments")
    elif name in _CALLS:
      self.append(_CALLS[name](self, *arguments))
    else:
      self.append(self.calls[name](*arguments))

  load_newobj = load_reduce

  def load_newobj_ex(self) -> None:
    _, _, function = self.stack.pop(), self.stack.pop(), self.stack.pop()
    self.append(Placeholder(function.name))

  def load_build(self) -> None:
    """Drops the state of an object: nothing that is rebuilt has any."""
    self.stack.pop()
    if not self.stack:
      raise IndexError("nothing to build")

  def load_frame(self) -> None:
    self.read(8)

  def load_setitem(self) -> None:
    self.stack[-2] = self.quick_key(self.stack[-2])
    super().load_setitem()

  def load_setitems(self) -> None:
    self.stack[::2] = map(self.quick_key, self.stack[::2])
    super().load_setitems()

  def load_dict(self) -> None:
    self.stack[::2] = map(self.quick_key, self.stack[::2])
    super().load_dict()

  # Chosen indices can collide in the memo, which is a dict.
  def load_long_binput(self) -> None:
    (index,) = struct.unpack("<I", self.read(4))
    if index > len(self.memo) + 1:
      raise ValueError("memo out of order")
    self.memo[index] = self.stack[-1]

  def load_empty_set(self) -> None:
    self.spend(_STEPS_PER_SET)
    super().load_empty_set()

  def load_additems(self) -> None:
    self.stack[:] = map(self.quick_key, self.stack)
    super().load_additems()

  def load_frozenset(self) -> None:
    self.spend(_STEPS_PER_SET)
    self.stack[:] = map(self.quick_key, self.stack)
    super().load_frozenset()

  # The original allocates a length before it reads as much.
  load_bytearray8 = pickle._Unpickler.load_binbytes8

  def _decode_string(self, value: bytes) -> str | bytes:
    """Decodes a string of Python 2, which had one type for text and bytes."""
    try:
      return value.decode("utf-8")
    except UnicodeDecodeError:
      return value

  def quick_key(self, value: object) -> object:
    """Returns `value`, or a placeholder where hashing or comparing it could take long.

    Hashing nested tuples takes time that doubles with each level; big numbers can collide.
    """
    if type(value) not in (str, bytes, Placeholder):
      self.spend(_STEPS_PER_NUMBER_KEY)
    is_short_tuple = type(value) is tuple and len(value) <= _LONGEST_TUPLE_KEY
    if all(map(_is_quick, value if is_short_tuple else (value,))):
      return value
    return Placeholder(f"{type(value).__module__}.{type(value).__qualname__}")

  def make_dict(self, pairs: Sequence = ()) -> dict:
    self.spend(len(pairs))
    if not _is_sequence(pairs) or not all(map(_is_sequence, pairs)):
      raise TypeError("not pairs")
    return {self.quick_key(key): value for key, value in pairs}

  def make_set(self, values: Sequence = ()) -> set:
    if not _is_sequence(values):
      raise TypeError("not values")
    self.spend(_STEPS_PER_SET + 2 * len(values))
    return set(map(self.quick_key, values))

  def make_bytes(self, value: str | bytes = b"", encoding: str = "latin1") -> bytes:
    """Returns bytes, which protocol 2 stores as text."""
    self.spend(len(value) // 16)
    if type(value) is bytes:
      return value
    if type(encoding) is not str or encoding not in ("latin1", "latin-1", "utf-8"):
      raise ValueError("not an encoding of bytes")
    return value.encode(encoding)


# The opcodes that are read, and no others.
_OPCODES = """
  PROTO FRAME STOP NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG1 LONG4 BINFLOAT
  SHORT_BINUNICODE BINUNICODE BINUNICODE8 SHORT_BINBYTES BINBYTES BINBYTES8 BYTEARRAY8
  SHORT_BINSTRING BINSTRING EMPTY_TUPLE TUPLE1 TUPLE2 TUPLE3 TUPLE EMPTY_LIST LIST APPEND APPENDS
  EMPTY_DICT DICT SETITEM SETITEMS EMPTY_SET ADDITEMS FROZENSET GLOBAL STACK_GLOBAL REDUCE NEWOBJ
  NEWOBJ_EX BUILD BINPERSID MARK POP POP_MARK DUP BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET
"""
_CODES = [getattr(pickle, name)[0] for name in _OPCODES.split()]
_DataUnpickler.dispatch = {
  code: getattr(_DataUnpickler, pickle._Unpickler.dispatch[code].__name__) for code in _CODES
}
# The names that are called; their functions take the unpickler first.
_CALLS: dict[str, Callable] = {
  "collections.OrderedDict": _DataUnpickler.make_dict,
  "builtins.set": _DataUnpickler.make_set,
  "builtins.frozenset": lambda self, values=(): frozenset(self.make_set(values)),
  "builtins.bytes": _DataUnpickler.make_bytes,
  "builtins.bytearray": _DataUnpickler.make_bytes,
  "builtins.complex": lambda self, real, imaginary: complex(real, imaginary),
  "_codecs.encode": _DataUnpickler.make_bytes,
}


def _is_quick(value: object) -> bool:
  if isinstance(value, (str, bytes)):
    return len(value) <= _LONGEST_KEY
  if isinstance(value, int):
    return value.bit_length() <= 60
  return value is None or type(value) in (float, Placeholder)


def _is_sequence(value: object) -> bool:
  """Returns whether a value can be iterated without creating objects, as an array would."""
  return type(value) in (list, tuple)
