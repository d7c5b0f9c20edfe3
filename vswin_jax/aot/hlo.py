"""Collectives and loops of a compiled program, read from its HLO text.

Bytes communicated are those of a ring of the devices of a group, without padding of layouts.
"""

import collections
import dataclasses
import math
import re

import numpy as np

# Bytes that each of n devices sends, over those of its operand: for an all-gather its own part of
# the array, otherwise the whole array.
_WIRE_SHARES = {
  "all-reduce": lambda n: 2 * (n - 1) / n,
  "all-gather": lambda n: n - 1,
  "reduce-scatter": lambda n: (n - 1) / n,
  "all-to-all": lambda n: (n - 1) / n,
  "ragged-all-to-all": lambda n: (n - 1) / n,
  "collective-permute": lambda n: 1,
  "collective-broadcast": lambda n: 1,
}
_INSTRUCTION = re.compile(
  r"\s+(ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([a-z][\w\-]*)\((.*?)\)(?:, (.*))?$"
)
_CALLED = re.compile(
  r"\b(?:body|condition|calls|to_apply|branch_computations|true_computation|false_computation)="
  r"(\{.*?\}|%?[\w.\-]+)"
)
_GROUPS = re.compile(
  r"replica_groups=(mesh\[.*?\](?:, ?device_ids=\(.*?\)+)? \{.*?\}"
  r"|\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?|\{\{.*?\}\}|\{\})"
)


@dataclasses.dataclass(frozen=True)
class Collective:
  """All collectives of one kind, network and group size in a step.

  Attributes:
    kind: opcode in HLO, such as "all-reduce".
    across_slices: whether it uses the network between slices.
    group: number of devices that take part in one collective.
    count: executions per step.
    operand_bytes: per device and step.
    wire_bytes: sent by one device per step.
  """

  kind: str
  across_slices: bool
  group: int
  count: int
  operand_bytes: int
  wire_bytes: float


@dataclasses.dataclass(frozen=True)
class _Instruction:
  type: str
  opcode: str
  operands: str
  attributes: str
  is_root: bool

  @property
  def operand_names(self) -> list[str]:
    return re.findall(r"%([\w.\-]+)", self.operands)


_Computation = dict[str, _Instruction]


def read_collectives(text: str, slices: int = 1, slice_size: int = 0) -> list[Collective]:
  """Returns the collectives of a program, one entry for each kind, network and group size.

  A collective in a loop counts once per iteration if `read_loops` knows the number of iterations,
  otherwise once. All branches of a conditional count.

  Args:
    text: the optimized program, from `compiled.as_text()`.
    slices: number of slices. A program for TPUs is that of one slice, with transfers to other
      slices as sends to the host; a program for GPUs spans all slices.
    slice_size: devices of a slice; 0: all devices of the program.

  Raises:
    ValueError: the text is not a compiled program.
  """
  computations, entry = _parse(text)
  partitions = int(_find(r"num_partitions=(\d+)", text) or 1)
  slice_size = slice_size or partitions
  totals = collections.defaultdict(lambda: [0, 0, 0.0])
  for name, times in _executions(computations, entry).items():
    computation = computations[name]
    for instruction in computation.values():
      found = _collective(instruction, partitions, slices, slice_size)
      if found is None:
        continue
      kind, across, group = found
      # The TPU compiler writes a reduce-scatter as a fusion of an all-reduce and a slice.
      if kind == "all-reduce" and name.startswith("all-reduce-scatter"):
        kind = "reduce-scatter"
      operands = instruction.operand_names
      if instruction.opcode == "send":
        operands = operands[:1]  # the other one is a token
      size = sum(type_bytes(computation[name].type) for name in operands)
      total = totals[kind, across, group]
      total[0] += times
      total[1] += times * size
      total[2] += times * wire_bytes(kind, size, group)
  return [Collective(*key, *total) for key, total in sorted(totals.items())]


def read_loops(text: str) -> list[int | None]:
  """Returns the iterations of each loop that runs more than once; None where they are unknown."""
  computations, _ = _parse(text)
  counts = [
    _trip_count(instruction, computation, computations)
    for computation in computations.values()
    for instruction in computation.values()
    if instruction.opcode == "while"
  ]
  return [count for count in counts if count is None or count > 1]


@dataclasses.dataclass(frozen=True)
class Operation:
  """An operation of a program outside of fusions.

  Attributes:
    name: of the instruction.
    opcode: such as "fusion" or "custom-call".
    scope: path of the named scopes and primitives that it comes from.
    result: HLO type with layout.
    operands: HLO types with layouts.
    count: executions per step; loops of unknown length count once.
  """

  name: str
  opcode: str
  scope: str
  result: str
  operands: tuple[str, ...]
  count: int


