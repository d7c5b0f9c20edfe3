"""One of two processes that compare what they have: `python -m tests.distributed.agreeing_process
PORT NUMBER FOLDER`; writes what it was told to FOLDER/NUMBER.json."""

import json
import pathlib
import sys

from vswin_jax.distributed.agreement import check_same, check_shared, of_first
from vswin_jax.distributed.clusters import Cluster
from vswin_jax.distributed.errors import DifferenceError
from vswin_jax.distributed.processes import ending_together, start


def difference(check, argument) -> str:
  try:
    check(argument)
  except DifferenceError as error:
    return str(error)
  return ""


def main():
  port, number, folder = sys.argv[1:]
  folder = pathlib.Path(folder)
  own = folder / number
  own.mkdir()
  start(Cluster(f"localhost:{port}", 2, int(number)), heartbeat_timeout=10)
  with ending_together():
    told = {
      "of_first": of_first(40 + int(number)),
      "same": difference(check_same, {"data": "a", "classes": "x"}),
      "different": difference(check_same, {"data": "a", "classes": f"x{number}"}),
      "too long to show": difference(check_same, {"files": number * 200}),
      "shared folder": difference(check_shared, folder),
      "own folders": difference(check_shared, own),
    }
  (folder / f"{number}.json").write_text(json.dumps(told))


if __name__ == "__main__":
  main()
