"""What compiling for a machine gave: numbers, the row of a file, lines to read, tables."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence

from vswin_jax.aot.hlo import Collective
from vswin_jax.aot.roofline import Estimate, estimate
from vswin_jax.aot.topologies import Target, parse_target

_GIB = 2**30
NOTE = (
  "Not measured: computing can't take less time, the rest are estimates. Bytes count as moved\n"
  "also where they stay in faster memory; links are those that every chip of the slice has."
)

_COLUMNS = (
  "config",
  "machine",
  "clips a step (a chip)",
  "memory GiB",
  "largest a chip",
  "GFLOP",
  "GB moved",
  "MB sent",
  "computing at least, ms",
  "step, ms (estimate)",
  "scaling efficiency (estimate)",
  "the same if it only computes",
  "epochs: at least, estimate",
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
    memory: bytes at the peak; None: more than there are, `needed` if the compiler says, or there is
      an `error`.
    arguments: bytes of state and batch, part of `memory`.
    flops: None if the compiler counts none; likewise `bytes_accessed`.
    product_flops: of matrix products and convolutions, before compilation; None: not counted.
    loops: parts of the program of which the compiler counts the operations and bytes of one run.
    unknown_loops: of these, such as collectives are counted once of as well.
    grad_accum_steps: parts of a batch, one after the other.
    num_videos: of the training split; None: not kept.
    videos_source: where that number is from, in words.
    largest: clips a device that fit; None: not searched for.
    is_largest: one more was seen not to fit.
    advice: what was compiled and fits where this does not.
    failed: what was tried and did not compile for another reason than memory, and why.
    error: why the step itself did not compile, if not for want of memory.
  """

  model: str
  topology: str
  num_devices: int
  batch_size: int
  wanted_batch_size: int
  fsdp: int
  rematerialization: str
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
  unknown_loops: int = 0
  product_flops: float | None = None
  grad_accum_steps: int = 1
  num_videos: int | None = None
  videos_source: str = ""
  largest: int | None = None
  is_largest: bool = False
  advice: tuple[str, ...] = ()
  failed: tuple[str, ...] = ()
  error: str = ""

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
  def counts_all(self) -> bool:
    """Whether the compiler counts operations and bytes, and of the whole step."""
    return bool(self.flops and self.bytes_accessed and not self.loops)

  @property
  def least_flops(self) -> float | None:
    """The compiler's count of operations if it is that of the whole step, else the larger of it and
    that of the products before compilation: both leave something out."""
    if self.counts_all:
      return self.flops
    return max(filter(None, (self.flops, self.product_flops)), default=None)

  @property
  def estimate(self) -> Estimate | None:
    """None if nothing counts the operations of the whole step; without the times of what is not
    counted."""
    if not self.counts_all and not self.product_flops:
      return None
    return estimate(
      self.target,
      self.least_flops,
      self.bytes_accessed if self.counts_all else None,
      None if self.unknown_loops else self.collectives,
    )


def write_row(path: pathlib.Path, result: Result, **more) -> None:
  """Adds a line to a file of JSON lines: the result, with what else is to be kept."""
  with path.open("a", encoding="utf-8") as file:
    file.write(json.dumps({**dataclasses.asdict(result), **more}) + "\n")


def read_row(row: dict) -> Result:
  """A result from a line of `write_row`; what else was kept is left out."""
  names = {field.name for field in dataclasses.fields(Result)}
  values = {name: value for name, value in row.items() if name in names}
  values["collectives"] = tuple(Collective(**one) for one in row["collectives"])
  return Result(**values | {name: tuple(row.get(name, ())) for name in ("advice", "failed")})


def describe(result: Result) -> str:
  """A block of lines: what compiling gave, without `describe_search`."""
  chip = result.target.chip
  head = (
    f"{result.model} on {result.target.describe()}: {result.batch_size} clips a step, "
    f"{result.clips_per_device} a chip"
  )
  if result.error:
    return f"{head}\nnot compiled: {result.error}"
  lines = [f"{head}; compiled in {result.seconds:.0f} s, {result.effort} effort"]
  if result.batch_size != result.wanted_batch_size:
    parts = f" with {result.grad_accum_steps} parts each" if result.grad_accum_steps > 1 else ""
    lines.append(
      f"train.batch_size={result.wanted_batch_size} can't be divided among {result.num_devices} "
      f"chips{parts}; the smallest that can, and is as large, is {result.batch_size}: "
      f"--config.train.batch_size={result.batch_size}"
    )
  if not result.fits:
    size = result.needed or result.memory
    needs = f"needs {_gib(size)} GiB a chip, there are {_gib(chip.memory)}"
    lines.append(f"does not fit: {needs if size else _gib(chip.memory) + ' GiB are too few'}")
    return "\n".join(lines)
  lines.append(
    f"memory       {_gib(result.memory)} of {_gib(chip.memory)} GiB a chip, of which "
    f"{_gib(result.arguments)} are state and batch: fits"
  )
  lines += [f"             {_collective(one)}" for one in result.collectives]
  return "\n".join([*lines, *_describe_times(result)])


