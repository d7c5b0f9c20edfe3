"""Tables of the benchmark in Markdown."""

import dataclasses
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from benchmarks.models.cases import (
  AGREEMENT,
  BLOCK,
  DECODING,
  INFERENCE,
  LIMITS,
  OURS,
  PROTOCOLS,
  SIZE,
  SWIN_FRAMES,
  TEMPORAL_ENCODER,
  TORCH,
  TRAINING,
  VTN_FRAMES,
  Case,
  Protocol,
  has_window_attention,
)
from vswin_jax.models import CATALOG

Measurements = Mapping[Case, Sequence[dict]]
median = statistics.median


@dataclasses.dataclass(frozen=True)
class Summary:
  """All measurements of a case.

  Attributes:
    seconds: median over all calls of all visits.
    low: shortest call.
    high: longest call.
    peak: peak bytes; the least of the visits, since the first one may include compiling.
    working: peak bytes beyond those of the idle process with its weights; NaN: unknown.
    parameters: number of trained parameters.
    flops: operations of the model in a call, twice its multiply-accumulates, three times as many in
      training; NaN: unknown.
    bytes_moved: operands and results of the program's operations; NaN: unknown.
    error: why there is no measurement.
  """

  seconds: float = math.nan
  low: float = math.nan
  high: float = math.nan
  peak: float = math.nan
  working: float = math.nan
  parameters: int = 0
  flops: float = math.nan
  bytes_moved: float = math.nan
  error: str = ""


def summarize(measurements: Measurements) -> dict[Case, Summary]:
  """Returns the summary of each case that has calls to time, or an error."""
  # Implementations of a model have one number of operations, whoever counted them.
  macs = {
    _shape(case): row["macs"]
    for case, rows in measurements.items()
    for row in rows
    if row.get("macs")
  }
  summaries = {}
  for case, rows in measurements.items():
    timed = [row for row in rows if "seconds" in row]
    errors = [row["error"] for row in rows if "error" in row]
    if timed:
      summaries[case] = _summary(timed, macs.get(_shape(case), math.nan), case.mode == TRAINING)
    elif errors:
      summaries[case] = Summary(error=errors[0])
  return summaries


def _summary(rows: Sequence[dict], macs: float, is_training: bool) -> Summary:
  times = [seconds for row in rows for seconds in row["seconds"]]
  working = [row["peak_bytes"] - row["idle_bytes"] for row in rows if row["idle_bytes"] is not None]
  return Summary(
    seconds=median(times),
    low=min(times),
    high=max(times),
    peak=min(row["peak_bytes"] for row in rows),
    working=min(working, default=math.nan),
    parameters=rows[0]["parameters"],
    flops=2 * macs * (3 if is_training else 1),
    bytes_moved=rows[0].get("bytes_moved") or math.nan,
  )


def _shape(case: Case) -> tuple:
  return case.model, case.batch, case.frames, case.size


def limit_rates(measurements: Measurements) -> dict[str, float]:
  """Returns FLOP/s by precision and bytes/s of memory ("bytes"): the best of all measurements."""
  rates = {}
  for case, rows in measurements.items():
    for row in rows if case.mode == LIMITS else ():
      for name, rate in row.get("rates", {}).items():
        rates[name] = max(rate, rates.get(name, 0.0))
  return rates


def describe_machine(measurements: Measurements) -> str:
  """Returns a line about the machine, the software and the limits."""
  rows = [row for case, rows in measurements.items() if case.mode == LIMITS for row in rows]
  ours = next((row for row in rows if "device" in row), {})
  software = dict.fromkeys(row["software"] for row in rows if "software" in row)
  device = ours.get("device", "unknown device")
  if ours.get("platform") == "cpu":
    device = f"{ours.get('processor') or device}, {ours.get('cores')} cores"
  rates = limit_rates(measurements)
  parts = [
    f"{rates[name] / 1e9:,.0f} {unit}"
    for name, unit in (
      ("float32", "GFLOP/s in float32"),
      ("bfloat16", "GFLOP/s in bfloat16"),
      ("bytes", "GB/s of memory"),
    )
    if name in rates
  ]
  return f"{device}; {'; '.join(software)}. Limits, measured: {', '.join(parts)}."


