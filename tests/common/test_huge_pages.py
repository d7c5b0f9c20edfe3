"""Restarting a program with huge pages."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import os, pathlib, sys
from vswin_jax.common import huge_pages
huge_pages._KERNEL_MODE = pathlib.Path(sys.argv[1])
huge_pages._ACCELERATORS = (sys.argv[2],)
print("start")
for _ in range(2):
  huge_pages.suggest_huge_pages()
huge_pages.restart_with_huge_pages()
print(os.environ.get("GLIBC_TUNABLES"), *sys.argv[3:])
"""


def run(tmp_path, mode="always [madvise] never", accelerator="/nowhere", **environment):
  """Returns the lines that `SCRIPT` prints, its later arguments being `--name=a b` and `ü*`."""
  (tmp_path / "script.py").write_text(SCRIPT)
  (tmp_path / "mode").write_text(mode)
  command = [tmp_path / "script.py", tmp_path / "mode", accelerator, "--name=a b", "ü*"]
  names = ("GLIBC_TUNABLES", "JAX_PLATFORMS", "VSWIN_JAX_HUGE_PAGES")
  inherited = {name: value for name, value in os.environ.items() if name not in names}
  result = subprocess.run(
    [sys.executable, *command],
    env=inherited | {"PYTHONPATH": ":".join(sys.path)} | environment,
    capture_output=True,
    text=True,
    check=True,
  )
  suggestion = "set GLIBC_TUNABLES=glibc.malloc.hugetlb=1 before Python starts"
  restarts = result.stdout.count("start\n") - 1
  assert result.stderr.count(suggestion) == restarts, "said once, where it would help"
  return result.stdout.splitlines()


needs_glibc = pytest.mark.skipif(sys.platform != "linux", reason="glibc is for Linux")


@needs_glibc
def test_a_program_restarts_once_with_its_arguments(tmp_path):
  expected = ["start", "start", "glibc.malloc.hugetlb=1 --name=a b ü*"]
  assert run(tmp_path) == expected
  both = "glibc.malloc.arena_max=2:glibc.malloc.hugetlb=1 --name=a b ü*"
  assert run(tmp_path, GLIBC_TUNABLES="glibc.malloc.arena_max=2") == ["start", "start", both]


@needs_glibc
def test_it_does_not_restart_where_that_does_not_help(tmp_path):
  as_is = ["start", "None --name=a b ü*"]
  assert run(tmp_path, mode="[always] madvise never") == as_is
  assert run(tmp_path, VSWIN_JAX_HUGE_PAGES="0") == as_is
  assert run(tmp_path, accelerator=str(tmp_path)) == as_is
  # An accelerator that JAX is told not to use.
  assert len(run(tmp_path, accelerator=str(tmp_path), JAX_PLATFORMS="cpu")) == 3
  chosen = "glibc.malloc.hugetlb=0"
  assert run(tmp_path, GLIBC_TUNABLES=chosen) == ["start", f"{chosen} --name=a b ü*"]
