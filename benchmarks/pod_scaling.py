"""Bytes communicated by a chip in a step of Video Swin-B on 4 to 1024 chips, compiled without them.

One clip per chip, once data parallel and once with the state sharded over a slice (FSDP).

  python -m benchmarks.pod_scaling --results=DIR           # compiles what is missing
  python -m benchmarks.pod_scaling --results=DIR --table   # prints the Markdown of docs/pods.md
"""

import pathlib

from benchmarks.pod_table import compile_missing, parser, read_results
from vswin_jax.aot.results import Result, efficiency_range
from vswin_jax.aot.topologies import parse_target

CONFIG = "k400_swin_b"
TOPOLOGIES = ("v5e:2x2", "v5e:4x4", "v5e:8x8", "v5e:16x16", "4*v5e:16x16")
KINDS = {
  "all-reduce": "all-reduce MB",
  "all-gather": "all-gather MB",
  "reduce-scatter": "reduce-scatter MB",
  "collective-permute": "permute MB",
}


def row(result: Result) -> dict[str, str]:
  """Returns the cells of a table row by column."""
  collectives, times = result.collectives, result.estimate
  is_sharded = result.fsdp > 1
  operands = dict.fromkeys((*KINDS.values(), "other MB"), 0)
  sent = {"sent within slice MB": 0.0, "sent between slices MB": 0.0}
  for one in collectives:
    operands[KINDS.get(one.kind, "other MB")] += one.operand_bytes
    sent[f"sent {'between slices' if one.across_slices else 'within slice'} MB"] += one.wire_bytes
  return {
    "chips": str(result.target.num_devices),
    "target": result.topology,
    "state": f"sharded over {result.fsdp} chips" if is_sharded else "on every chip",
    "memory GiB": f"{result.memory / 2**30:.2f}" if result.fits else "does not fit",
    **{name: f"{size / 1e6:,.1f}" for name, size in (operands | sent).items()},
    "scaling efficiency, estimate": efficiency_range(times.efficiency),
    "scaling efficiency, compute only": efficiency_range(times.compute_efficiency),
  }


def print_table(results: pathlib.Path) -> None:
  rows = []
  for topology in TOPOLOGIES:
    for name in ("replicated", "fsdp"):
      found = read_results(results / name).get(topology)
      rows += [] if found is None else [row(found)]
  lines = [rows[0], ["---"] * len(rows[0]), *[cells.values() for cells in rows]] if rows else []
  for line in lines:
    print(f"| {' | '.join(line)} |")


def main():
  given = parser(__doc__).parse_args()
  results = given.results.absolute()
  if given.table:
    print_table(results)
    return
  for topology in TOPOLOGIES:
    target = parse_target(topology)
    for name, fsdp in (("replicated", 1), ("fsdp", target.slice_size)):
      flags = (f"--config.train.batch_size={target.num_devices}", f"--config.mesh.fsdp={fsdp}")
      compile_missing(CONFIG, topology, results / name, *flags)


if __name__ == "__main__":
  main()
