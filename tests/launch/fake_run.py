"""Stands for a process of `vswin_jax.main`: does what a plan says, start by start.

  fake_run.py FOLDER PLAN --coordinator=localhost:PORT --num_processes=N --process_id=I

PLAN is a JSON list over starts of {process: action}; who is not named ends well.
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
  file.write(f"{values['coordinator']} {values['num_processes']} {os.getpid()}\n")


def has_started(process: int) -> bool:
  others = folder / f"starts_{process}"
  return others.exists() and len(others.read_text().splitlines()) > start


# Nobody dies before all are there.
while not all(map(has_started, range(int(values["num_processes"])))):
  time.sleep(0.01)

print(f"first of {me}")
print(f"second of {me}", file=sys.stderr)
print(f"third of {me}")


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
  # As JAX's distributed runtime does to a process that waits for one that is dead.
  signal.signal(signal.SIGTERM, signal.SIG_IGN)
  child = subprocess.Popen(["sleep", "60"])
  (folder / f"child_{me}").write_text(str(child.pid))
  time.sleep(60)
elif action == "train":
  signal.signal(signal.SIGTERM, note_stop)
  (folder / f"training_{me}").touch()
  while not (folder / "stop").exists():
    time.sleep(0.01)
