"""Computes with the compilation cache of this library, in forks of one process.

Reads as JSON a list of cases from the standard input: variables of the environment, and a pattern
of files that lose their second half before. Writes the exit status, whether the program was
compiled, the result and the messages of each.
"""

import json
import os
import pathlib
import sys
import tempfile


def compute() -> tuple[bool, float]:
  import jax

  from vswin_jax.common.logging import set_up_logging
  from vswin_jax.distributed.compilation_cache import use_compilation_cache
  from vswin_jax.training.compilation import measure_compilation

  set_up_logging()
  use_compilation_cache()
  with measure_compilation() as compilation:
    result = jax.jit(lambda x: (x @ x).sum())(jax.numpy.ones((3, 3)))
  return not compilation.from_cache, float(result)


def main():
  import vswin_jax.distributed.compilation_cache
  import vswin_jax.training.compilation  # noqa: F401

  results = []
  for variables, folder, pattern in json.load(sys.stdin):
    for file in pathlib.Path(folder).rglob(pattern) if pattern else ():
      os.truncate(file, file.stat().st_size // 2)
    with tempfile.TemporaryFile("w+") as messages, tempfile.TemporaryFile("w+") as output:
      process = os.fork()
      if not process:
        os.dup2(messages.fileno(), sys.stderr.fileno())
        os.environ.update(variables)
        json.dump(compute(), output)
        sys.exit()
      _, status = os.waitpid(process, 0)
      for file in (messages, output):
        file.seek(0)
      results.append([status, *json.load(output), messages.read()])
  json.dump(results, sys.stdout)


if __name__ == "__main__":
  main()
