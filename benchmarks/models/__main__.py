"""Speed and memory of the models beside PyTorch's, in one run on one machine.

Video Swin is compared with torchvision, VTN with timm's ViT and Hugging Face's Longformer, for the
same shapes, batch and precision; parameters and outputs are checked to agree. Each case runs in
processes of its own, in rounds that alternate between the cases of a group, without the warm-up.
Missing PyTorch packages are skipped.

  python -m benchmarks.models --results=DIR               # measures what is missing, prints tables
  python -m benchmarks.models --results=DIR --minutes=20  # ... for a limited time; again: continues
  python -m benchmarks.models --results=DIR --table       # prints the tables only
  python -m benchmarks.models --results=DIR --pictures=DIR
  python -m benchmarks.models --cost                      # parameters and multiply-accumulates

A folder of results is for one machine. Remove lines with an error from its `measurements.jsonl` to
repeat these cases.
"""

import argparse
import dataclasses
import importlib.util
import itertools
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Iterable

from benchmarks.models import cases, tables
from benchmarks.models.cases import CONV_NETS, PEERS, PROTOCOLS, TORCH, Case

MEASUREMENTS = "measurements.jsonl"
SECTIONS = ("main", "headlines", "curves")
_TIMEOUT_SECONDS = 900


def missing_packages(model: str) -> list[str]:
  """Returns the packages that the peer of a model needs and that are not installed."""
  packages = ("torchvision",) if model in CONV_NETS else PEERS.get(model, ())
  return [name for name in ("torch", *packages) if importlib.util.find_spec(name) is None]


def available(wanted: Iterable[Case]) -> list[Case]:
  """Returns the cases whose packages are installed, and says how to install the others."""
  missing, kept = set(), []
  for case in wanted:
    needs_torch = case.library == TORCH or case.mode == cases.AGREEMENT
    packages = missing_packages(case.model) if needs_torch else []
    missing.update(packages)
    if not packages:
      kept.append(case)
  if missing:
    names = " ".join(sorted(missing))
    print(f"some cases are skipped; to measure them: pip install {names}", file=sys.stderr)
  return kept


