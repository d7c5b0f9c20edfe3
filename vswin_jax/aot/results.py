"""Compilation results, as text and tables."""

import dataclasses
import math
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
    memory: bytes at the peak; None: unknown and more than there are, or there is an `error`.
    arguments: bytes of state and batch, part of `memory`.
    flops, bytes_accessed: the compiler's counts; None: it counts nothing.
    product_flops: of matrix products and convolutions, before compilation; None: unknown.
    loops: number of loops, of which the compiler counts operations and bytes of one iteration.
    unknown_loops: loops with unknown iterations, so that collectives in them count once.
    largest: maximum clips per device that fit; None: not searched for.
    is_largest: whether one more clip is known not to fit.
    advice: flags that make a step fit that does not.
    failed: attempts that did not compile for another reason than memory, and why.
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
  def least_flops(self) -> float:
    """The compiler's count if it is that of the whole step, otherwise the larger one of it and
    `product_flops`, both of which leave something out; NaN: both are unknown."""
    if self.counts_all:
      return self.flops
    return max(filter(None, (self.flops, self.product_flops)), default=math.nan)

  @property
  def estimate(self) -> Estimate:
    """Times of what is counted, NaN where the counts are not those of the whole step."""
    return estimate(
      self.target,
      self.least_flops if self.counts_all or self.product_flops else math.nan,
      self.bytes_accessed if self.counts_all else math.nan,
      None if self.unknown_loops else self.collectives,
    )


def describe(result: Result) -> str:
  """Returns the results of compiling a step, one property per line, without the search."""
  lines = [f"{result.model} on {result.target.describe()}, {result.effort} effort"]
  properties = _columns(result)
  for name in ("config", "target", _LARGEST):
    del properties[name]
  if result.fits:
    times = result.estimate
    properties |= {
      "state and batch GiB": _gib(result.arguments),
      "memory ms, estimate": _ms(times.memory),
      "links ms, estimate": _ms(times.links),
      "network ms, estimate": _ms(times.network),
      "step ms without overlap": _ms(times.step[1]),
    }
  properties["seconds to compile"] = f"{result.seconds:.0f}"
  lines += [f"  {name:34}{value}" for name, value in properties.items() if value != "-"]
  for one in result.collectives:
    across = "slices" if one.across_slices else "chips"
    lines.append(
      f"  {one.count} {one.kind} over {one.group} {across}: operands "
      f"{one.operand_bytes / 1e6:,.1f} MB, sent {one.wire_bytes / 1e6:,.1f} MB"
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
  kept = [column for column in rows[0] if any(row[column] for row in rows)]
  lines = [kept, ["---"] * len(kept), *[[row[name] for name in kept] for row in rows]]
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _columns(result: Result) -> dict[str, str]:
  """Returns the cells of a table row by column; "-": unknown."""
  times, steps = result.estimate, result.num_steps
  rounded = "" if result.batch_size == result.wanted_batch_size else "*"
  largest = "" if result.largest is None else f"{result.largest}{'' if result.is_largest else '+'}"
  more = "" if result.counts_all else "+"
  needed = _gib(result.memory) if result.memory else "more"
  memory = f"{needed} {'of' if result.fits else '>'} {_gib(result.target.chip.memory)}"
  sent = sum(one.wire_bytes for one in result.collectives)
  cells = {
    "config": result.model,
    "target": result.topology,
    "clips per step (per chip)": f"{result.batch_size}{rounded} ({result.clips_per_device})",
    "memory GiB": "not compiled" if result.error else memory,
    _LARGEST: largest,
  }
  known = {
    "GFLOP": _known("{:,.4g}" + more, result.least_flops / 1e9),
    "GB accessed": _known("{:.3g}" + more, (result.bytes_accessed or math.nan) / 1e9),
    "MB communicated": f"{sent / 1e6:,.0f}{'+' if result.unknown_loops else ''}",
    "compute ms, lower bound": _ms(times.compute),
    "step ms, estimate": _ms(times.step[0]),
    "scaling efficiency, estimate": efficiency_range(times.efficiency),
    "scaling efficiency, compute only": efficiency_range(times.compute_efficiency),
    "epochs: lower bound, estimate": f"{result.epochs:g}: {_duration(steps * times.compute)}, "
    f"{_duration(steps * times.step[0])}",
  }
  return cells | (known if result.fits else dict.fromkeys(known, "-"))


def _known(text: str, *values: float) -> str:
  """Returns a text with formatted values; "-" if one of them is unknown (NaN)."""
  return "-" if any(map(math.isnan, values)) else text.format(*values)


def efficiency_range(efficiency: tuple[float, float]) -> str:
  """Returns "94.6% - 100.0%" for an efficiency of `Estimate`, "-" for an unknown one."""
  return _known("{:.1%} - {:.1%}", *efficiency)


def _gib(size: float) -> str:
  return f"{size / 2**30:.2f}"


def _ms(seconds: float) -> str:
  return _known("{:.3g}", seconds * 1e3)


def _duration(seconds: float) -> str:
  for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
    if seconds >= 2 * size:
      return f"{seconds / size:.3g} {unit}"
  return _known("{:.3g} s", seconds)
