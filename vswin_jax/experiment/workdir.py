"""The folder of a run, on this machine or in a bucket.

Checkpoints go straight to where the run is. The small files beside them are always written to a
local folder; for a run in a bucket that is a temporary one, copied there again and again.
"""

import contextlib
import dataclasses
import os
import pathlib
import tempfile
from collections.abc import Iterator

from vswin_jax.checkpoints.errors import root_cause
from vswin_jax.checkpoints.manager import checkpoints_of
from vswin_jax.common.cli import TRANSIENT, is_transient
from vswin_jax.common.paths import AnyPath, file_path, is_in_bucket
from vswin_jax.common.progress import logger

# Of a run that goes on: these are large, and what is written to them is added.
_NOT_FETCHED = ("checkpoints", "tensorboard")


class RunFolderError(ValueError):
  """A folder of a run that can't be read or written; one line says which, and why.

  Attributes:
    exit_status: of the program that it ends.
  """

  def __init__(self, message: str, cause: BaseException):
    super().__init__(message)
    self.exit_status = TRANSIENT if is_transient(cause) else 1


@dataclasses.dataclass(frozen=True)
class RunFolder:
  """Where the files of a run are.

  Attributes:
    path: the folder of the run, local or in a bucket.
    local: where its small files are read and written.
    is_first: this process, of all of the run, writes them.
  """

  path: AnyPath
  local: pathlib.Path
  is_first: bool = True
  _published: dict = dataclasses.field(default_factory=dict, repr=False)

  @property
  def checkpoints(self) -> AnyPath:
    return checkpoints_of(self.path)

  def publish(self) -> None:
    """Copies the small files that changed since the last time to the bucket, if the run is in one.

    What can't be copied now is said and tried again at the next call.
    """
    try:
      self._publish()
    except RunFolderError as error:
      logger.warning("%s; it is tried again later", error)

  def _publish(self) -> None:
    if self.local == self.path or not self.is_first:
      return
    for file in sorted(self.local.rglob("*")):
      if not file.is_file() or file.name.startswith("."):
        continue
      found = file.stat()
      version = found.st_mtime_ns, found.st_size
      if self._published.get(file) == version:
        continue
      target = self.path / file.relative_to(self.local).as_posix()
      try:
        target.write_bytes(file.read_bytes())
      except Exception as error:
        raise RunFolderError(f"can't write {target}: {root_cause(error)}", error) from error
      self._published[file] = version


@contextlib.contextmanager
def open_run_folder(workdir: str | os.PathLike, *, is_first: bool = True) -> Iterator[RunFolder]:
  """Opens the folder of a run; one that does not exist is made.

  At the end of the context, also that of an error, the small files are published.

  Args:
    workdir: a local folder, or "gs://bucket/folder".
    is_first: this process, of all of the run, writes the small files.

  Raises:
    LocalPathError: the name of neither.
    RunFolderError: the folder can't be made, read or, at the end, written.
  """
  path = file_path(workdir)
  if not is_in_bucket(path):
    try:
      path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
      raise RunFolderError(f"can't make the folder of the run: {error}", error) from error
    yield RunFolder(path, path, is_first)
    return
  with tempfile.TemporaryDirectory(prefix="vswin_jax_run_") as temporary:
    folder = RunFolder(path, pathlib.Path(temporary), is_first)
    _fetch(folder)
    try:
      yield folder
    except BaseException:
      folder.publish()
      raise
    folder._publish()


def _fetch(folder: RunFolder) -> None:
  """Copies the small files of a run that goes on to this machine."""
  try:
    # In a bucket there are no folders without files.
    entries = list(folder.path.iterdir()) if folder.path.exists() else []
    for entry in entries:
      if entry.name in _NOT_FETCHED or not entry.is_file():
        continue
      target = folder.local / entry.name
      target.write_bytes(entry.read_bytes())
      found = target.stat()
      folder._published[target] = found.st_mtime_ns, found.st_size
  except Exception as error:
    raise RunFolderError(
      f"can't read {folder.path}: {root_cause(error)}. Check the name of the bucket, and that this "
      "machine may read and write it",
      error,
    ) from error