def title(case: Case) -> str:
  """Returns the model, shape and precision of a case."""
  if not case.model:
    return "of the machine"
  shape = f"{case.batch} x {case.frames}"
  if case.model != TEMPORAL_ENCODER:
    shape += f" x {case.size}²"
  return f"`{case.model}`, {shape}, {case.precision}"


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
  lines = [header, ["---"] * len(header), *rows]
  return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def speed_table(measurements: Measurements) -> str:
  """Returns times, memory and shares of the limits of the main cases, by group."""
  summaries, rates = summarize(measurements), limit_rates(measurements)
  groups: dict[tuple, list[Case]] = {}
  for case in summaries:
    if is_main(case):
      groups.setdefault(case.group, []).append(case)
  rows = []
  for group in groups.values():
    peers = [summaries[case].seconds for case in group if case.library == TORCH]
    best_peer = min(filter(math.isfinite, peers), default=math.nan)
    for number, case in enumerate(group):
      one = summaries[case]
      rate = rates.get(case.precision, math.nan)
      values = (
        one.error
        or f"{_number(1e3 * one.seconds)} ({_number(1e3 * one.low)}-{_number(1e3 * one.high)})",
        _number(best_peer / one.seconds),
        _number(one.peak / 2**30),
        _number(one.flops / one.seconds / 1e9),
        _number(one.flops / one.seconds / rate),
        _number(one.bytes_moved / one.seconds / rates.get("bytes", math.nan)),
      )
      name = f"{title(case)}, {case.mode}" if number == 0 else ""
      rows.append((name, case.label, *values))
  header = ("model, batch x frames x pixels", "implementation", "ms, median (range)")
  header += ("speed, best peer = 1", "peak GiB", "model GFLOP/s", "share of matrix rate")
  return markdown((*header, "share of bandwidth"), rows)


def curve_table(measurements: Measurements) -> str:
  """Returns the times of Video Swin over frames, sizes and batches, or "" without any."""
  summaries = summarize(measurements)
  shapes: dict[tuple, dict[str, float]] = {}
  for case, one in summaries.items():
    if case.mode == INFERENCE and has_window_attention(case.model) and not one.error:
      best = shapes.setdefault((title(case), _shape(case)), {OURS: math.nan, TORCH: math.nan})
      best[case.library] = np.fmin(best[case.library], 1e3 * one.seconds)
  rows = [
    (name, _number(best[OURS]), _number(best[TORCH]), _number(best[TORCH] / best[OURS]))
    for (name, _), best in sorted(shapes.items(), key=lambda item: item[0][1])
  ]
  header = ("model, batch x frames x pixels", "ours, ms", "torchvision, ms", "ratio")
  return markdown(header, rows) if len(rows) > 1 else ""


def headline_table(measurements: Measurements) -> str:
  """Returns seconds and operations of a video by each paper's protocol, or "" without any."""
  summaries = summarize(measurements)
  reference = headline(PROTOCOLS[0], summaries)
  rows = []
  for protocol in PROTOCOLS:
    inference, training, decoding, gmacs = headline(protocol, summaries)
    if math.isnan(inference):
      continue
    views = f"{protocol.clips} x {protocol.crops} of {protocol.frames} x {protocol.size}²"
    rows.append(
      (
        protocol.name,
        views,
        _number(gmacs),
        _number(inference),
        _number(inference / reference[0]),
        _number(decoding),
        _number(training),
        str(protocol.epochs),
        _number(training * protocol.epochs),
        _number(training * protocol.epochs / (reference[1] * PROTOCOLS[0].epochs)),
      )
    )
  header = ("model", "views", "GFLOPs a video", "seconds a video", "VTN = 1", "decoding, seconds")
  header += ("training, seconds a clip", "epochs", "seconds a video of training", "VTN = 1")
  return markdown(header, rows) if rows else ""


