"""Pickles read as plain data: nothing that a pickle names is ever imported or called.

An interpreter of its own, because the one of the standard library can be made to ask for memory
without bounds, and because here no function is ever within reach of a pickle: what it names is a
`Placeholder`, and a call of one is looked up by name in a closed table.
"""

import dataclasses
import pickle
import struct
from collections.abc import Callable, Mapping, Sequence

from vswin_jax.conversion.file_errors import FileError

# Far above the pickles of real checkpoints; what is within takes seconds and about 2 GB at worst.
LONGEST_PICKLE = 256 * 2**20
MOST_STEPS = 10_000_000

_STEPS_OF_A_CALL = 4
# An empty one takes as much memory as four empty lists.
_STEPS_OF_A_SET = 3
_MOST_ARGUMENTS = 16
_LONGEST_NAME = 200
_LONGEST_KEY = 10_000
_LONGEST_TUPLE_KEY = 8


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Placeholder:
  """Stands for what is not rebuilt: any class, function or object that is not on the closed list.

  Attributes:
    name: the dotted name in the file, such as "mmcv.utils.Config", of an object that of its class.
  """

  name: str


def load(
  data,
  start: int,
  end: int,
  calls: Mapping[str, Callable],
  constants: Mapping[str, object],
  load_persistent: Callable[[object], object],
) -> tuple[object, int]:
  """Reads one pickle of protocol 2 to 5.

  Besides plain data, OrderedDict (as dict), set, frozenset, complex, bytes and bytearray (as bytes)
  are rebuilt. Dictionary keys that could take long to hash become placeholders.

  Args:
    data: bytes or an mmap.
    start: position of the pickle in `data`.
    end: where it must have ended; more than `LONGEST_PICKLE` bytes are not read.
    calls: dotted name -> function that takes the place of a call of that name.
    constants: dotted name -> value that takes the place of that name.
    load_persistent: from a persistent id (any object) to the object that it stands for.

  Returns:
    The object, and the position after the pickle.

  Raises:
    FileError: the pickle is cut off, damaged, or beyond the limits; or raised by the functions.
  """
  machine = _Machine(data, start, end, calls, constants, load_persistent)
  try:
    return machine.run()
  except FileError:
    raise
  # A damaged pickle can make any step fail, in ways that only depend on its bytes.
  except Exception as error:
    raise FileError(
      f"its pickle is damaged at byte {machine.position} ({type(error).__name__}); "
      "download or save the file again"
    ) from error


