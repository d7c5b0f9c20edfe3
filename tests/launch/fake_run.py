"""Stand-in for a process of `vswin_jax.main` that acts by a plan.

Usage: `fake_run.py FOLDER PLAN --coordinator=localhost:PORT --num_processes=N --process_id=I`. PLAN
is a JSON list over starts of {process: action}; the default action is "end 0".
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

folder, plan = pathlib.Path(sys.argv[1]), json.loads(sys.argv[2])
values = dict(argument.lstrip("-").split("=") for argument in sys.argv[3:])
me = values["process_id"]
starts = folder / f"starts_{me}"
start = len(starts.read_text().splitlines()) if starts.exists() else 0
with starts.open("a") as file:
  file.write(f"{values['coordinator']} {os.getpid()}\n")


def has_started(process: int) -> bool:
  others = folder / f"starts_{process}"
  return others.exists() and len(others.read_text().splitlines()) > start


# All start before one fails.
while not all(map(has_started, range(int(values["num_processes"])))):
  time.sleep(0.01)

print(f"output of {me}")
print(f"error of {me}", file=sys.stderr)


def note_stop(*_):
  (folder / f"asked_{me}").touch()
  (folder / "stop").touch()


action, *operands = plan[start].get(me, "end 0").split()
if action == "end":
  time.sleep(float(operands[1]) if operands[1:] else 0)
  sys.exit(int(operands[0]))
elif action == "die":
  os.kill(os.getpid(), signal.Signals[operands[0]])
elif action == "hang":
  # Like a process that waits in a collective operation.
  signal.signal(signal.SIGTERM, signal.SIG_IGN)
  child = subprocess.Popen(["sleep", "60"])
  (folder / f"child_{me}").write_text(str(child.pid))
  time.sleep(60)
elif action == "train":
  signal.signal(signal.SIGTERM, note_stop)
  (folder / f"training_{me}").touch()
  while not (folder / "stop").exists():
    time.sleep(0.01)
