"""Collectives of a compiled program, read from its HLO text.

What a device sends is counted as in a ring of the n devices of a group: 2 (n-1)/n of the size for
an all-reduce, (n-1)/n of the whole for an all-gather, a reduce-scatter and an all-to-all, all of it
for a permutation. Padding of layouts is not counted.

A loop runs as often as the compiler says. That of TPUs says nothing, so its loops are read: a
counter that starts at a constant, grows by a constant and ends below a constant.
"""

import collections
import dataclasses
import itertools
import math
import re
from collections.abc import Iterator

import numpy as np

KINDS = (
  "all-reduce",
  "all-gather",
  "reduce-scatter",
  "all-to-all",
  "ragged-all-to-all",
  "collective-permute",
  "collective-broadcast",
)


@dataclasses.dataclass(frozen=True)
class Collective:
  """Collectives of one kind and group size, together.

  Attributes:
    kind: one of `KINDS`.
    across_slices: over the network between slices, not within one.
    group: devices that take part in one of them.
    count: how often in a step.
    operand_bytes: of one device in a step.
    wire_bytes: sent by one device in a step.
  """

  kind: str
  across_slices: bool
  group: int
  count: int
  operand_bytes: int
  wire_bytes: float


@dataclasses.dataclass(frozen=True)
class _Instruction:
  name: str
  type: str
  opcode: str
  operands: str
  attributes: str
  root: bool = False


def read_collectives(text: str, slices: int = 1, slice_size: int = 0) -> list[Collective]:
  """The collectives of a program, one entry for each kind, network and group size.

  Those in loops count as often as the loop runs, where `read_loops` knows it, else once; of
  branches all count.

  Args:
    text: of the optimized program, as `compiled.as_text()` gives it.
    slices: of the machine. The program for TPUs is that of one slice, and hands what goes between
      slices to the host; the one for GPUs is that of all.
    slice_size: devices of a slice; 0: all of the program's.

  Raises:
    ValueError: the text is no such program.
  """
  computations, entry = _computations(text)
  partitions = int(_found(r"num_partitions=(\d+)", text, "1"))
  slice_size = slice_size or partitions
  sums = collections.defaultdict(lambda: [0, 0, 0.0])
  for name, times in _uses(computations, entry).items():
    instructions = computations[name]
    types = {one.name: one.type for one in instructions}
    for one in instructions:
      found = _collective(one, types, partitions, slices, slice_size)
      if found is None:
        continue
      kind, across, group, size = found
      # The compiler of TPUs writes it as this and a slice, in a fusion that is one operation.
      if kind == "all-reduce" and name.startswith("all-reduce-scatter"):
        kind = "reduce-scatter"
      totals = sums[kind, across, group]
      totals[0] += times
      totals[1] += times * size
      totals[2] += times * wire_bytes(kind, size, group)
  return [Collective(*key, count, size, wire) for key, (count, size, wire) in sorted(sums.items())]


def read_loops(text: str) -> list[int | None]:
  """How often each loop of a program runs, of those that run more than once; None: the text does
  not tell."""
  computations, _ = _computations(text)
  trips = [
    _trip_count(one, instructions, computations)
    for instructions in computations.values()
    for one in instructions
    if one.opcode == "while"
  ]
  return [count for count in trips if count is None or count > 1]


def wire_bytes(kind: str, operand_bytes: float, group: int) -> float:
  """Bytes that each device of a ring sends.

  Args:
    operand_bytes: of one device: of an all-gather its own part, else the whole array.
  """
  if group < 2:
    return 0.0
  others = (group - 1) / group
  shares = {
    "all-reduce": 2 * others,
    "all-gather": group - 1,
    "reduce-scatter": others,
    "all-to-all": others,
    "ragged-all-to-all": others,
  }
  return operand_bytes * shares.get(kind, 1.0)


def type_bytes(type_text: str) -> int:
  """Bytes of an HLO type, such as `(f32[8,128]{1,0}, bf16[2])`."""
  bits = 0
  for dtype, shape in re.findall(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,<=]*)\]", type_text):
    sizes = [int(size.removeprefix("<=")) for size in shape.split(",") if size]
    bits += _bits(dtype) * math.prod(sizes)
  return bits // 8


def group_members(groups: str, partitions: int) -> list[int]:
  """The devices of the first group of a `replica_groups` attribute, in any of its forms: lists
  `{{0,1},{2,3}}`, counted `[2,4]<=[4,2]T(1,0)`, or axes of a mesh `mesh['a'=2,'b'=4] {'b'}`."""
  if groups.startswith("mesh["):
    return _mesh_group(groups)
  if groups.startswith("["):
    return _counted(groups).tolist()[0]
  first = re.match(r"\{\{([\d, ]*)\}", groups)
  members = [int(number) for number in re.findall(r"\d+", first[1])] if first else []
  return members or list(range(partitions))