class _Machine:
  """The state of one reading: position, stack, marks, memo."""

  def __init__(self, data, start, end, calls, constants, load_persistent):
    self.data = data
    self.position = start
    self.too_long = end - start > LONGEST_PICKLE
    self.end = min(end, start + LONGEST_PICKLE)
    self.calls = calls
    self.constants = constants
    self.load_persistent = load_persistent
    self.stack: list = []
    self.outer_stacks: list[list] = []
    self.memo: dict[int, object] = {}
    self.steps_left = MOST_STEPS

  def run(self) -> tuple[object, int]:
    while True:
      self.spend(1)
      opcode = self.take(1)
      if opcode == pickle.STOP:
        return self.stack.pop(), self.position
      step = _STEPS.get(opcode)
      if step is None:
        raise FileError(
          f"its pickle has the unknown opcode {opcode!r} at byte {self.position - 1}; the file is "
          "damaged, or not of pickle protocol 2 to 5: download or save it again"
        )
      step(self)

  def spend(self, steps: int) -> None:
    """Counts work, so that a small pickle can't ask for much."""
    self.steps_left -= steps
    if self.steps_left < 0:
      raise FileError(
        f"its pickle takes more than {MOST_STEPS} steps, far beyond that of any model; "
        "save the weights alone"
      )

  def take(self, count: int) -> bytes:
    start, self.position = self.position, self.position + count
    if self.position > self.end:
      if self.too_long:
        raise FileError(
          f"its pickle is longer than {LONGEST_PICKLE} bytes, far beyond that of any model; "
          "save the weights alone"
        )
      raise FileError("its pickle ends too early, the file is cut off; download or save it again")
    return self.data[start : self.position]

  def take_number(self, count: int, signed: bool = False) -> int:
    return int.from_bytes(self.take(count), "little", signed=signed)

  def take_line(self) -> bytes:
    length = self.data.find(b"\n", self.position, self.end) - self.position
    if not 0 <= length <= 10 * _LONGEST_NAME:
      raise FileError("its pickle has a line without end, the file is damaged; download it again")
    return self.take(length + 1)[:-1]

  def push(self, value: object) -> None:
    self.stack.append(value)

  def mark(self) -> None:
    self.outer_stacks.append(self.stack)
    self.stack = []

  def pop_mark(self) -> list:
    values, self.stack = self.stack, self.outer_stacks.pop()
    return values

  def push_named(self, module: str, name: str) -> None:
    module = _PYTHON_2_MODULES.get(module, module)
    full = f"{module}.{name}"
    if full in self.constants:
      self.push(self.constants[full])
    else:
      full = full[:_LONGEST_NAME]
      self.push(Placeholder(full if full.isprintable() else ascii(full)))

  def call(self, function: object, arguments: object, keywords: object = None) -> object:
    if type(function) is not Placeholder or type(arguments) is not tuple:
      raise TypeError("not a call")
    self.spend(_STEPS_OF_A_CALL)
    name = function.name
    if keywords or (name not in _CALLS and name not in self.calls):
      return Placeholder(name)
    if len(arguments) > _MOST_ARGUMENTS:
      raise TypeError("too many arguments")
    return _CALLS[name](self, *arguments) if name in _CALLS else self.calls[name](*arguments)

  def store(self, keys_and_values: Sequence) -> None:
    """Into the dictionary on top of the stack."""
    target = self.stack[-1]
    if type(target) is dict:
      for index in range(0, len(keys_and_values), 2):
        target[_key(keys_and_values[index])] = keys_and_values[index + 1]
    elif type(target) is not Placeholder:
      raise TypeError("not a dictionary")

  def extend(self, kind: type, add: Callable, values: Sequence) -> None:
    """Adds to the list or set on top of the stack."""
    target = self.stack[-1]
    if type(target) is kind:
      add(target, values)
    elif type(target) is not Placeholder:
      raise TypeError(f"not a {kind.__name__}")


def _key(value: object) -> object:
  """`value`, or a placeholder where hashing or comparing it could take long.

  Nested tuples take time that doubles with each level, big numbers can be made to collide.
  """
  if type(value) is tuple and len(value) <= _LONGEST_TUPLE_KEY:
    fits = all(map(_is_quick_key, value))
  else:
    fits = _is_quick_key(value)
  return value if fits else Placeholder(f"{type(value).__module__}.{type(value).__qualname__}")


def _is_quick_key(value: object) -> bool:
  if isinstance(value, (str, bytes)):
    return len(value) <= _LONGEST_KEY
  if isinstance(value, int):
    return value.bit_length() <= 60
  return value is None or type(value) in (float, Placeholder)


def _text_or_bytes(value: bytes) -> str | bytes:
  """A string of Python 2, which had one type for both."""
  try:
    return value.decode("utf-8")
  except UnicodeDecodeError:
    return value


def _long_number(machine: _Machine, size_bytes: int) -> None:
  machine.push(machine.take_number(machine.take_number(size_bytes), signed=True))


def _text(machine: _Machine, size_bytes: int) -> None:
  text = machine.take(machine.take_number(size_bytes))
  machine.push(str(text, "utf-8", "surrogatepass"))


def _bytes(machine: _Machine, size_bytes: int) -> None:
  machine.push(machine.take(machine.take_number(size_bytes)))


def _old_string(machine: _Machine, size_bytes: int) -> None:
  machine.push(_text_or_bytes(machine.take(machine.take_number(size_bytes))))


def _number_in_text(machine: _Machine) -> None:
  line = machine.take_line()
  # Python 2 writes booleans as these.
  machine.push(line == b"01" if line in (b"00", b"01") else int(line))


