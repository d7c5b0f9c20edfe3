"""The reader of pickles, compared with that of Python and against harmful pickles."""

import collections
import copy
import pickle
import struct
import time
import types

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conversion.handmade_files import OS_SYSTEM, Call, Name, Raw, opcodes, pickled
from vswin_jax.conversion import pickles, torch_tensors
from vswin_jax.conversion.pickles import FileError, Placeholder

_SCALARS = (
  st.none()
  | st.booleans()
  | st.integers()
  | st.integers(-(2**3000), 2**3000)
  | st.floats(allow_nan=False)
  | st.complex_numbers(allow_nan=False)
  | st.text()
  | st.binary()
)
_QUICK_KEYS = st.integers(-(2**60) + 1, 2**60 - 1) | st.text() | st.binary()
_KEYS = _QUICK_KEYS | st.tuples(_QUICK_KEYS, _QUICK_KEYS)
_VALUES = st.recursive(
  _SCALARS | st.sets(_KEYS) | st.frozensets(_KEYS),
  lambda values: (
    st.lists(values) | st.lists(values).map(tuple) | st.dictionaries(_KEYS, values, max_size=5)
  ),
  max_leaves=20,
)


def _load(data: bytes, calls=types.MappingProxyType({}), constants=types.MappingProxyType({})):
  value, end = pickles.load(data, 0, len(data), calls, constants, lambda saved_id: saved_id)
  assert end == len(data)
  return value


