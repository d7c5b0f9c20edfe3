"""Memory, work and estimated times of the shipped configs on slices of TPUs, compiled without them.

One process for each compilation, quick effort. Results go to a file of JSON lines as they come, so
a table of hours can be stopped and continued. What a chip runs is compiled once: configs that
differ in rates alone share it, and so do slices on which a chip gets as many clips, where only the
size of the group that sums gradients differs.

  python -m benchmarks.pod_table --results=FILE            # compiles what is not in the file
  python -m benchmarks.pod_table --results=FILE --search   # ... and looks for the largest batches
  python -m benchmarks.pod_table --results=FILE --table    # prints the Markdown of docs/pods.md

All of them take --configs and --topologies, names with commas between.
"""

import argparse
import dataclasses
import hashlib
import importlib
import json
import pathlib
import re
import subprocess
import sys

TOPOLOGIES = ("v5e-16", "v5e-64", "v5e-256", "v4-128", "v6e-64")
CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
SECONDS_AT_MOST = 1800


@dataclasses.dataclass(frozen=True)
class Job:
  """What one process compiles.

  Attributes:
    clips: a device; 0: the config's batch.
    fsdp: 0: the config's.
  """

  config: str
  topology: str
  clips: int = 0
  fsdp: int = 0
  search: bool = False


def config_names() -> list[str]:
  """All that name a model."""
  names = sorted(path.stem for path in CONFIGS.glob("*.py"))
  return [name for name in names if load(name).model.name is not None]


def load(name: str):
  return importlib.import_module(f"configs.{name}").get_config()


def read_rows(path: pathlib.Path) -> dict[Job, dict]:
  """Rows of a file by what was to be done; the last counts."""
  rows = {}
  for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
    row = json.loads(line)
    rows[Job(**row["job"])] = row
  return rows


def run_jobs(jobs: list[Job], results: pathlib.Path, module: str = "benchmarks.pod_table") -> None:
  """Compiles what is not in the file yet, one process after the other."""
  for job in jobs:
    if job in read_rows(results):
      continue
    command = [sys.executable, "-m", module, f"--results={results}"]
    try:
      done = subprocess.run(
        [*command, f"--job={json.dumps(dataclasses.asdict(job))}"],
        timeout=SECONDS_AT_MOST,
        capture_output=True,
        text=True,
      )
      said = done.stdout if done.returncode == 0 else done.stderr[-1000:]
    except subprocess.TimeoutExpired:
      said = f"stopped after {SECONDS_AT_MOST} s"
    print(f"{job}\n{said}", flush=True)


def run_job(job: Job, results: pathlib.Path) -> None:
  """Compiles one step and adds a row to the file, or searches for the largest batch of a row."""
  from vswin_jax.aot.environment import prepare_environment

  prepare_environment()

  from vswin_jax.aot import compile
  from vswin_jax.aot.dataset_metadata import dataset_metadata
  from vswin_jax.aot.results import describe, describe_search, read_row, write_row
  from vswin_jax.aot.topologies import parse_target

  rows = read_rows(results)
  config = load(job.config)
  target = parse_target(job.topology)
  metadata = dataset_metadata(config.data.name, config.data.dir, config.data.train_split)
  config.mesh.fsdp = job.fsdp or config.mesh.fsdp
  plan = compile.plan_for(config, target, metadata, job.clips or None)
  batch_size, fsdp = plan.settings.train.batch_size, plan.settings.mesh.fsdp
  wanted = batch_size if job.clips else config.train.batch_size
  # Clips that are mixed may lie on other chips.
  mixes = plan.settings.augmentation.mixes
  program = None if mixes else one_chip_program(config, target, metadata, batch_size)
  compiled = rows.get(dataclasses.replace(job, search=False))
  is_other = job.clips or job.search or target.slices > 1
  same = None if is_other else same_program(rows, program, target.chip.name, fsdp)
  same_as = None
  if compiled:
    result, same_as = read_row(compiled), compiled["same_as"]
  elif same:
    result = on_other_slice(read_row(same), target, metadata, plan, wanted)
    same_as = same["same_as"] or [same["job"]["config"], same["topology"]]
  else:
    result = compile.compile_plan(plan, target, metadata, wanted)
  if job.search and not result.error:
    known = {}
    for other, row in rows.items():
      found = read_row(row)
      is_alike = other.config == job.config and found.target.chip == target.chip
      if is_alike and found.fsdp == fsdp == 1 and not found.error:
        known[found.clips_per_device] = found.memory
    result = compile.search_largest(config, target, metadata, result, known)
    if not result.fits:
      result = compile.add_advice(config, target, metadata, result)
  write_row(results, result, job=dataclasses.asdict(job), program=program, same_as=same_as)
  print("\n".join(filter(None, [describe(result), describe_search(result)])))


