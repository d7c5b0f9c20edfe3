"""Compilation results, as text and tables."""

import dataclasses
from collections.abc import Sequence

from vswin_jax.aot.hlo import Collective
from vswin_jax.aot.roofline import Estimate, estimate
from vswin_jax.aot.topologies import Target, parse_target

NOTE = (
  "Nothing here is measured. Computing can't take less time; other times are estimates, which\n"
  "count all bytes accessed as if they were in device memory. *: the batch size, rounded up to be\n"
  "divisible among the chips. +: at least; the compiler counts one iteration of a loop, or nothing."
)

_LARGEST = "max clips per chip"
_COLUMNS = (
  "config",
  "target",
  "clips per step (per chip)",
  "memory GiB",
  _LARGEST,
  "GFLOP",
  "GB accessed",
  "MB communicated",
  "compute ms, lower bound",
  "step ms, estimate",
  "scaling efficiency, estimate",
  "scaling efficiency, compute only",
  "epochs: lower bound, estimate",
)


@dataclasses.dataclass(frozen=True)
class Result:
  """A training step compiled for a target; numbers of one device unless said otherwise.

  Attributes:
    topology: name of the target, see `parse_target`.
    batch_size: clips of a step over all devices.
    wanted_batch_size: the config's, which differs if it is not divisible among the devices.
    fsdp: devices that share one copy of the state.
    num_steps: steps of the `epochs` of the config.
    effort: of the compiler.
    seconds: of compiling.
    memory: bytes at the peak, possibly more than there are; None: unknown and more than there are,
      or there is an `error`.
    arguments: bytes of state and batch, part of `memory`.
    flops: the compiler's count; None: it counts nothing. The same holds for `bytes_accessed`.
    product_flops: of matrix products and convolutions, before compilation; None: unknown.
    loops: number of loops, of which the compiler counts operations and bytes of one iteration.
    unknown_loops: loops with an unknown number of iterations, so that collectives in them count
      once.
    largest: maximum clips per device that fit; None: not searched for.
    is_largest: whether one more clip is known not to fit.
    advice: flags that make a step fit that does not.
    failed: what was tried and did not compile for another reason than memory, and why.
    error: why the step itself did not compile, if not for lack of memory.
  """

  model: str
  topology: str
  batch_size: int
  wanted_batch_size: int
  grad_accum_steps: int
  fsdp: int
  rematerialization: str
  epochs: float
  num_steps: int
  effort: str
  seconds: float
  memory: int | None = None
  arguments: int | None = None
  flops: float | None = None
  bytes_accessed: float | None = None
  product_flops: float | None = None
  collectives: tuple[Collective, ...] = ()
  loops: int = 0
  unknown_loops: int = 0
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
    return self.batch_size // self.target.num_devices

  @property
  def counts_all(self) -> bool:
    """Whether the compiler's counts of operations and bytes are those of the whole step."""
    return bool(self.flops and self.bytes_accessed and not self.loops)

  @property
  def least_flops(self) -> float | None:
    """The compiler's count if it is that of the whole step, otherwise the larger one of it and
    `product_flops`, both of which leave something out."""
    if self.counts_all:
      return self.flops
    return max(filter(None, (self.flops, self.product_flops)), default=None)

  @property
  def estimate(self) -> Estimate | None:
    """Times of what is counted; None: nothing counts the operations of the whole step."""
    if not self.counts_all and not self.product_flops:
      return None
    return estimate(
      self.target,
      self.least_flops,
      self.bytes_accessed if self.counts_all else None,
      None if self.unknown_loops else self.collectives,
    )


def describe(result: Result) -> str:
  """Returns the results of compiling a step, one property per line, without the search."""
  lines = [f"{result.model} on {result.target.describe()}, {result.effort} effort"]
  columns = _columns(result)
  for name in ("config", "target", _LARGEST):
    del columns[name]
  if result.fits:
    columns["state and batch GiB"] = _gib(result.arguments)
    times = result.estimate
    for name in ("memory", "links", "network"):
      seconds = getattr(times, name, None)
      if seconds is not None:
        columns[f"{name} ms, estimate"] = _ms(seconds)
    if times is not None and times.step is not None:
      columns["step ms without overlap"] = _ms(times.step[1])
  columns["seconds to compile"] = f"{result.seconds:.0f}"
  lines += [f"  {name:34}{value}" for name, value in columns.items()]
  for one in result.collectives:
    across = "slices" if one.across_slices else "chips"
    lines.append(
      f"  {one.count} {one.kind} over {one.group} {across}: operands "
      f"{one.operand_bytes / 1e6:,.1f} MB, sent {one.wire_bytes / 1e6:,.1f} MB"
    )
  if result.batch_size != result.wanted_batch_size:
    lines.append(
      f"  train.batch_size={result.wanted_batch_size} is not divisible among "
      f"{result.target.num_devices} chips; compiled with --config.train.batch_size="
      f"{result.batch_size}"
    )
  if result.error:
    lines.append(f"  error: {result.error}")
  return "\n".join(lines)