@settings(deadline=None, max_examples=50)
@given(value=_VALUES, protocol=st.integers(2, 5))
def test_plain_data(value, protocol):
  assert _load(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_other_data(protocol):
  shared = ["x" * 300, "y" * 70_000]
  value = [
    collections.OrderedDict([("b", 1), ("a", shared)]),
    bytearray(b"ab"),
    b"",
    list(range(3000)),
    shared,
    -(2**31),
    2**31,
    2**5000,
  ]
  found = _load(pickle.dumps(value, protocol))
  assert found == [{"b": 1, "a": shared}, b"ab", *value[2:]]
  assert list(found[0]) == ["b", "a"] and type(found[0]) is dict
  assert found[0]["a"] is found[4]


def test_pickles_of_python_2():
  # collections.OrderedDict, strings of 8 bits and integers in text, in protocol 2.
  pairs = [["name", 1], ["other", 2]]
  ordered = Call(Name("collections", "OrderedDict"), (pairs,))
  strings = [Raw(b"U\x03abc"), Raw(b"T\x02\0\0\0\xff\xfe")]
  found = _load(pickled([ordered, *strings, Raw(b"I01\n"), Raw(b"I-12\n")]))
  assert found == [{"name": 1, "other": 2}, "abc", b"\xff\xfe", True, -12]
  assert _load(pickled(Call(Name("__builtin__", "set"), ([1, 1],)))) == {1}


def test_unknown_names_are_inert():
  class_ = Name("mmcv.utils", "Config")
  instances = {
    "itself": class_,
    "called": Call(class_, ({"lr": 1},)),
    "new": Raw(opcodes(class_) + opcodes((1,)) + pickle.NEWOBJ),
    "new with keywords": Raw(opcodes(class_) + opcodes(()) + opcodes({"a": 1}) + pickle.NEWOBJ_EX),
    "on the stack": Raw(opcodes("mmcv.utils") + opcodes("Config") + pickle.STACK_GLOBAL),
  }
  for name, made in instances.items():
    changes = (
      opcodes({"state": 1}) + pickle.BUILD,
      opcodes(1) + pickle.APPEND,
      pickle.MARK + opcodes(1) + pickle.APPENDS,
      opcodes("k") + opcodes(1) + pickle.SETITEM,
      pickle.MARK + opcodes("k") + opcodes(1) + pickle.SETITEMS,
      pickle.MARK + opcodes(1) + pickle.ADDITEMS,
      pickle.EMPTY_TUPLE + pickle.REDUCE,
    )
    for change in (b"", *changes, b"".join(changes)):
      found = _load(pickled(Raw(opcodes(made) + change)))
      assert type(found) is Placeholder and found.name == "mmcv.utils.Config", name
  keyed = _load(pickled({Call(class_, (1,)): 1, Call(class_, (2,)): 2}))
  assert list(keyed.values()) == [1, 2]


def test_known_names_cannot_be_altered():
  """BUILD sets attributes of what it is given; a name must not lead it to this library."""
  state = {"__code__": None, "__defaults__": ("evil",), "name": "evil", "calls": None}
  before = copy.copy(torch_tensors.CALLS), torch_tensors.CALLS["torch.Size"].__defaults__
  for name in [*torch_tensors.CALLS, *torch_tensors.CONSTANTS, "collections.OrderedDict"]:
    module, _, last = name.rpartition(".")
    for each in (state, (None, state), (state, state)):
      build = Raw(opcodes(Name(module, last)) + opcodes(each) + pickle.BUILD)
      found = _load(pickled([build, Name(module, last)]), dict(before[0]), torch_tensors.CONSTANTS)
      assert getattr(found[1], "name", None) != "evil"
  assert (torch_tensors.CALLS, torch_tensors.CALLS["torch.Size"].__defaults__) == before
  built = Call(Name("collections", "OrderedDict"), ())
  assert _load(pickled(Raw(opcodes(built) + opcodes({"update": 1}) + pickle.BUILD))) == {}


def test_names_are_shown_safely():
  odd = Raw(opcodes("a\nb") + opcodes("\x1b[31m" + "x" * 10**6) + pickle.STACK_GLOBAL)
  found = _load(pickled(odd))
  assert found.name.isprintable() and len(found.name) < 1000


@pytest.mark.parametrize("protocol", [2, 5])
def test_python_objects_are_never_made(tmp_path, protocol):
  import os

  class Evil:
    def __reduce__(self):
      return os.system, (f"touch {tmp_path / 'touched'}",)

  found = _load(pickle.dumps({"a": Evil(), "weights": 1}, protocol))
  assert found["weights"] == 1 and found["a"].name.endswith(".system")
  assert not (tmp_path / "touched").exists()


_LONG = 2**62
_HARMFUL = {
  "empty": b"",
  "nothing on the stack": b"\x80\x02.",
  "memo at the end of the range": b"\x80\x02Nr\xff\xff\xff\xffj\xfe\xff\xff\xff.",
  "text without end": b"\x80\x02X\xff\xff\xff\x7fabc.",
  "text of 2^62 bytes": b"\x80\x04\x8d" + struct.pack("<Q", _LONG) + b".",
  "bytes of 2^62 bytes": b"\x80\x04\x8e" + struct.pack("<Q", _LONG) + b".",
  "bytearray of 2^62 bytes": b"\x80\x05\x96" + struct.pack("<Q", _LONG) + b".",
  "number of 2^31 bytes": b"\x80\x02\x8b\xff\xff\xff\x7f.",
  "name without end": b"\x80\x02c" + b"a" * 10**6,
  "not UTF-8": b"\x80\x02X\x02\0\0\0\xff\xfe.",
  "extension": b"\x80\x02\x82\x01.",
  "instance": b"\x80\x02(iposix\nsystem\n.",
  "object": b"\x80\x02(cposix\nsystem\no.",
  "persistent id in text": b"\x80\x02Pa\n.",
  "memo index in text": b"\x80\x02Np99999999999\n.",
  "number in text": b"\x80\x02L" + b"9" * 10**6 + b"L\n.",
  "text of negative length": b"\x80\x02T\xff\xff\xff\xffabc.",
  "number of negative length": b"\x80\x02\x8b\xff\xff\xff\xff.",
  "read-only buffer": b"\x80\x05C\x01a\x98.",
  "buffer out of band": b"\x80\x05\x97.",
  "protocol 0": b"(lp0\n.",
  "protocol 9": b"\x80\x09N.",
  "marks": b"\x80\x02" + b"(" * 1000 + b"e.",
  "odd number of items": b"\x80\x02}(NNNu.",
  "unhashable": pickled(Raw(b"]]\x93.")),
  "call of a number": pickled(Call(3, ())),
  "arguments that are no tuple": pickled(Call(OS_SYSTEM, ["a"])),
  "pairs that are none": pickled(Call(Name("collections", "OrderedDict"), ([[1, 2, 3]],))),
  "bytes of a number": pickled(Call(Name("builtins", "bytes"), (10**12,))),
  "append to a tuple": pickled(Raw(b")Na")),
  "encoding that is none": pickled(Call(Name("_codecs", "encode"), ("a", "rot13"))),
  "memo index out of order": b"\x80\x02Nr" + struct.pack("<I", 10**6) + b".",
  "bytes as an encoding": pickled(Call(Name("_codecs", "encode"), ("a", Raw(b"C\1a")))),
  "pairs of a text": pickled(Call(Name("collections", "OrderedDict"), ("abcd",))),
  "complex of a text": pickled(Call(Name("builtins", "complex"), ("1" * 10**5, 2))),
}


@pytest.mark.parametrize("name", _HARMFUL)
def test_damaged_pickles(name):
  with pytest.raises(FileError) as error:
    _load(_HARMFUL[name])
  assert len(str(error.value).splitlines()) == 1


_GROW = b"2\x86" * 5000  # DUP, TUPLE2: a tuple of 2^5000 leaves.
_LONG_LIST = b"]q\0(" + b"K\1\x85q\1h\1\x86" * 100_000 + b"e0"
_LONG_TEXT = b"X" + struct.pack("<I", 10**6) + b"a" * 10**6 + b"q\0" + b"0"
_COPY_LIST = b"ccollections\nOrderedDict\nh\0\x85R0"
_ENCODE = b"c_codecs\nencode\nh\0\x85R"
_HUNGRY = {
  "hash of nested tuples": b"\x80\x02}N" + _GROW + b"Ns.",
  "set of nested tuples": b"\x80\x04\x8f(N" + _GROW + b"\x90.",
  "long list copied often": b"\x80\x02" + _LONG_LIST + _COPY_LIST * 100_000 + b"N.",
  "long text encoded often": b"\x80\x02" + _LONG_TEXT + b"](" + _ENCODE * 20_000 + b"e.",
  "long key compared often": b"\x80\x02" + _LONG_TEXT + b"}(" + b"h\0N" * 100_000 + b"u.",
  "colliding numbers": b"\x80\x02}("
  + b"".join(b"\x8a\x10" + (k * (2**61 - 1)).to_bytes(16, "little") + b"N" for k in range(50_000))
  + b"u.",
  "colliding pairs of numbers": b"\x80\x02}("
  + b"".join(
    b"J" + struct.pack("<i", k) + b"J" + struct.pack("<i", -k) + b"\x86N" for k in range(60_000)
  )
  + b"u.",
  "many arguments unpacked often": b"\x80\x02("
  + b"N" * 100_000
  + b"tq\0"
  + b"0c_codecs\nencode\nh\0R" * 1000
  + b".",
}


@pytest.mark.parametrize("name", _HUNGRY)
def test_time_is_bounded(name, monkeypatch):
  monkeypatch.setattr(pickles, "MOST_STEPS", 1_000_000)
  start = time.process_time()
  try:
    _load(_HUNGRY[name])
  except FileError as error:
    assert "steps" in str(error) or "damaged" in str(error)
  assert time.process_time() - start < 5


def test_limits(monkeypatch):
  monkeypatch.setattr(pickles, "MOST_STEPS", 1000)
  with pytest.raises(FileError, match="more than 1000 steps"):
    _load(pickled(list(range(1000))))
  monkeypatch.setattr(pickles, "LONGEST_PICKLE", 500)
  short = pickled("a" * 400)
  padded = short + bytes(10_000)
  assert pickles.load(padded, 0, len(padded), {}, {}, repr) == ("a" * 400, len(short))
  with pytest.raises(FileError, match="longer than 500 bytes"):
    _load(pickled("a" * 600))


_REAL = pickle.dumps(
  [{"a": (1, 2.5, b"x"), 3: {4}}, collections.OrderedDict(b=[None]), types.SimpleNamespace(c=1)], 4
)
_CODES = [bytes([code]) for code in sorted(pickles._DataUnpickler.dispatch)] + [b"\x00"]


@settings(deadline=None, max_examples=300)
@given(
  data=st.binary(max_size=60)
  | st.lists(st.sampled_from(_CODES) | st.binary(max_size=3), max_size=60).map(b"".join)
  | st.tuples(st.integers(0, len(_REAL) - 1), st.binary(max_size=4)).map(
    lambda change: _REAL[: change[0]] + change[1] + _REAL[change[0] + len(change[1]) :]
  )
)
def test_any_bytes_are_refused_or_harmless(data):
  try:
    pickles.load(data, 0, len(data), torch_tensors.CALLS, torch_tensors.CONSTANTS, lambda x: x)
  except FileError as error:
    assert len(str(error).splitlines()) == 1
