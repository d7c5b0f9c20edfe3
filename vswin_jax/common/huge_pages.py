"""Huge pages for computation on the CPU.

XLA allocates large buffers in every step. With pages of 4 KiB, Linux spends about as long on page
faults as the CPU computes. glibc uses huge pages only if the environment of a new process says so.
"""

import functools
import glob
import os
import pathlib
import platform
import sys

from vswin_jax.common.logging import logger

SWITCH = "VSWIN_JAX_HUGE_PAGES"
_TUNABLES = "GLIBC_TUNABLES"
_SETTING = "glibc.malloc.hugetlb"
_KERNEL_MODE = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")
_ACCELERATORS = ("/dev/nvidia[0-9]*", "/dev/accel*", "/dev/vfio/[0-9]*", "/dev/kfd")


def restart_with_huge_pages() -> None:
  """Starts this program again with huge pages, if `huge_pages_help`.

  Call it before anything else: the process is replaced, and the new one begins from the start.
  """
  if huge_pages_help():
    tunables = [os.environ.get(_TUNABLES), f"{_SETTING}=1"]
    os.environ[_TUNABLES] = ":".join(filter(None, tunables))
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


@functools.cache
def suggest_huge_pages() -> None:
  """Logs once how to start Python with huge pages, if `huge_pages_help`."""
  if huge_pages_help():
    logger.warning(
      "this CPU computes faster with huge pages: set %s=%s=1 before Python starts, or %s=0 to hide "
      "this message",
      _TUNABLES,
      _SETTING,
      SWITCH,
    )


def huge_pages_help() -> bool:
  """Returns whether this process computes on a CPU and could use huge pages but does not.

  That takes Linux with glibc 2.35 or later and transparent huge pages on request ("madvise", the
  default of most distributions). The environment variable `VSWIN_JAX_HUGE_PAGES=0` forbids them.
  """
  if os.environ.get(SWITCH) == "0" or _SETTING in os.environ.get(_TUNABLES, ""):
    return False
  library, version = platform.libc_ver()
  if library != "glibc" or tuple(map(int, version.split(".")[:2])) < (2, 35):
    return False
  on_cpu = os.environ.get("JAX_PLATFORMS") == "cpu" or not any(map(glob.glob, _ACCELERATORS))
  try:
    return on_cpu and "[madvise]" in _KERNEL_MODE.read_text()
  except OSError:
    return False