def _mesh_group(groups: str) -> list[int]:
  axes, ids, chosen = re.fullmatch(
    r"mesh\[(.*?)\](?:, ?device_ids=\((.*)\))? \{(.*)\}", groups
  ).groups()
  sizes = {name: int(size) for name, size in re.findall(r"([\w']+)=(\d+)", axes)}
  devices = np.arange(math.prod(sizes.values()))
  if ids and "<=" in ids:
    devices = _counted(ids).reshape(-1)
  elif ids:
    devices = np.array([int(number) for number in re.findall(r"\d+", ids.split("]")[-1])])
  devices = devices.reshape(tuple(sizes.values()))
  # An axis, or a part of one: the part's size, and the product of the parts before it.
  parts = {
    name: (int(before or 1), int(size or sizes[name]))
    for name, before, size in re.findall(r"([\w']+)(?::\((\d+)\)(\d+))?", chosen)
  }
  index = []
  for name, whole in sizes.items():
    before, size = parts.get(name, (1, 1))
    after = whole // (before * size)
    index.append([number * after for number in range(size)])
  return devices[np.ix_(*index)].reshape(-1).tolist()


def _counted(text: str) -> np.ndarray:
  """Numbers in the order that `[2,4]<=[4,2]T(1,0)` says, in the first shape."""
  shape, source, order = re.match(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text).groups()
  shape, source = (tuple(map(int, part.split(","))) for part in (shape, source))
  numbers = np.arange(math.prod(source)).reshape(source)
  if order:
    numbers = numbers.transpose(tuple(map(int, order.split(","))))
  return numbers.reshape(shape)