def environment(case: Case, results: pathlib.Path) -> dict[str, str]:
  """Returns the environment of the process of a case; compiled programs are kept in `results`."""
  tunables = "glibc.malloc.hugetlb=1" if case.huge_pages else ""
  caches = {
    "JAX_COMPILATION_CACHE_DIR": str(results / "cache_jax"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1",
    "TORCHINDUCTOR_CACHE_DIR": str(results / "cache_torch"),
  }
  return caches | os.environ | {"GLIBC_TUNABLES": tunables}


def visit(case: Case, seconds: float, results: pathlib.Path) -> dict:
  """Measures a case once in a process of its own, appends the result to the file, returns it."""
  arguments = [json.dumps(dataclasses.asdict(case)), str(seconds)]
  command = [sys.executable, "-m", "benchmarks.models.measure", *arguments]
  try:
    done = subprocess.run(
      command,
      capture_output=True,
      text=True,
      timeout=_TIMEOUT_SECONDS,
      env=environment(case, results),
      cwd=pathlib.Path(__file__).parents[2],
    )
    code, output, messages = done.returncode, done.stdout, done.stderr
  except subprocess.TimeoutExpired:
    code, output, messages = 1, "", f"no result after {_TIMEOUT_SECONDS} s"
  if code == 0:
    result = json.loads(output.splitlines()[-1])
  elif code < 0:
    result = {"error": f"killed by signal {-code}"}
  else:
    result = {"error": (messages.strip().splitlines() or [f"exit status {code}"])[-1][:200]}
  with open(results / MEASUREMENTS, "a", encoding="utf-8") as file:
    file.write(json.dumps(dataclasses.asdict(case) | result) + "\n")
  return result


def read_measurements(results: pathlib.Path) -> dict[Case, list[dict]]:
  """Returns all measurements of each case."""
  path, found = results / MEASUREMENTS, {}
  names = [field.name for field in dataclasses.fields(Case)]
  for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
    row = json.loads(line)
    found.setdefault(Case(**{name: row.pop(name) for name in names}), []).append(row)
  return found


def run_groups(groups: Iterable[list[Case]], flags: argparse.Namespace, deadline: float) -> None:
  """Measures the cases of each group in rounds, until the deadline."""
  for group in groups:
    for number, case in itertools.product(range(flags.rounds), group):
      done = read_measurements(flags.results).get(case, [])
      once = case.mode in (cases.AGREEMENT, cases.DECODING)
      if len(done) > (0 if once else number) or any("error" in row for row in done):
        continue
      if time.monotonic() > deadline:
        print("the time is over; the same command continues", file=sys.stderr)
        return
      result = visit(case, flags.seconds, flags.results)
      times = result.get("seconds")
      summary = f"{1e3 * tables.median(times):.1f} ms" if times else result.get("error", "done")
      print(f"{case.mode} {tables.title(case)} {case.label}: {summary}", file=sys.stderr)


def choose(flags: argparse.Namespace, platform: str) -> cases.Choice:
  """Returns the choice that the flags and, where they say nothing, the platform make."""
  from vswin_jax.attention import dense, window

  on_cpu = platform == "cpu"
  kinds = {
    model: window if cases.has_window_attention(model) else dense
    for model in flags.models
    if model != cases.TEMPORAL_ENCODER
  }
  implementations = {
    model: [
      name
      for name in cases.default_implementations(platform, kind.IMPLEMENTATIONS)
      if not flags.implementations or name in flags.implementations
    ]
    for model, kind in kinds.items()
  }
  wanted = {"on": True, "off": False}
  return cases.Choice(
    platform=platform,
    models=flags.models,
    modes=flags.modes,
    precisions=flags.precisions or (["float32"] if on_cpu else ["float32", "bfloat16"]),
    implementations=implementations,
    peers=flags.peers,
    huge_pages=[wanted[value] for value in flags.huge_pages] if on_cpu else [False],
    batch=flags.batch or (1 if on_cpu else 8),
    protocols=flags.protocols,
    frames=flags.frames,
    sizes=flags.sizes,
    batches=flags.batches or ([1, 2, 4] if on_cpu else [1, 2, 4, 8, 16, 32]),
    temporal_frames=flags.temporal_frames,
  )


def measure_all(flags: argparse.Namespace) -> None:
  """Measures what is missing in the folder of results."""
  deadline = time.monotonic() + 60 * (flags.minutes or float("inf"))
  flags.results.mkdir(parents=True, exist_ok=True)
  machine = available([cases.MACHINE, cases.PEERS_MACHINE])
  run_groups([machine], flags, deadline)
  found = read_measurements(flags.results)
  ours, peers = (found.get(case, [{}])[0] for case in (cases.MACHINE, cases.PEERS_MACHINE))
  if "platform" not in ours:
    raise SystemExit(f"JAX does not compute here: {ours.get('error')}")
  choice = choose(flags, ours["platform"])
  if peers.get("platform") != choice.platform:
    problem = peers.get("error", f"it computes on: {peers.get('platform', 'nothing')}")
    print(f"PyTorch is not measured beside JAX on {choice.platform}; {problem}", file=sys.stderr)
    choice = dataclasses.replace(choice, peers=[])
  groups = []
  if "main" in flags.sections:
    groups += [cases.agreement(choice), *cases.main_table(choice)]
  if "headlines" in flags.sections:
    groups += cases.headlines(choice)
  if "curves" in flags.sections:
    groups += cases.curves(choice)
  kept = set(available(itertools.chain(*groups)))
  groups = [[case for case in group if case in kept] for group in groups]
  run_groups(groups, flags, deadline)


def parse_flags(arguments: list[str] | None = None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    prog="python -m benchmarks.models",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )

  def names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]

  def numbers(text: str) -> list[int]:
    return [int(name) for name in names(text)]

  def add(flag: str, default: str | None, help: str, type=names) -> None:
    parser.add_argument(f"--{flag}", type=type, default=default, help=f"{help}; default: {default}")

  parser.add_argument("--results", type=lambda path: pathlib.Path(path).absolute())
  parser.add_argument("--table", action="store_true", help="print the tables, measure nothing")
  parser.add_argument("--pictures", type=pathlib.Path, help="folder for pictures; measures nothing")
  parser.add_argument("--cost", action="store_true", help="print the table of costs")
  add("sections", ",".join(SECTIONS), "parts of the benchmark")
  add("models", "video_swin_t,video_swin_b,vtn_vit_b", "of the main table")
  add("modes", "inference,training", "passes to measure")
  add("precisions", None, "float32, bfloat16 or both")
  add("implementations", None, "of attention (default: all that the platform can run)")
  add("peers", "eager,compiled", "ways to run PyTorch")
  add("huge-pages", "on,off", "huge pages, where the CPU computes")
  add("batch", None, "clips per call (default: 1 on a CPU, else 8)", int)
  add("protocols", ",".join(dict.fromkeys(one.model for one in PROTOCOLS)), "of the headlines")
  add("frames", "8,16,32,64,128", "of the curve over frames", numbers)
  add("sizes", "112,160,224,288,384", "of the curve over sizes", numbers)
  add("batches", None, "of the curve over batches", numbers)
  add("temporal-frames", "250,1000,4000,16000", "of VTN's temporal encoder", numbers)
  add("seconds", "3", "measured per visit", float)
  add("rounds", "2", "visits of each case", int)
  add("minutes", None, "after which no more cases start", float)
  flags = parser.parse_args(arguments)
  if not flags.cost and flags.results is None:
    parser.error("--results is required")
  return flags


def main() -> None:
  flags = parse_flags()
  if flags.cost:
    from benchmarks.models.cost import cost_table

    print(cost_table())
    return
  if not (flags.table or flags.pictures):
    measure_all(flags)
  measurements = read_measurements(flags.results)
  if not measurements:
    raise SystemExit(f"{flags.results} has no measurements; run without --table and --pictures")
  if flags.pictures:
    from benchmarks.models.pictures import draw_all

    for path in draw_all(measurements, flags.pictures):
      print(path)
    return
  print(tables.all_tables(measurements))


if __name__ == "__main__":
  main()
