"""One of two processes that check their consistency.

Usage: `python -m tests.distributed.consistency_process PORT PROCESS FOLDER`. Writes the messages of
the checks to FOLDER/PROCESS.json.
"""

import json
import os
import pathlib
import sys

import jax

from vswin_jax.distributed.clusters import Cluster
from vswin_jax.distributed.compilation_cache import use_compilation_cache
from vswin_jax.distributed.consistency import broadcast_from_first, check_same, check_shared
from vswin_jax.distributed.errors import StartupError
from vswin_jax.distributed.processes import ending_together, start


def message(check, argument) -> str:
  try:
    check(argument)
  except StartupError as error:
    return str(error)
  return ""


def cache_in(folder: pathlib.Path) -> str:
  """Returns the folder of the compilation cache if its default is in a folder."""
  os.environ["XDG_CACHE_HOME"] = str(folder)
  use_compilation_cache()
  return str(jax.config.jax_compilation_cache_dir)


def cache_if_given_in_one(process: int) -> str:
  """Returns the folder of the compilation cache if only process 1 has its own."""
  jax.config.update("jax_compilation_cache_dir", "/elsewhere" if process else None)
  use_compilation_cache()
  return str(jax.config.jax_compilation_cache_dir)


def main():
  port, process, folder = sys.argv[1:]
  folder = pathlib.Path(folder)
  own = folder / process
  own.mkdir()
  start(Cluster(f"localhost:{port}", 2, int(process)), heartbeat_timeout=10)
  with ending_together():
    results = {
      "broadcast": broadcast_from_first(40 + int(process)),
      "same": message(check_same, {"data": "a", "classes": "x"}),
      "different": message(check_same, {"data": "a", "classes": f"x{process}"}),
      "too long to show": message(check_same, {"files": process * 200}),
      "shared folder": message(check_shared, folder),
      "own folders": message(check_shared, own),
      "own caches": cache_in(own),
      "shared cache": cache_in(folder),
      "cache of process 1": cache_if_given_in_one(int(process)),
    }
  (folder / f"{process}.json").write_text(json.dumps(results))


if __name__ == "__main__":
  main()
