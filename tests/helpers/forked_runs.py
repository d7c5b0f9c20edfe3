"""Runs `vswin_jax.main` with one list of arguments after the other, in forks of a process that has
loaded all that it needs.

Reads the lists as JSON from the standard input; writes exit statuses and messages likewise.
"""

import json
import os
import runpy
import sys
import tempfile


def main():
  import vswin_jax.experiment.run  # noqa: F401

  results = []
  for arguments in json.load(sys.stdin):
    with tempfile.TemporaryFile("w+") as messages:
      process = os.fork()
      if not process:
        os.dup2(messages.fileno(), sys.stderr.fileno())
        sys.argv = ["vswin_jax.main", *arguments]
        # A program that starts itself again would not be this process's any more.
        os.environ["VSWIN_JAX_HUGE_PAGES"] = "0"
        runpy.run_module("vswin_jax.main", run_name="__main__", alter_sys=True)
        sys.exit()
      _, status = os.waitpid(process, 0)
      messages.seek(0)
      results.append([os.waitstatus_to_exitcode(status), messages.read()])
  json.dump(results, sys.stdout)


if __name__ == "__main__":
  main()