def _tuple(machine: _Machine, count: int) -> None:
  values = machine.stack[-count:]
  if len(values) != count:
    raise IndexError("stack underflow")
  machine.stack[-count:] = [tuple(values)]


def _dictionary(machine: _Machine) -> None:
  values = machine.pop_mark()
  machine.push({})
  machine.store(values)


def _set_item(machine: _Machine) -> None:
  value, key = machine.stack.pop(), machine.stack.pop()
  machine.store((key, value))


def _append(machine: _Machine) -> None:
  value = machine.stack.pop()
  machine.extend(list, list.append, value)


def _empty_set(machine: _Machine) -> None:
  machine.spend(_STEPS_OF_A_SET)
  machine.push(set())


def _frozen_set(machine: _Machine) -> None:
  machine.spend(_STEPS_OF_A_SET)
  machine.push(frozenset(map(_key, machine.pop_mark())))


def _add_to_set(machine: _Machine) -> None:
  machine.extend(set, set.update, [_key(value) for value in machine.pop_mark()])


def _named_in_lines(machine: _Machine) -> None:
  module, name = machine.take_line(), machine.take_line()
  machine.push_named(module.decode("utf-8"), name.decode("utf-8"))


def _named_on_stack(machine: _Machine) -> None:
  name, module = machine.stack.pop(), machine.stack.pop()
  if type(name) is not str or type(module) is not str:
    raise TypeError("a name must be a string")
  # Sliced before they are joined: a name that is used often could be long.
  machine.push_named(module[:_LONGEST_NAME], name[:_LONGEST_NAME])


def _reduce(machine: _Machine) -> None:
  arguments, function = machine.stack.pop(), machine.stack.pop()
  machine.push(machine.call(function, arguments))


def _new_object_with_keywords(machine: _Machine) -> None:
  keywords, arguments, function = (machine.stack.pop() for _ in range(3))
  machine.push(machine.call(function, arguments, keywords))


def _build(machine: _Machine) -> None:
  """State is for objects, and all objects here are inert."""
  machine.stack.pop()
  if not machine.stack:
    raise IndexError("stack underflow")


def _pop(machine: _Machine) -> None:
  if machine.stack:
    machine.stack.pop()
  else:
    machine.pop_mark()


def _memoize(machine: _Machine, index: int) -> None:
  machine.memo[index] = machine.stack[-1]


def _persistent(machine: _Machine) -> None:
  machine.spend(_STEPS_OF_A_CALL)
  machine.push(machine.load_persistent(machine.stack.pop()))


def _check_protocol(machine: _Machine) -> None:
  protocol = machine.take_number(1)
  if protocol > pickle.HIGHEST_PROTOCOL:
    raise FileError(f"its pickle has protocol {protocol}, expected 2 to 5; save the file again")


