"""Workdir of a run, local or in a bucket.

Checkpoints are written to the workdir directly. Smaller files are written to a local folder; if the
workdir is in a bucket, that is a temporary folder whose files are uploaded after each change.
"""

import contextlib
import dataclasses
import os
import pathlib
import tempfile
from collections.abc import Iterator

import jax

from vswin_jax.checkpoints.errors import root_cause
from vswin_jax.checkpoints.manager import checkpoints_of
from vswin_jax.common.cli import TRANSIENT, is_transient
from vswin_jax.common.logging import logger
from vswin_jax.common.paths import AnyPath, file_path, is_in_bucket
from vswin_jax.distributed.consistency import is_first


class RunFolderError(ValueError):
  """Raised when a workdir can't be read or written."""

  def __init__(self, message: str, cause: BaseException):
    super().__init__(message)
    self.exit_status = TRANSIENT if is_transient(cause) else 1


@dataclasses.dataclass(frozen=True)
class RunFolder:
  """Paths of a run.

  Attributes:
    path: workdir, local or in a bucket.
    local: local folder of the small files; the workdir itself if that is local.
  """

  path: AnyPath
  local: pathlib.Path
  _published: dict = dataclasses.field(default_factory=dict, repr=False)

  @property
  def checkpoints(self) -> AnyPath:
    return checkpoints_of(self.path)

  def publish(self) -> None:
    """Uploads the small files that changed since the last call, if the workdir is in a bucket.

    Only the first process does. A failed upload is logged, and the next call tries it again.
    """
    try:
      self._publish()
    except RunFolderError as error:
      logger.warning("%s; trying again later", error)

  def store_profile(self, directory: pathlib.Path) -> None:
    """Copies the files of a trace of this process to `profile` in the workdir.

    Args:
      directory: local folder, as `jax.profiler.start_trace` takes it.

    Raises:
      OSError, or an error of the bucket: a file can't be written.
    """
    for file in filter(pathlib.Path.is_file, directory.rglob("*")):
      folder = self.path / "profile" / file.parent.relative_to(directory).as_posix()
      folder.mkdir(parents=True, exist_ok=True)
      # Processes on one host would have the same names.
      process = f"{jax.process_index()}_" if jax.process_count() > 1 else ""
      (folder / f"{process}{file.name}").write_bytes(file.read_bytes())
    logger.info("profile: %s", self.path / "profile")

  def _publish(self) -> None:
    if self.local == self.path or not is_first():
      return
    for file in sorted(self.local.rglob("*")):
      if not file.is_file() or file.name.startswith("."):
        continue
      version = _version(file)
      if self._published.get(file) == version:
        continue
      target = self.path / file.relative_to(self.local).as_posix()
      try:
        target.write_bytes(file.read_bytes())
      except Exception as error:
        raise RunFolderError(f"can't write {target}: {root_cause(error)}", error) from error
      self._published[file] = version


def _version(file: pathlib.Path) -> tuple[int, int]:
  found = file.stat()
  return found.st_mtime_ns, found.st_size


@contextlib.contextmanager
def open_run_folder(workdir: str | os.PathLike) -> Iterator[RunFolder]:
  """Opens a workdir, which is created if it does not exist.

  The small files are uploaded at the end of the context, also after an error.

  Args:
    workdir: local folder, or "gs://bucket/folder".

  Raises:
    LocalPathError: neither a local folder nor one in a bucket.
    RunFolderError: the workdir can't be created, read or, at the end, written.
  """
  path = file_path(workdir)
  if not is_in_bucket(path):
    try:
      path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
      raise RunFolderError(f"can't create the workdir: {error}", error) from error
    yield RunFolder(path, path)
    return
  with tempfile.TemporaryDirectory(prefix="vswin_jax_run_") as temporary:
    folder = RunFolder(path, pathlib.Path(temporary))
    _fetch(folder)
    try:
      yield folder
    except BaseException:
      folder.publish()
      raise
    folder._publish()


def _fetch(folder: RunFolder) -> None:
  """Downloads the small files of a resumed run; the others are in subfolders."""
  try:
    # In a bucket there are no folders without files.
    entries = list(folder.path.iterdir()) if folder.path.exists() else []
    for entry in filter(lambda entry: entry.is_file(), entries):
      target = folder.local / entry.name
      target.write_bytes(entry.read_bytes())
      folder._published[target] = _version(target)
  except Exception as error:
    raise RunFolderError(
      f"can't read {folder.path}: {root_cause(error)}. Check the name of the bucket, and that this "
      "machine may read and write it",
      error,
    ) from error
