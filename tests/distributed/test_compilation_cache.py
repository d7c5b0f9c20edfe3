"""The compilation cache that commands use unless they are told otherwise."""

import json
import os
import subprocess
import sys

from tests.helpers.runs import ROOT


def run(cases):
  """Returns (exit status, whether the program was compiled, result, messages) of each case."""
  done = subprocess.run(
    [sys.executable, "-m", "tests.distributed.cached_process"],
    cwd=ROOT,
    env={
      **{name: value for name, value in os.environ.items() if name != "VSWIN_JAX_CACHE"},
      "JAX_ENABLE_COMPILATION_CACHE": "true",
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    },
    input=json.dumps(cases),
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout)


def test_programs_are_compiled_once_and_damage_changes_nothing(tmp_path):
  cached = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
  (tmp_path / "file").touch()
  cases = [
    (cached, "", ""),
    (cached, "", ""),
    (cached, str(tmp_path), "*-cache"),  # a disk was full, or a machine lost power
    (cached | {"JAX_COMPILATION_CACHE_DIR": "/elsewhere"}, "", ""),
    ({"XDG_CACHE_HOME": str(tmp_path / "file")}, "", ""),
    ({"XDG_CACHE_HOME": "relative"}, "", ""),
  ]
  results = run(cases)
  assert [result[:3] for result in results] == [
    [0, compiled, 27.0] for compiled in (True, False, True, True, True, True)
  ]
  said = [result[3] for result in results]
  assert said[0] == said[1] == said[3] == ""
  assert "Error reading persistent compilation cache entry" in said[2]
  for message in said[4:]:
    assert message.startswith("no compilation cache in ") and message.count("\n") == 1
  assert not (ROOT / "relative").exists()


def test_an_unbounded_cache_is_kept(tmp_path):
  cached = {"XDG_CACHE_HOME": str(tmp_path), "JAX_COMPILATION_CACHE_MAX_SIZE": "-1"}
  assert [result[1] for result in run([(cached, "", ""), (cached, "", "")])] == [True, False]
  assert not list(tmp_path.rglob("*-atime"))


def test_an_entry_that_a_kill_left_incomplete_is_replaced(tmp_path):
  cached = {"XDG_CACHE_HOME": str(tmp_path)}
  assert run([(cached, "", "")])[0][1]
  for file in tmp_path.rglob("*-atime"):
    file.unlink()
  assert [result[1] for result in run([(cached, "", ""), (cached, "", "")])] == [True, False]