def headline(
  protocol: Protocol, summaries: Mapping[Case, Summary]
) -> tuple[float, float, float, float]:
  """Returns seconds of a video in inference, of a training clip, of decoding, and GMACs a video.

  The fastest case counts. Papers call a multiply-accumulate a FLOP.
  """

  def best(mode: str, frames: int) -> tuple[float, float]:
    fitting = [
      (one.seconds / case.batch, one.flops / case.batch)
      for case, one in summaries.items()
      if (case.model, case.mode, case.frames, case.size)
      == (protocol.model, mode, frames, protocol.size)
      and not one.error
    ]
    return min(fitting, default=(math.nan, math.nan))

  seconds, flops = best(INFERENCE, protocol.frames)
  training, _ = best(TRAINING, protocol.train_frames)
  decoding, _ = best(DECODING, protocol.frames)
  return seconds * protocol.views, training, decoding, flops * protocol.views / 2e9


def temporal_table(measurements: Measurements) -> str:
  """Returns times and memory of the temporal encoder by frames, or "" without any."""
  summaries = summarize(measurements)
  frames = sorted({case.frames for case in summaries if case.model == TEMPORAL_ENCODER})
  rows = []
  for count in frames:
    ours, peer = (
      min(
        (one for case, one in summaries.items() if _is_temporal(case, count, library)),
        key=lambda one: one.seconds,
        default=Summary(),
      )
      for library in (OURS, TORCH)
    )
    times = [_number(1e3 * one.seconds) for one in (ours, peer)]
    memory = [_number(one.working / 2**20) for one in (ours, peer)]
    ratios = [_number(ours.seconds / peer.seconds), _number(ours.working / peer.working)]
    rows.append((f"{count:,}", *times, ratios[0], *memory, ratios[1]))
  header = ("frames", "ours, ms", "Hugging Face, ms", "ratio")
  header += ("ours, MiB beyond the weights", "Hugging Face, MiB", "ratio")
  return markdown(header, rows) if rows else ""


def _is_temporal(case: Case, frames: int, library: str) -> bool:
  return (case.model, case.frames, case.library) == (TEMPORAL_ENCODER, frames, library)


def agreement_lines(measurements: Measurements) -> str:
  """Returns a line for each model whose outputs were compared."""
  lines = []
  for case, rows in measurements.items():
    for row in rows if case.mode == AGREEMENT else ():
      if "error" in row:
        lines.append(f"`{case.model}`: not compared: {row['error']}")
      else:
        lines.append(
          f"`{case.model}`: {row['parameters']:,} parameters, peer {row['peer_parameters']:,}; "
          f"logits for the same weights agree to {row['difference']:.0e}"
        )
  return "\n".join(f"- {line}" for line in lines)


def all_tables(measurements: Measurements) -> str:
  parts = (
    describe_machine(measurements),
    agreement_lines(measurements),
    speed_table(measurements),
    curve_table(measurements),
    headline_table(measurements),
    temporal_table(measurements),
  )
  return "\n\n".join(filter(None, parts))


def _number(value: float) -> str:
  """Returns three significant digits, or "-" for NaN."""
  if not math.isfinite(value):
    return "-"
  if abs(value) >= 100:
    return f"{value:,.0f}"
  digits = 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
  return f"{value:.{digits}f}"


def is_main(case: Case) -> bool:
  """Returns whether a case belongs to the main table, not only to a curve or a headline."""
  frames = VTN_FRAMES if case.model.startswith("vtn") else SWIN_FRAMES
  in_table = case.mode in (INFERENCE, TRAINING) and case.model in (*CATALOG, BLOCK)
  return in_table and (case.size, case.frames) == (SIZE, frames)