def _collective(
  one: _Instruction, types: dict[str, str], partitions: int, slices: int, slice_size: int
):
  """Kind, whether across slices, group size and operand bytes; None of other instructions."""
  kind = one.opcode.removesuffix("-start")
  if kind not in (*KINDS, "send"):
    return None
  size = sum(type_bytes(types.get(name, "")) for name in _operand_names(one))
  if kind == "send":
    transfer = _found(r'_xla_megascale_transfer_type="(\w+)"', one.attributes)
    kind = transfer.lower().replace("_", "-")
    return (kind if kind in KINDS else "collective-permute", True, slices, size) if kind else None
  if kind == "collective-permute":
    pairs = re.findall(
      r"\{(\d+),(\d+)\}", _found(r"source_target_pairs=(\{.*?\}\})", one.attributes)
    )
    across = any(int(source) // slice_size != int(goal) // slice_size for source, goal in pairs)
    return kind, across, 2 if pairs else 1, size
  groups = _found(
    r"replica_groups=(mesh\[.*?\](?:, ?device_ids=\(.*?\)+)? \{.*?\}"
    r"|\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?|\{\{.*?\}\}|\{\})",
    one.attributes,
  )
  members = group_members(groups, partitions)
  return kind, len({member // slice_size for member in members}) > 1, len(members), size


def _computations(text: str) -> tuple[dict[str, list[_Instruction]], str]:
  """The instructions of every computation by its name, and the name of the first to run."""
  found: dict[str, list[_Instruction]] = {}
  entry, current = "", None
  for line in text.splitlines():
    if not line.startswith(" "):
      header = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$", line)
      current = found.setdefault(header[2], []) if header else None
      if header and header[1]:
        entry = header[2]
    elif current is not None:
      instruction = _instruction(line)
      if instruction:
        current.append(instruction)
  if not entry:
    raise ValueError("the text of a compiled program has an ENTRY; this has none")
  return found, entry


def _instruction(line: str) -> _Instruction | None:
  head = re.match(r"\s+(ROOT )?%?([\w.\-]+) = ", line)
  if not head:
    return None
  rest = line[head.end() :]
  end = _closing(rest, 0) if rest.startswith("(") else rest.find(" ")
  kind = re.match(r" ?([a-z][\w\-]*)\(", rest[end:])
  if not kind:
    return None
  start = end + kind.end() - 1
  stop = _closing(rest, start)
  operands = rest[start + 1 : stop - 1]
  return _Instruction(head[2], rest[:end], kind[1], operands, rest[stop:], bool(head[1]))


def _closing(text: str, start: int) -> int:
  """The place after the parenthesis that closes the one at `start`."""
  depth = 0
  for match in re.compile(r"[()]").finditer(text, start):
    depth += 1 if match[0] == "(" else -1
    if not depth:
      return match.end()
  return len(text)


def _operand_names(one: _Instruction) -> list[str]:
  """Names of the operands; of what is sent, without the token."""
  names = re.findall(r"%([\w.\-]+)", one.operands)
  return (names or re.findall(r"(?:^|[ ,])([\w.\-]+)(?=,|$)", one.operands))[
    : 1 if one.opcode == "send" else None
  ]


def _uses(computations: dict[str, list[_Instruction]], entry: str) -> dict[str, int]:
  """How often each computation runs in one of the whole program."""
  times: dict[str, int] = collections.defaultdict(int)
  waiting = [(entry, 1)]
  while waiting:
    name, count = waiting.pop()
    times[name] += count
    instructions = computations[name]
    for one in instructions:
      often = _trip_count(one, instructions, computations) if one.opcode == "while" else 1
      waiting += [
        (called, count * (1 if often is None else often))
        for called in _calls(one)
        if called in computations
      ]
  return times


def _calls(one: _Instruction) -> Iterator[str]:
  """The computations that an instruction runs."""
  if one.opcode == "while":
    for part in ("body", "condition"):
      yield _found(rf"\b{part}=%?([\w.\-]+)", one.attributes)
  elif one.opcode == "conditional":
    branches = _found(r"branch_computations=\{(.*?)\}", one.attributes)
    yield from re.findall(r"[\w.\-]+", branches)
    for part in ("true", "false"):
      yield _found(rf"{part}_computation=%?([\w.\-]+)", one.attributes)
  elif one.opcode in ("fusion", "call", "async-start"):
    # What waits for an asynchronous call names it once more.
    for part in ("calls", "to_apply"):
      yield _found(rf"\b{part}=%?([\w.\-]+)", one.attributes)


def _trip_count(
  loop: _Instruction,
  around: list[_Instruction],
  computations: dict[str, list[_Instruction]],
) -> int | None:
  """How often a loop runs; None if it is not seen.

  Args:
    around: the computation with the loop in it.
  """
  known = _found(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
  if known:
    return int(known)
  parts = {
    part: {
      one.name: one
      for one in computations.get(_found(rf"\b{part}=%?([\w.\-]+)", loop.attributes), ())
    }
    for part in ("condition", "body")
  }
  test, result = (
    next((one for one in parts[part].values() if one.root), None) for part in ("condition", "body")
  )
  if test is None or test.opcode != "compare" or "direction=LT" not in test.attributes:
    return None
  counter, bound = _operand_names(test)
  place = _tuple_index(parts["condition"], counter)
  if place is None:
    return None
  outside = {one.name: one for one in around}
  start = _constant(outside, _tuple_part(outside.get(_operand_names(loop)[0]), place))
  end = _constant(parts["condition"], bound)
  step = _step(parts["body"], _tuple_part(result, place), place)
  if start is None or end is None or not step or step < 1:
    return None
  return max(0, -(-(end - start) // step))


def _step(body: dict[str, _Instruction], name: str, place: int) -> int | None:
  """What a loop adds to its counter, the part of its state at `place`."""
  addition = _source(body, name)
  if addition is None or addition.opcode != "add":
    return None
  for counter, amount in itertools.permutations(_operand_names(addition)):
    if _tuple_index(body, counter) == place:
      return _constant(body, amount)
  return None


def _source(instructions: dict[str, _Instruction], name: str) -> _Instruction | None:
  """The instruction of a name, or of what it copies."""
  one = instructions.get(name)
  while one is not None and one.opcode in ("copy", "bitcast"):
    one = instructions.get(_operand_names(one)[0])
  return one


def _constant(instructions: dict[str, _Instruction], name: str) -> int | None:
  one = _source(instructions, name)
  if one is None or one.opcode != "constant" or not re.fullmatch(r"-?\d+", one.operands):
    return None
  return int(one.operands)


def _tuple_index(instructions: dict[str, _Instruction], name: str) -> int | None:
  """Which part of the argument of a computation a name is."""
  one = _source(instructions, name)
  if one is None or one.opcode != "get-tuple-element":
    return None
  whole = instructions.get(_operand_names(one)[0])
  if whole is None or whole.opcode != "parameter":
    return None
  return int(_found(r"\bindex=(\d+)", one.attributes))


def _tuple_part(one: _Instruction | None, place: int) -> str:
  """The name of a part of a tuple; empty if it is not made here."""
  return _operand_names(one)[place] if one is not None and one.opcode == "tuple" else ""


def _found(pattern: str, text: str, otherwise: str = "") -> str:
  match = re.search(pattern, text)
  return match[1] if match else otherwise


def _bits(dtype: str) -> int:
  if dtype == "pred":
    return 8
  width = re.match(r"[a-z]+(\d+)", dtype)
  return int(width[1]) if width else 0