def describe_search(result: Result) -> str:
  """What was tried besides: the largest batch, and what fits if the step does not."""
  lines = []
  if result.largest is not None:
    lines.append(f"largest      {_largest(result)}")
  if not result.fits:
    lines.append(f"what fits    {'; '.join(result.advice) or 'nothing that was tried does'}")
  lines += [f"not compiled {line}" for line in result.failed]
  if lines and result.effort != "quick":
    lines.append("             (tried with quick effort: full effort may need other memory)")
  return "\n".join(lines)


def _describe_times(result: Result) -> list[str]:
  if not result.least_flops:
    return ["no operations are counted for this machine: no times are estimated"]
  more = "" if result.counts_all else "more than "
  work = f"{more}{result.least_flops / 1e9:,.4g} GFLOP a chip and step"
  if result.bytes_accessed:
    work += f", {more}{result.bytes_accessed / 1e9:.3g} GB read and written in its memory"
  lines = [f"work         {work}"]
  times = result.estimate
  if not result.counts_all:
    lines.append(f"not counted  {_not_counted(result)}")
  if times is None:
    return lines
  known = {
    "computing at least": times.compute,
    "memory": times.memory,
    "links": times.links,
    "network between slices": times.network,
  }
  alone = ", ".join(f"{name} {_ms(time)}" for name, time in known.items() if time is not None)
  lines.append(f"each alone   {alone}")
  if times.overlapped is not None:
    lines.append(
      f"a step       about {_ms(times.overlapped)} if collectives are hidden, "
      f"{_ms(times.in_turn)} if none is"
    )
  if times.compute_efficiencies is not None:
    first = "" if times.efficiencies is None else f"{efficiency_range(times.efficiencies)}; "
    lines.append(
      f"scaling      efficiency {first}{efficiency_range(times.compute_efficiencies)} of a step "
      "that only computes"
    )
  epochs = f"{result.epochs:g} epochs"
  if result.num_videos:
    epochs += f" of {result.num_videos:,} videos ({result.videos_source})"
  least, about = _run_times(result, times)
  run = f"{result.num_steps:,} steps, {epochs}: at least {least}"
  if about:
    run += f", about {about}"
  return [*lines, f"the run      {run}", NOTE]


def _not_counted(result: Result) -> str:
  """What the compiler leaves out, and what is taken for it."""
  instead = "no times follow"
  if result.product_flops:
    instead = "operations are those of products before compilation"
  if not result.loops:
    return f"the compiler counts nothing: {instead}"
  collectives = "collectives count as often as they run"
  if result.unknown_loops:
    unknown = f"how often {result.unknown_loops} of them run is not known"
    collectives = f"{unknown}: collectives count once"
  return (
    f"the compiler counts one run of each loop ({result.loops} in all): {instead}; {collectives}"
  )


def _run_times(result: Result, times: Estimate) -> tuple[str, str]:
  """Of all steps: at least, and about; empty if not known."""
  about = "" if times.overlapped is None else _time(result.num_steps * times.overlapped)
  return _time(result.num_steps * times.compute), about


def table(results: Sequence[Result], names: Sequence[str] | None = None) -> str:
  """A Markdown table, a row for each result, without columns in which nothing stands.

  Args:
    names: of the results, in the first column; None: their models.
  """
  names = names or [one.model for one in results]
  rows = [[name, *_cells(result)] for result, name in zip(results, names, strict=True)]
  kept = [place for place in range(len(_COLUMNS)) if any(row[place] for row in rows)]
  lines = [_COLUMNS, ["---"] * len(_COLUMNS), *rows]
  return "\n".join(f"| {' | '.join(line[place] for place in kept)} |" for line in lines)


def _cells(result: Result) -> list[str]:
  chip = result.target.chip
  raised = "" if result.batch_size == result.wanted_batch_size else "*"
  clips = f"{result.batch_size}{raised} ({result.clips_per_device})"
  largest = "" if result.largest is None else f"{result.largest}{'' if result.is_largest else '+'}"
  if result.error:
    return [result.topology, clips, "**not compiled**", largest, *["-"] * 8]
  if not result.fits:
    size = result.needed or result.memory
    memory = f"**{_gib(size) if size else 'more'} > {_gib(chip.memory)}**"
    return [result.topology, clips, memory, largest, *["-"] * 8]
  cells = [result.topology, clips, f"{_gib(result.memory)} of {_gib(chip.memory)}", largest]
  more = "" if result.counts_all else "+"
  counts = ((result.least_flops, ",.4g"), (result.bytes_accessed, ".3g"))
  cells += [f"{count / 1e9:{form}}{more}" if count else "-" for count, form in counts]
  cells.append(f"{result.sent / 1e6:,.0f}{'+' if result.unknown_loops else ''}")
  times = result.estimate
  if times is None:
    return [*cells, *["-"] * 5]
  least, about = _run_times(result, times)
  return [
    *cells,
    f"{times.compute * 1e3:.3g}",
    "-" if times.overlapped is None else f"{times.overlapped * 1e3:.3g}",
    efficiency_range(times.efficiencies),
    efficiency_range(times.compute_efficiencies),
    f"{result.epochs:g}: {least}, {about or '-'}",
  ]


def efficiency_range(efficiencies: tuple[float, float] | None) -> str:
  """A cell of a table, or words: a pair of `Estimate`; "-" if it is not known."""
  return "-" if efficiencies is None else "{:.1%} - {:.1%}".format(*efficiencies)


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
