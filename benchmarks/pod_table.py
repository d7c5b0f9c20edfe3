"""Memory, work and estimated times of the shipped configs on TPU slices, compiled without them.

One process for each compilation, quick effort. Results go to one folder per config, so a table can
be interrupted and continued.

  python -m benchmarks.pod_table --results=DIR            # compiles what is missing
  python -m benchmarks.pod_table --results=DIR --search   # ... and searches for the maximum batch
  python -m benchmarks.pod_table --results=DIR --table    # prints the Markdown of docs/pods.md

All of them take comma-separated --configs and --topologies.
"""

import argparse
import importlib
import json
import pathlib
import subprocess
import sys

from vswin_jax.aot.compile import RESULTS_FILE
from vswin_jax.aot.hlo import Collective
from vswin_jax.aot.results import Result, table

TOPOLOGIES = ("v5e-16", "v5e-64", "v5e-256", "v4-128", "v6e-64")
CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
TIMEOUT_SECONDS = 3600


def config_names() -> list[str]:
  """Returns the shipped configs that name a model."""
  names = sorted(path.stem for path in CONFIGS.glob("*.py"))
  modules = {name: importlib.import_module(f"configs.{name}") for name in names}
  return [name for name, module in modules.items() if module.get_config().model.name is not None]


def read_results(folder: pathlib.Path) -> dict[str, Result]:
  """Returns the last result of each topology in a folder."""
  path = folder / RESULTS_FILE
  results = {}
  for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
    row = json.loads(line)
    for name in ("advice", "failed"):
      row[name] = tuple(row[name])
    row["collectives"] = tuple(Collective(**one) for one in row["collectives"])
    results[row["topology"]] = Result(**row)
  return results


def compile_missing(
  config: str, topology: str, folder: pathlib.Path, *flags: str, search: bool = False
) -> None:
  """Compiles a config for a topology unless the folder has the result, in a process of its own.

  Args:
    flags: more flags of `vswin_jax.main`.
  """
  result = read_results(folder).get(topology)
  if result is not None and (result.error or not search or result.largest is not None):
    return
  command = [sys.executable, "-m", "vswin_jax.main", "--mode=compile", "--effort=quick"]
  command += [f"--config={CONFIGS / config}.py", f"--topology={topology}", f"--workdir={folder}"]
  command += [f"--search={str(search).lower()}", *flags]
  print(" ".join(command[1:]), flush=True)
  try:
    subprocess.run(command, timeout=TIMEOUT_SECONDS, cwd=CONFIGS.parent)
  except subprocess.TimeoutExpired:
    print(f"stopped after {TIMEOUT_SECONDS} s", flush=True)


def parser(description: str) -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    description=description, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--results", type=pathlib.Path, required=True, help="folder of the results")
  parser.add_argument("--table", action="store_true", help="print the results as a table")
  return parser


def main():
  arguments = parser(__doc__)
  arguments.add_argument("--configs", help="default: all that name a model")
  arguments.add_argument("--topologies", default=",".join(TOPOLOGIES))
  arguments.add_argument("--search", action="store_true", help="for the maximum batch size")
  given = arguments.parse_args()
  results = given.results.absolute()
  names = given.configs.split(",") if given.configs else config_names()
  topologies = given.topologies.split(",")
  pairs = [(name, topology) for topology in topologies for name in names]
  if not given.table:
    for name, topology in pairs:
      compile_missing(name, topology, results / name, search=given.search)
    return
  found = {name: read_results(results / name) for name in names}
  pairs = [(name, topology) for name, topology in pairs if topology in found[name]]
  rows = [found[name][topology] for name, topology in pairs]
  print(table(rows, [f"`{name}`" for name, _ in pairs]))


if __name__ == "__main__":
  main()