def one_chip_program(config, target, metadata, batch_size: int) -> str:
  """A short name of what a chip runs, the same for what differs in the values of constants."""
  from vswin_jax.aot import compile
  from vswin_jax.aot.compiler import trace_step
  from vswin_jax.aot.topologies import parse_target

  config = config.copy_and_resolve_references()
  config.mesh.fsdp = 1
  alone = parse_target(f"{target.chip.name}:{'x'.join(['1'] * target.chip.dimensions)}")
  plan = compile.plan_for(config, alone, metadata, batch_size // target.num_devices)
  text = re.sub(r"dense<[^>]*>", "dense<>", trace_step(plan).lower().as_text())
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def same_program(rows: dict[Job, dict], program: str | None, chip: str, fsdp: int) -> dict | None:
  """A row of which a chip runs the same, the state on every chip of one slice.

  Args:
    program: as `one_chip_program` names it; None: what a chip runs depends on others.
    fsdp: devices that share one copy of the state of what is to be compiled.
  """
  for other, row in rows.items():
    is_chip = other.topology.startswith((f"{chip}:", f"{chip}-"))
    is_same = program and row["program"] == program and not row.get("error")
    if is_same and is_chip and max(fsdp, row["fsdp"]) < 2:
      return row
  return None


def on_other_slice(found, target, metadata, plan, wanted_batch_size: int):
  """A result on a slice where a chip runs the same: another group sums the gradients. What was
  tried besides was tried on the first slice alone."""
  from vswin_jax.aot.hlo import wire_bytes

  devices, train = target.num_devices, plan.settings.train
  collectives = tuple(
    dataclasses.replace(
      one, group=devices, wire_bytes=wire_bytes(one.kind, one.operand_bytes, devices)
    )
    for one in found.collectives
  )
  return dataclasses.replace(
    found,
    topology=target.name,
    num_devices=devices,
    batch_size=train.batch_size,
    wanted_batch_size=wanted_batch_size,
    epochs=train.epochs,
    num_steps=plan.num_steps,
    num_videos=metadata.num_videos,
    videos_source=metadata.source,
    seconds=0.0,
    collectives=collectives,
    largest=None,
    is_largest=False,
    advice=(),
    failed=(),
  )


def table_rows(
  rows: dict[Job, dict], topologies: list[str], names: list[str]
) -> list[tuple[Job, dict]]:
  """What the table shows of a file: of a config on a machine its search, else the plain row."""
  found = []
  for topology in topologies:
    for name in names:
      jobs = (Job(name, topology, search=True), Job(name, topology))
      found += [(job, rows[job]) for job in jobs if job in rows][:1]
  return found


def print_table(results: pathlib.Path, topologies: list[str], names: list[str]) -> None:
  from vswin_jax.aot.results import read_row, table

  found = table_rows(read_rows(results), topologies, names)
  print(table([read_row(row) for _, row in found], [f"`{job.config}`" for job, _ in found]))
  shared = {}
  for job, row in found:
    if row["same_as"]:
      others = shared.setdefault(tuple(row["same_as"]), [])
      others.append(f"`{job.config}` on {job.topology}")
  for (config, topology), others in shared.items():
    print(f"\nA chip runs what it runs of `{config}` on {topology}: {', '.join(others)}.")


def arguments(description: str) -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(description=description)
  parser.add_argument("--results", type=pathlib.Path, required=True, help="file of JSON lines")
  parser.add_argument("--table", action="store_true", help="print what is in the file")
  parser.add_argument("--job", type=json.loads, help="compile one thing, in this process")
  return parser


def main():
  parser = arguments(__doc__)
  parser.add_argument("--configs", help="with commas between; all if not given")
  parser.add_argument("--topologies", default=",".join(TOPOLOGIES))
  parser.add_argument("--search", action="store_true", help="the largest batch that fits")
  given = parser.parse_args()
  if given.job:
    run_job(Job(**given.job), given.results)
    return
  names = given.configs.split(",") if given.configs else config_names()
  topologies = given.topologies.split(",")
  if given.table:
    print_table(given.results, topologies, names)
  else:
    jobs = [Job(name, topology, search=given.search) for topology in topologies for name in names]
    run_jobs(jobs, given.results)


if __name__ == "__main__":
  main()
