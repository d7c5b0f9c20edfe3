"""Persistent compilation cache: programs that an earlier run compiled are read from a folder.

JAX identifies an entry by the program, the versions of JAX and its compiler, the compiler's flags
and the devices. It reads an entry that is damaged as if there were none, with a warning.
"""

import contextlib
import os
import pathlib
import platform
import zlib

import filelock
import jax
import numpy as np
from jax.experimental import multihost_utils

from vswin_jax.common.logging import logger
from vswin_jax.common.messages import one_line
from vswin_jax.common.paths import cache_folder
from vswin_jax.distributed.consistency import sees_same_folder

_MAX_BYTES = 8 * 2**30
# Variables of JAX, which take precedence.
_FOLDER, _SIZE = "JAX_COMPILATION_CACHE_DIR", "JAX_COMPILATION_CACHE_MAX_SIZE"
_ENABLE = "JAX_ENABLE_COMPILATION_CACHE"
# As JAX names its files.
_ENTRY, _LAST_USE, _LOCK = "-cache", "-atime", ".lockfile"


def use_compilation_cache() -> None:
  """Makes JAX keep compiled programs in a folder of the user, the least recently used up to 8 GiB.

  A folder that is given by JAX's own configuration is used as it is; if that of some processes
  gives one or turns the cache off, the others have none. Of several processes, JAX lets only the
  first write, so these use a cache only if all see the same folder; all must call this.
  Without a folder that can be written to, there is no cache.
  """
  given = os.environ.get(_FOLDER) is not None or jax.config.jax_compilation_cache_dir is not None
  is_wanted = jax.config.jax_enable_compilation_cache and not given
  wanted = multihost_utils.process_allgather(np.bool_(is_wanted))
  if not wanted.all():
    if wanted.any():
      logger.info(
        "no default compilation cache: %s or %s is set in some processes; set it in all",
        _FOLDER,
        _ENABLE,
      )
    return
  max_size = jax.config.jax_compilation_cache_max_size if _SIZE in os.environ else _MAX_BYTES
  # Programs for one CPU may crash on another.
  folder = cache_folder() / "compiled" / _cpu_id()
  problem = _prepare(folder, has_last_uses=max_size != -1)
  if multihost_utils.process_allgather(np.bool_(problem is not None)).any():
    problem = problem or "another process can't write there"
  elif not sees_same_folder(folder).all():
    problem = f"processes see different folders; give a shared one as {_FOLDER}"
  if problem is not None:
    logger.info("no compilation cache in %s: %s", folder, problem)
    return
  jax.config.update("jax_compilation_cache_dir", str(folder))
  jax.config.update("jax_compilation_cache_max_size", max_size)


def _prepare(folder: pathlib.Path, has_last_uses: bool) -> str | None:
  """Creates the folder and removes what killed processes left; returns why that is not possible.

  Args:
    has_last_uses: whether JAX writes the last use of each entry, which it does to bound the size.
  """
  if not folder.is_absolute():
    return "there is no home directory"
  try:
    folder.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder / _LOCK, timeout=10):
      # A full disk fails here and not at every program.
      probe = folder / ".probe"
      probe.write_bytes(bytes(4096))
      probe.unlink()
      for entry in folder.glob(f"*{_ENTRY}") if has_last_uses else ():
        if not entry.with_name(f"{entry.name.removesuffix(_ENTRY)}{_LAST_USE}").exists():
          # Incomplete; JAX 0.10 adds nothing to a folder that has such an entry.
          entry.unlink()
  except (OSError, NotImplementedError) as error:  # the latter: no locks on this disk
    return one_line(error)
  return None


def _cpu_id() -> str:
  """Returns a name for CPUs with the same instructions."""
  features = platform.processor()
  with contextlib.suppress(OSError):
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    features = next((line for line in lines if line.startswith(("flags", "Features"))), features)
  return f"{platform.machine()}-{zlib.crc32(features.encode()):08x}"