def read_operations(text: str) -> list[Operation]:
  """Returns the operations that read and write memory: those outside of fusions."""
  computations, entry = _parse(text)
  operations, waiting = [], [(entry, 1)]
  while waiting:
    name, count = waiting.pop()
    computation = computations[name]
    for own_name, instruction in computation.items():
      if instruction.opcode in ("while", "conditional", "call"):
        trips = 1
        if instruction.opcode == "while":
          trips = _trip_count(instruction, computation, computations) or 1
        for called in _CALLED.findall(instruction.attributes):
          names = computations.keys() & set(re.findall(r"[\w.\-]+", called))
          waiting += [(name, count * trips) for name in names]
        continue
      operations.append(
        Operation(
          name=own_name,
          opcode=instruction.opcode,
          scope=_find(r'op_name="([^"]*)"', instruction.attributes),
          result=instruction.type,
          operands=tuple(
            computation[operand].type
            for operand in dict.fromkeys(instruction.operand_names)
            if operand in computation
          ),
          count=count,
        )
      )
  return operations


def wire_bytes(kind: str, operand_bytes: float, group: int) -> float:
  """Returns the bytes that each of `group` devices sends in a collective."""
  return operand_bytes * _WIRE_SHARES[kind](group) if group > 1 else 0.0


def type_bytes(type_text: str) -> int:
  """Returns the bytes of an HLO type, such as `(f32[8,128]{1,0}, bf16[2])`."""
  bits = 0
  for dtype, shape in re.findall(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,<=]*)\]", type_text):
    sizes = [int(size.removeprefix("<=")) for size in shape.split(",") if size]
    width = 8 if dtype == "pred" else int(_find(r"[a-z]+(\d+)", dtype) or 0)
    bits += width * math.prod(sizes)
  return bits // 8