def describe_search(result: Result) -> str:
  """Returns the maximum batch size, and flags that make the step fit if it does not."""
  lines = [f"  {_LARGEST:34}{_columns(result)[_LARGEST]}"]
  if not result.fits:
    lines += [f"  fits with {flags}" for flags in result.advice or ("nothing that was tried",)]
  lines += [f"  not compiled: {attempt}" for attempt in result.failed]
  if result.effort != "quick":
    lines.append("  (searched with quick effort; full effort may need other memory)")
  return "\n".join(lines)


def table(results: Sequence[Result], names: Sequence[str] | None = None) -> str:
  """Returns a Markdown table with a row for each result.

  Args:
    names: of the results, for the first column; None: their models.
  """
  rows = [_columns(result) for result in results]
  for row, result, name in zip(rows, results, names or [one.model for one in results], strict=True):
    row["config"] = name
    if not result.fits:
      row["memory GiB"] = f"**{row['memory GiB']}**"
  kept = [column for column in _COLUMNS if any(row.get(column, "-") for row in rows)]
  lines = [kept, ["---"] * len(kept), *[[row.get(name, "-") for name in kept] for row in rows]]
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _columns(result: Result) -> dict[str, str]:
  """Returns the cells of a table row by column, without those of unknown values."""
  available = _gib(result.target.chip.memory)
  rounded = "" if result.batch_size == result.wanted_batch_size else "*"
  largest = "" if result.largest is None else f"{result.largest}{'' if result.is_largest else '+'}"
  columns = {
    "config": result.model,
    "target": result.topology,
    "clips per step (per chip)": f"{result.batch_size}{rounded} ({result.clips_per_device})",
    "memory GiB": f"{_gib(result.memory) if result.memory else 'more'} > {available}",
    _LARGEST: largest,
  }
  if result.error:
    columns["memory GiB"] = "not compiled"
  if not result.fits:
    return columns
  columns["memory GiB"] = f"{_gib(result.memory)} of {available}"
  more = "" if result.counts_all else "+"
  if result.least_flops:
    columns["GFLOP"] = f"{result.least_flops / 1e9:,.4g}{more}"
  if result.bytes_accessed:
    columns["GB accessed"] = f"{result.bytes_accessed / 1e9:.3g}{more}"
  sent = sum(one.wire_bytes for one in result.collectives)
  columns["MB communicated"] = f"{sent / 1e6:,.0f}{'+' if result.unknown_loops else ''}"
  times = result.estimate
  if times is None:
    return columns
  epochs = f"{result.epochs:g}: {_duration(result.num_steps * times.compute)}"
  columns["compute ms, lower bound"] = _ms(times.compute)
  if times.step is not None:
    columns["step ms, estimate"] = _ms(times.step[0])
    columns["scaling efficiency, estimate"] = efficiency_range(times.efficiency)
  if times.compute_efficiency is not None:
    columns["scaling efficiency, compute only"] = efficiency_range(times.compute_efficiency)
  about = "-" if times.step is None else _duration(result.num_steps * times.step[0])
  columns["epochs: lower bound, estimate"] = f"{epochs}, {about}"
  return columns


def efficiency_range(efficiency: tuple[float, float] | None) -> str:
  """Returns "94.6% - 100.0%" for an efficiency of `Estimate`, "-" for None."""
  return "-" if efficiency is None else "{:.1%} - {:.1%}".format(*efficiency)


def _gib(size: float) -> str:
  return f"{size / 2**30:.2f}"


def _ms(seconds: float) -> str:
  return f"{seconds * 1e3:.3g}"


def _duration(seconds: float) -> str:
  for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
    if seconds >= 2 * size:
      return f"{seconds / size:.3g} {unit}"
  return f"{seconds:.3g} s"
