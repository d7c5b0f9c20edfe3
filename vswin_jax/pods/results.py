"""What compiling for a machine gave: numbers, the row of a file, lines to read, tables."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence

from vswin_jax.pods.estimate import Estimate, estimate
from vswin_jax.pods.program import Collective
from vswin_jax.pods.targets import Target, parse_target

_GIB = 2**30
NOTE = (
  "Bounds from the compiler's counts and the chips' published peaks, not measurements: a real step "
  "takes longer."
)


@dataclasses.dataclass(frozen=True)
class Result:
  """A training step compiled for a machine; numbers of one device unless said otherwise.

  Attributes:
    topology: the machine, as `parse_target` reads it.
    batch_size: clips of a step over all devices.
    wanted_batch_size: the config's; another if it could not be divided.
    fsdp: devices that share one copy of the state.
    epochs: of the config; `num_steps` steps.
    effort: of the compiler.
    seconds: that compiling took.
    memory: bytes at the peak; None: more than there are, `needed` if the compiler says.
    arguments: bytes of state and batch, part of `memory`.
    flops: None if the compiler counts none; likewise `bytes_accessed`.
    loops: parts of the program of which the compiler counts the operations and bytes of one run.
    largest: clips a device that fit; None: not searched for.
    is_largest: one more was seen not to fit.
    advice: what was compiled and fits where this does not.
  """

  model: str
  topology: str
  num_devices: int
  batch_size: int
  wanted_batch_size: int
  fsdp: int
  rematerialisation: str
  epochs: float
  num_steps: int
  effort: str
  seconds: float
  memory: int | None
  needed: int | None
  arguments: int | None
  flops: float | None
  bytes_accessed: float | None
  collectives: tuple[Collective, ...]
  loops: int = 0
  largest: int | None = None
  is_largest: bool = False
  advice: tuple[str, ...] = ()

  @property
  def target(self) -> Target:
    return parse_target(self.topology)

  @property
  def fits(self) -> bool:
    return self.memory is not None and self.memory <= self.target.chip.memory

  @property
  def clips_per_device(self) -> int:
    return self.batch_size // self.num_devices

  @property
  def sent(self) -> float:
    """Bytes that a device sends in a step."""
    return sum(one.wire_bytes for one in self.collectives)

  @property
  def estimate(self) -> Estimate | None:
    """None if the compiler gave no counts."""
    if not self.flops or not self.bytes_accessed:
      return None
    return estimate(self.target.chip, self.flops, self.bytes_accessed, self.collectives)


def write_row(path: pathlib.Path, result: Result, **more) -> None:
  """Adds a line to a file of JSON lines: the result, with what else is to be kept."""
  with path.open("a", encoding="utf-8") as file:
    file.write(json.dumps({**dataclasses.asdict(result), **more}) + "\n")


def read_row(row: dict) -> Result:
  """A result from a line of `write_row`; what else was kept is left out."""
  names = {field.name for field in dataclasses.fields(Result)}
  values = {name: value for name, value in row.items() if name in names}
  values["collectives"] = tuple(Collective(**one) for one in row["collectives"])
  return Result(**values | {"advice": tuple(row.get("advice", ()))})


def describe(result: Result) -> str:
  """A block of lines."""
  chip = result.target.chip
  lines = [
    f"{result.model} on {result.target.describe()}: {result.batch_size} clips a step, "
    f"{result.clips_per_device} a chip; compiled in {result.seconds:.0f} s, {result.effort} effort"
  ]
  if result.batch_size != result.wanted_batch_size:
    lines.append(
      f"train.batch_size={result.wanted_batch_size} can't be divided among {result.num_devices} "
      f"chips; the smallest that can, and is as large, is {result.batch_size}: "
      f"--config.train.batch_size={result.batch_size}"
    )
  if result.fits:
    lines.append(
      f"memory       {_gib(result.memory)} of {_gib(chip.memory)} GiB a chip, of which "
      f"{_gib(result.arguments)} are state and batch: fits"
    )
  else:
    size = result.needed or result.memory
    needs = f"needs {_gib(size)} GiB a chip, there are {_gib(chip.memory)}"
    what = "; ".join(result.advice) or "nothing that was tried does"
    lines.append(f"does not fit: {needs if size else _gib(chip.memory) + ' GiB are too few'}")
    lines.append(f"what fits:   {what}")
  if result.largest is not None:
    lines.append(f"largest      {_largest(result)}")
  lines += [f"             {_collective(one)}" for one in result.collectives]
  bounds = result.estimate
  if bounds is None:
    return "\n".join([*lines, "no operations are counted for this machine: no times are estimated"])
  slow, fast = bounds.efficiencies
  times = [_time(result.num_steps * step) for step in (bounds.overlapped, bounds.in_turn)]
  lines += [
    f"work         {result.flops / 1e9:,.4g} GFLOP a chip and step, "
    f"{result.bytes_accessed / 1e9:.3g} GB read and written in its memory",
    f"bounds       computing {_ms(bounds.compute)}, memory {_ms(bounds.memory)}, links "
    f"{_ms(bounds.links)}, network between slices {_ms(bounds.network)}",
    f"a step       {_ms(bounds.overlapped)} if collectives are hidden, {_ms(bounds.in_turn)} if "
    f"none is; scaling efficiency {slow:.1%} to {fast:.1%}",
    f"the run      {result.num_steps:,} steps, {result.epochs:g} epochs: at least {times[0]}, "
    f"{times[1]}",
  ]
  if result.loops:
    lines.append(
      f"{result.loops} loops count as if they ran once, so work and bounds are lower than they are"
    )
  return "\n".join([*lines, NOTE])


def table(results: Sequence[Result], names: Sequence[str] | None = None) -> str:
  """A Markdown table, a row for each result.

  Args:
    names: of the results, in the first column; None: their models.
  """
  head = (
    "config | machine | clips a step (a chip) | memory GiB | largest a chip | GFLOP | GB moved "
    "| MB sent | step at least, ms | scaling efficiency | epochs: at least"
  )
  lines = [f"| {head} |", "|" + "---|" * (head.count("|") + 1)]
  for result, name in zip(results, names or [one.model for one in results], strict=True):
    lines.append("| " + " | ".join([name, *_cells(result)]) + " |")
  return "\n".join(lines)


def _cells(result: Result) -> list[str]:
  chip = result.target.chip
  raised = "" if result.batch_size == result.wanted_batch_size else "*"
  clips = f"{result.batch_size}{raised} ({result.clips_per_device})"
  largest = "" if result.largest is None else f"{result.largest}{'' if result.is_largest else '+'}"
  if not result.fits:
    size = result.needed or result.memory
    memory = f"**{_gib(size) if size else 'more'} > {_gib(chip.memory)}**"
    return [result.topology, clips, memory, largest, *[""] * 6]
  cells = [result.topology, clips, f"{_gib(result.memory)} of {_gib(chip.memory)}", largest]
  bounds = result.estimate
  if bounds is None:
    return [*cells, "", "", f"{result.sent / 1e6:,.0f}", "", "", ""]
  slow, fast = bounds.efficiencies
  return [
    *cells,
    f"{result.flops / 1e9:,.4g}{'+' if result.loops else ''}",
    f"{result.bytes_accessed / 1e9:.3g}",
    f"{result.sent / 1e6:,.0f}",
    f"{bounds.overlapped * 1e3:.3g}",
    f"{slow:.1%}" if slow == fast else f"{slow:.1%} - {fast:.1%}",
    f"{result.epochs:g}: {_time(result.num_steps * bounds.overlapped)}",
  ]


def _largest(result: Result) -> str:
  if not result.largest:
    return "not even one clip a chip fits"
  next_one = f"{result.largest + 1} do not" if result.is_largest else "more were not tried"
  total = result.largest * result.num_devices
  return f"{result.largest} clips a chip fit, {total} in all; {next_one}"


def _collective(one: Collective) -> str:
  where = "slices" if one.across_slices else "chips"
  return (
    f"{one.count} {one.kind} over {one.group} {where}: {one.operand_bytes / 1e6:,.1f} MB, "
    f"{one.wire_bytes / 1e6:,.1f} MB sent by a chip"
  )


def _gib(size: float) -> str:
  return f"{size / _GIB:.2f}"


def _time(seconds: float) -> str:
  for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
    if seconds >= 2 * size:
      return f"{seconds / size:.3g} {unit}"
  return f"{seconds:.3g} s"


def _ms(seconds: float) -> str:
  return f"{seconds * 1e3:.3g} ms"
