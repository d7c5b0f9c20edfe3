"""What a device sends in a step of Video Swin-B on 4 to 1024 chips, compiled without them.

One clip a chip, once data parallel and once with the state shared by the chips of a slice (FSDP).

  python -m benchmarks.pod_scaling --results=FILE           # compiles what is not in the file
  python -m benchmarks.pod_scaling --results=FILE --table   # prints the Markdown of docs/pods.md
"""

from benchmarks.pod_table import Job, arguments, read_rows, run_job, run_jobs

CONFIG = "k400_swin_b"
# Chips of a slice by machine.
MACHINES = {"v5e:2x2": 4, "v5e:4x4": 16, "v5e:8x8": 64, "v5e:16x16": 256, "4*v5e:16x16": 256}


def jobs() -> list[Job]:
  return [
    Job(CONFIG, topology, clips=1, fsdp=fsdp)
    for topology, chips in MACHINES.items()
    for fsdp in (1, chips)
  ]


def print_table(results) -> None:
  from vswin_jax.aot.results import efficiency_range, read_row

  rows = read_rows(results)
  head = (
    "chips | machine | state on | memory GiB | all-reduce MB | all-gather MB | reduce-scatter MB "
    "| permuted MB | other MB | sent in the slice MB | sent between slices MB "
    "| scaling efficiency (estimate) | the same if it only computes"
  )
  print(f"| {head} |\n|" + "---|" * (head.count("|") + 1))
  for job in jobs():
    if job not in rows:
      continue
    result = read_row(rows[job])
    kinds = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute")
    sizes = [
      sum(one.operand_bytes for one in result.collectives if one.kind == kind) for kind in kinds
    ]
    other = sum(one.operand_bytes for one in result.collectives if one.kind not in kinds)
    sent = [
      sum(one.wire_bytes for one in result.collectives if one.across_slices == across)
      for across in (False, True)
    ]
    times = result.estimate
    pairs = (times.efficiencies, times.compute_efficiencies) if times else (None, None)
    cells = [
      str(result.num_devices),
      result.topology,
      "every chip" if job.fsdp == 1 else f"{job.fsdp} chips together",
      f"{result.memory / 2**30:.2f}" if result.fits else "does not fit",
      *[f"{size / 1e6:,.1f}" for size in (*sizes, other, *sent)],
      *map(efficiency_range, pairs),
    ]
    print("| " + " | ".join(cells) + " |")


def main():
  given = arguments(__doc__).parse_args()
  if given.job:
    run_job(Job(**given.job), given.results)
  elif given.table:
    print_table(given.results)
  else:
    run_jobs(jobs(), given.results, "benchmarks.pod_scaling")


if __name__ == "__main__":
  main()
