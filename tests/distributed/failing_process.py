"""One of several processes, of which one fails.

Usage: `python -m tests.distributed.failing_process PORT COUNT PROCESS WHEN`.
"""

import sys

from vswin_jax.distributed.clusters import Cluster
from vswin_jax.distributed.processes import ending_together, start


def main():
  port, count, process, when = sys.argv[1:]
  start(Cluster(f"localhost:{port}", int(count), int(process)), heartbeat_timeout=10)
  with ending_together():
    from jax.experimental import multihost_utils

    for step in range(20):
      multihost_utils.sync_global_devices(f"step {step}")
      if when == "midway" and process == "1" and step == 10:
        sys.exit("error: there is no more room")
    if when == "at the end" and process == "0":
      raise RuntimeError("odd report")


if __name__ == "__main__":
  main()
