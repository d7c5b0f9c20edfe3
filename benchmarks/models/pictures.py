"""Pictures of the benchmark: bars, a roofline, curves and the papers' protocols."""

import math
import pathlib
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from benchmarks.models.cases import (
  INFERENCE,
  OURS,
  PROTOCOLS,
  SIZE,
  SWIN_FRAMES,
  TEMPORAL_ENCODER,
  TORCH,
  Case,
  has_window_attention,
)
from benchmarks.models.tables import (
  Measurements,
  Summary,
  headline,
  is_main,
  limit_rates,
  summarize,
  title,
)

_OURS_COLORS = ("#08519c", "#3182bd", "#6baed6", "#9ecae1", "#c6dbef")
_PEER_COLORS = ("#a63603", "#e6550d", "#fd8d3c", "#fdbe85", "#feedde")
Summaries = Mapping[Case, Summary]


def draw_all(measurements: Measurements, folder: pathlib.Path) -> list[pathlib.Path]:
  """Draws all pictures that the measurements are enough for into PNG files, and returns these."""
  folder.mkdir(parents=True, exist_ok=True)
  summaries = {case: one for case, one in summarize(measurements).items() if not one.error}
  figures = {
    "models_bars.png": bars(summaries),
    "models_roofline.png": roofline(summaries, limit_rates(measurements)),
    "models_curves.png": curves(summaries),
    "models_headlines.png": headlines(summaries),
  }
  paths = []
  for name, figure in figures.items():
    if figure is not None:
      paths.append(folder / name)
      figure.savefig(paths[-1], dpi=80)
  return paths


def bars(summaries: Summaries) -> Figure | None:
  """Draws the time per clip of each implementation, one panel per group of the main table."""
  groups: dict[tuple, list[Case]] = {}
  for case in summaries:
    if is_main(case):
      groups.setdefault(case.group, []).append(case)
  groups = {group: found for group, found in groups.items() if len(found) > 1}
  if not groups:
    return None
  columns = min(len(groups), 2)
  rows = math.ceil(len(groups) / columns)
  most = max(map(len, groups.values()))
  figure = Figure(figsize=(6.5 * columns, rows * (0.9 + 0.3 * most)), layout="constrained")
  for axes, cases in zip(figure.subplots(rows, columns, squeeze=False).flat, groups.values()):
    seconds = np.array([summaries[case].seconds / case.batch for case in cases])
    spans = np.array(
      [(summaries[case].low / case.batch, summaries[case].high / case.batch) for case in cases]
    )
    errors = np.abs(spans.T - seconds)
    colors = ["#3182bd" if case.library == OURS else "#e6550d" for case in cases]
    labels = [case.label for case in cases]
    axes.barh(labels, seconds, xerr=errors, color=colors, error_kw={"linewidth": 0.8})
    axes.invert_yaxis()
    axes.set_title(f"{cases[0].mode}, {title(cases[0]).replace('`', '')}", fontsize=10)
    axes.set_xlabel("seconds a clip")
  for axes in figure.axes[len(groups) :]:
    axes.axis("off")
  return figure


def roofline(summaries: Summaries, rates: Mapping[str, float]) -> Figure | None:
  """Draws achieved FLOP/s over FLOPs per byte, and the limits of the machine.

  Bytes are known of programs of XLA only; the best peer of each group is a dotted line.
  """
  points = {case: one for case, one in summaries.items() if is_main(case) and one.flops > 0}
  known = [case for case, one in points.items() if math.isfinite(one.bytes_moved)]
  if not known or "bytes" not in rates:
    return None
  figure = Figure(figsize=(8, 5), layout="constrained")
  axes = figure.subplots()
  intensities = [points[case].flops / points[case].bytes_moved for case in known]
  ends = np.geomspace(min(intensities) / 3, max(*intensities, 100) * 3, 100)
  for precision in dict.fromkeys(case.precision for case in points):
    if precision in rates:
      axes.loglog(ends, np.minimum(rates[precision], ends * rates["bytes"]), label=precision)
  for number, (case, intensity) in enumerate(zip(known, intensities)):
    rate = points[case].flops / points[case].seconds
    label = f"{case.model}, {case.mode}, {case.precision}: {case.label}"
    axes.loglog(intensity, rate, "osD^vP*X<>"[number % 10], label=label)
  for group in dict.fromkeys(case.group for case in known):
    peers = [
      one.flops / one.seconds
      for case, one in points.items()
      if case.group == group and case.library == TORCH
    ]
    if peers:
      axes.axhline(max(peers), linestyle=":", linewidth=0.8, color="#e6550d")
      place = {"fontsize": 7, "color": "#e6550d", "va": "bottom"}
      axes.text(ends[0], max(peers), f"best peer: {group[0]}, {group[1]}, {group[2]}", **place)
  axes.set_xlabel("model FLOPs per byte that the program's operations read and write")
  axes.set_ylabel("model FLOP/s")
  axes.legend(fontsize=7)
  return figure