def group_members(groups: str, partitions: int) -> list[int]:
  """Returns the devices of the first group of a `replica_groups` attribute.

  Args:
    groups: lists `{{0,1},{2,3}}`, an iota `[2,4]<=[4,2]T(1,0)`, or axes of a mesh
      `mesh['a'=2,'b'=4] {'b'}`.
    partitions: devices of the program, which form one group if none is listed.
  """
  if groups.startswith("["):
    return _iota(groups)[0].tolist()
  mesh = re.fullmatch(r"mesh\[(.*?)\](?:, ?device_ids=\((.*)\))? \{(.*)\}", groups)
  if mesh is None:
    first = _find(r"\{\{([\d, ]*)\}", groups)
    return [int(number) for number in re.findall(r"\d+", first)] or list(range(partitions))
  axes, ids, chosen = mesh.groups()
  sizes = {name: int(size) for name, size in re.findall(r"([\w']+)=(\d+)", axes)}
  if not ids:
    devices = np.arange(math.prod(sizes.values()))
  elif ids.startswith("["):
    devices = _iota(ids)
  else:
    devices = np.array(ids.split(","), int)
  # 'b':(2)4 is a part of size 4 of the axis b, whose parts before it have the product 2.
  parts = {
    name: (int(before or 1), int(part or sizes[name]))
    for name, before, part in re.findall(r"([\w']+)(?::\((\d+)\)(\d+))?", chosen)
  }
  shape, index = [], []
  for name, size in sizes.items():
    before, part = parts.get(name, (1, 1))
    shape += [before, part, size // (before * part)]
    index += [0, slice(None), 0]
  return devices.reshape(shape)[tuple(index)].reshape(-1).tolist()


def _iota(text: str) -> np.ndarray:
  """Returns the array of `[8]<=[4,2]T(1,0)`: 4 x 2 device ids, transposed, as a list of 8.

  In a mesh the part before "<=" is left out; the axes of the mesh are the shape.
  """
  shape, source, order = re.match(
    r"(?:\[([\d,]+)\]<=)?\[([\d,]+)\](?:T\(([\d,]+)\))?", text
  ).groups()
  sizes = tuple(map(int, source.split(",")))
  numbers = np.arange(math.prod(sizes)).reshape(sizes)
  if order:
    numbers = numbers.transpose(tuple(map(int, order.split(","))))
  return numbers.reshape(tuple(map(int, shape.split(",")))) if shape else numbers


def _collective(
  instruction: _Instruction, partitions: int, slices: int, slice_size: int
) -> tuple[str, bool, int] | None:
  """Returns the kind, whether it crosses slices and the group size; None for other instructions."""
  kind, attributes = instruction.opcode.removesuffix("-start"), instruction.attributes
  if kind == "send":
    transfer = _find(r'_xla_megascale_transfer_type="(\w+)"', attributes)
    kind = transfer.lower().replace("_", "-")
    return (kind if kind in _WIRE_SHARES else "collective-permute", True, slices) if kind else None
  if kind not in _WIRE_SHARES:
    return None
  if kind == "collective-permute":
    pairs = re.findall(r"\{(\d+),(\d+)\}", _find(r"source_target_pairs=(\{.*?\}\})", attributes))
    across = any(int(source) // slice_size != int(goal) // slice_size for source, goal in pairs)
    return kind, across, 2 if pairs else 1
  members = group_members(_find(_GROUPS, attributes), partitions)
  return kind, len({member // slice_size for member in members}) > 1, len(members)


def _parse(text: str) -> tuple[dict[str, _Computation], str]:
  """Returns the instructions of each computation by name, and the name of the entry computation."""
  computations: dict[str, _Computation] = {}
  entry, current = "", None
  for line in text.splitlines():
    if not line.startswith(" "):
      header = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$", line)
      current = computations.setdefault(header[2], {}) if header else None
      if header and header[1]:
        entry = header[2]
    elif current is not None and (match := _INSTRUCTION.match(line)):
      is_root, name, *fields = match.groups(default="")
      current[name] = _Instruction(*fields, is_root=bool(is_root))
  if not entry:
    raise ValueError("the text of a compiled program must have an ENTRY computation")
  return computations, entry


def _executions(computations: dict[str, _Computation], entry: str) -> dict[str, int]:
  """Returns how often each computation runs in one run of the program."""
  executions: dict[str, int] = collections.defaultdict(int)
  waiting = [(entry, 1)]
  while waiting:
    name, count = waiting.pop()
    executions[name] += count
    for instruction in computations[name].values():
      # The end of an asynchronous call names the computation again.
      if instruction.opcode.endswith(("-done", "-update")):
        continue
      times = count
      if instruction.opcode == "while":
        trips = _trip_count(instruction, computations[name], computations)
        times = count if trips is None else count * trips
      for called in _CALLED.findall(instruction.attributes):
        names = computations.keys() & set(re.findall(r"[\w.\-]+", called))
        waiting += [(name, times) for name in names]
  return executions


def _trip_count(
  loop: _Instruction, surrounding: _Computation, computations: dict[str, _Computation]
) -> int | None:
  """Returns the iterations of a loop; None if they are unknown.

  The TPU compiler does not write them. They follow if a counter in the loop state starts at a
  constant, grows by a constant, and is compared with a constant by "<".
  """
  known = _find(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
  if known:
    return int(known)
  condition = computations[_find(r"\bcondition=%?([\w.\-]+)", loop.attributes)]
  body = computations[_find(r"\bbody=%?([\w.\-]+)", loop.attributes)]
  try:
    test = _source(condition, _root(condition), "compare")
    counter, bound = test.operand_names
    index = _state_index(condition, counter)
    initial = _source(surrounding, loop.operand_names[0], "tuple")
    start = _constant(surrounding, initial.operand_names[index])
    updated = _source(body, _root(body), "tuple")
    addition = _source(body, updated.operand_names[index], "add")
    # In either order.
    counter, amount = sorted(
      addition.operand_names, key=lambda name: _source(body, name).opcode == "constant"
    )
    step, end = _constant(body, amount), _constant(condition, bound)
    if _state_index(body, counter) != index or step < 1 or "direction=LT" not in test.attributes:
      return None
  except (LookupError, ValueError):  # another form
    return None
  return max(0, -(-(end - start) // step))


def _root(computation: _Computation) -> str:
  return next(name for name, instruction in computation.items() if instruction.is_root)


def _source(computation: _Computation, name: str, opcode: str = "") -> _Instruction:
  """Returns the instruction of a name, or of the value that it copies.

  Raises:
    LookupError: it is not in the computation, or has another opcode than the one given.
  """
  instruction = computation[name]
  while instruction.opcode in ("copy", "bitcast"):
    instruction = computation[instruction.operand_names[0]]
  if opcode and instruction.opcode != opcode:
    raise LookupError(f"{name} is {instruction.opcode}, not {opcode}")
  return instruction


def _constant(computation: _Computation, name: str) -> int:
  return int(_source(computation, name, "constant").operands)


def _state_index(computation: _Computation, name: str) -> int:
  """Returns the index of a value in the loop state."""
  part = _source(computation, name, "get-tuple-element")
  _source(computation, part.operand_names[0], "parameter")
  return int(_find(r"\bindex=(\d+)", part.attributes))


def _find(pattern: str | re.Pattern, text: str) -> str:
  """Returns the first group of the first match; empty if there is none."""
  match = re.search(pattern, text)
  return match[1] if match else ""