_STEPS: dict[bytes, Callable[[_Machine], object]] = {
  pickle.PROTO: _check_protocol,
  pickle.FRAME: lambda machine: machine.take(8),
  # Plain values.
  pickle.NONE: lambda machine: machine.push(None),
  pickle.NEWTRUE: lambda machine: machine.push(True),
  pickle.NEWFALSE: lambda machine: machine.push(False),
  pickle.INT: _number_in_text,
  pickle.BININT: lambda machine: machine.push(machine.take_number(4, signed=True)),
  pickle.BININT1: lambda machine: machine.push(machine.take_number(1)),
  pickle.BININT2: lambda machine: machine.push(machine.take_number(2)),
  pickle.LONG1: lambda machine: _long_number(machine, 1),
  pickle.LONG4: lambda machine: _long_number(machine, 4),
  pickle.BINFLOAT: lambda machine: machine.push(struct.unpack(">d", machine.take(8))[0]),
  pickle.SHORT_BINUNICODE: lambda machine: _text(machine, 1),
  pickle.BINUNICODE: lambda machine: _text(machine, 4),
  pickle.BINUNICODE8: lambda machine: _text(machine, 8),
  pickle.SHORT_BINBYTES: lambda machine: _bytes(machine, 1),
  pickle.BINBYTES: lambda machine: _bytes(machine, 4),
  pickle.BINBYTES8: lambda machine: _bytes(machine, 8),
  pickle.BYTEARRAY8: lambda machine: _bytes(machine, 8),
  pickle.SHORT_BINSTRING: lambda machine: _old_string(machine, 1),
  pickle.BINSTRING: lambda machine: _old_string(machine, 4),
  # Containers.
  pickle.EMPTY_TUPLE: lambda machine: machine.push(()),
  pickle.TUPLE1: lambda machine: _tuple(machine, 1),
  pickle.TUPLE2: lambda machine: _tuple(machine, 2),
  pickle.TUPLE3: lambda machine: _tuple(machine, 3),
  pickle.TUPLE: lambda machine: machine.push(tuple(machine.pop_mark())),
  pickle.EMPTY_LIST: lambda machine: machine.push([]),
  pickle.LIST: lambda machine: machine.push(machine.pop_mark()),
  pickle.APPEND: _append,
  pickle.APPENDS: lambda machine: machine.extend(list, list.extend, machine.pop_mark()),
  pickle.EMPTY_DICT: lambda machine: machine.push({}),
  pickle.DICT: _dictionary,
  pickle.SETITEM: _set_item,
  pickle.SETITEMS: lambda machine: machine.store(machine.pop_mark()),
  pickle.EMPTY_SET: _empty_set,
  pickle.ADDITEMS: _add_to_set,
  pickle.FROZENSET: _frozen_set,
  # Names and objects.
  pickle.GLOBAL: _named_in_lines,
  pickle.STACK_GLOBAL: _named_on_stack,
  pickle.REDUCE: _reduce,
  pickle.NEWOBJ: _reduce,
  pickle.NEWOBJ_EX: _new_object_with_keywords,
  pickle.BUILD: _build,
  pickle.BINPERSID: _persistent,
  # Stack and memo.
  pickle.MARK: _Machine.mark,
  pickle.POP: _pop,
  pickle.POP_MARK: _Machine.pop_mark,
  pickle.DUP: lambda machine: machine.push(machine.stack[-1]),
  pickle.BINPUT: lambda machine: _memoize(machine, machine.take_number(1)),
  pickle.LONG_BINPUT: lambda machine: _memoize(machine, machine.take_number(4)),
  pickle.MEMOIZE: lambda machine: _memoize(machine, len(machine.memo)),
  pickle.BINGET: lambda machine: machine.push(machine.memo[machine.take_number(1)]),
  pickle.LONG_BINGET: lambda machine: machine.push(machine.memo[machine.take_number(4)]),
}

_PYTHON_2_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}


def _call_ordered_dict(machine: _Machine, pairs: Sequence = ()) -> dict:
  machine.spend(len(pairs))
  return {_key(key): value for key, value in pairs}


def _call_set(machine: _Machine, values: Sequence = ()) -> set:
  machine.spend(len(values))
  return {_key(value) for value in values}


def _call_encode(machine: _Machine, text: str, encoding: str = "latin1") -> bytes:
  """How Python 3 writes bytes in protocol 2."""
  machine.spend(len(text) // 16)
  return text.encode({"latin1": "latin-1", "utf-8": "utf-8"}[encoding])


def _call_bytes(machine: _Machine, *arguments: object) -> bytes:
  match arguments:
    case ():
      return b""
    case (bytes() as value,):
      return value
    case (str(), str()):
      return _call_encode(machine, *arguments)
  raise TypeError("not how bytes are written")


def _call_complex(machine: _Machine, real: float, imaginary: float) -> complex:
  return complex(real, imaginary)


_CALLS: dict[str, Callable] = {
  "collections.OrderedDict": _call_ordered_dict,
  "builtins.set": _call_set,
  "builtins.frozenset": lambda machine, values=(): frozenset(_call_set(machine, values)),
  "builtins.bytes": _call_bytes,
  "builtins.bytearray": _call_bytes,
  "builtins.complex": _call_complex,
  "_codecs.encode": _call_encode,
}