def curves(summaries: Summaries) -> Figure | None:
  """Draws the time of a clip over frames, size and batch, and of the temporal encoder."""
  swin = {
    case: one
    for case, one in summaries.items()
    if has_window_attention(case.model) and case.mode == INFERENCE
  }
  panels = (
    ("frames", {c: s for c, s in swin.items() if c.size == SIZE}, True),
    ("size", {c: s for c, s in swin.items() if c.frames == SWIN_FRAMES}, True),
    ("batch", {c: s for c, s in swin.items() if (c.frames, c.size) == (SWIN_FRAMES, SIZE)}, False),
    ("frames", {c: s for c, s in summaries.items() if c.model == TEMPORAL_ENCODER}, True),
  )
  figure = Figure(figsize=(10, 7), layout="constrained")
  for axes, (axis, found, same_batch) in zip(figure.subplots(2, 2).flat, panels):
    lines: dict[tuple, list[tuple]] = {}
    for case, one in found.items():
      batch = case.batch if same_batch else None
      name = f"{case.label}, {case.precision}" + (f", batch {batch}" if batch else "")
      key = case.model, name, case.library
      lines.setdefault(key, []).append((getattr(case, axis), one.seconds / case.batch))
    lines = {key: points for key, points in lines.items() if len({x for x, _ in points}) > 1}
    colors = {OURS: iter(_OURS_COLORS * 4), TORCH: iter(_PEER_COLORS * 4)}
    for (_, name, library), points in lines.items():
      axes.plot(*zip(*sorted(points)), "o-", label=name, color=next(colors[library]))
    models = ", ".join(dict.fromkeys(model for model, _, _ in lines))
    label = "pixels on a side" if axis == "size" else axis
    axes.set(title=models, xlabel=label, ylabel="seconds a clip", xscale="log", yscale="log")
    ticks = sorted({x for points in lines.values() for x, _ in points})
    axes.set_xticks(ticks, map(str, ticks), fontsize=8)
    axes.minorticks_off()
    if lines:
      axes.legend(fontsize=7)
    else:
      axes.axis("off")
  return figure if any(axes.lines for axes in figure.axes) else None


def headlines(summaries: Summaries) -> Figure | None:
  """Draws seconds of a video by each paper's protocol: decoding and computing; training."""
  found = {one.name: headline(one, summaries) for one in PROTOCOLS}
  found = {name: values for name, values in found.items() if math.isfinite(values[0])}
  if not found:
    return None
  figure = Figure(figsize=(10, 1.2 + 0.5 * len(found)), layout="constrained")
  left, right = figure.subplots(1, 2, sharey=True)
  names = list(found)
  inference, training, decoding, _ = np.nan_to_num(np.array(list(found.values()))).T
  left.barh(names, decoding, color="#bdbdbd", label="decoding")
  left.barh(names, inference, left=decoding, color="#3182bd", label="computing")
  left.set_xlabel("seconds a video")
  left.legend(fontsize=8)
  left.invert_yaxis()
  epochs = [one.epochs for one in PROTOCOLS if one.name in found]
  right.barh(names, training * epochs, color="#3182bd")
  right.set_xlabel("seconds a training video, all epochs")
  return figure
