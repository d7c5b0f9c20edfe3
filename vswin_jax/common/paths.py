"""Local and remote paths, and atomic file writes."""

import contextlib
import csv
import importlib.util
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeAlias, Union

if TYPE_CHECKING:
  from etils import epath

# epath.Path is for buckets; it has the methods of pathlib.Path.
AnyPath: TypeAlias = Union[pathlib.Path, "epath.Path"]

_BUCKETS = "gs://"


class LocalPathError(ValueError):
  """Raised for a path that is neither local nor in a bucket that can be read."""


def is_in_bucket(name: str | os.PathLike) -> bool:
  """Returns whether a path is in a bucket, such as "gs://bucket/folder"."""
  return os.fspath(name).startswith(_BUCKETS)


def file_path(name: str | os.PathLike) -> AnyPath:
  """Returns the path of a local file, see `local_path`, or of one in a bucket.

  Raises:
    LocalPathError: the name has another scheme, names no bucket, or gcsfs is not installed.
  """
  if not is_in_bucket(name):
    return local_path(name)
  name = os.fspath(name)
  if not name.removeprefix(_BUCKETS).partition("/")[0]:
    raise LocalPathError(f"{name} names no bucket; expected gs://BUCKET/FOLDER")
  if importlib.util.find_spec("gcsfs") is None:
    raise LocalPathError(
      f"{name} is in a bucket, and gcsfs, which reads buckets, is not installed: "
      "pip install 'vswin_jax[gcs]'"
    )
  # Data workers, which read no buckets, start faster without it.
  from etils import epath

  return epath.Path(name)


def local_path(name: str | os.PathLike) -> pathlib.Path:
  """Returns an absolute path, with "~" expanded.

  Raises:
    LocalPathError: the name is a URL.
  """
  name = os.fspath(name)
  if "://" in name:
    raise LocalPathError(f"{name} is not a file or folder of this machine")
  return pathlib.Path(os.path.expanduser(name)).absolute()


def cache_folder() -> pathlib.Path:
  """Returns the folder of files that can be made again: downloads, compiled programs.

  It is `$VSWIN_JAX_CACHE`, `$XDG_CACHE_HOME/vswin_jax` or ~/.cache/vswin_jax; without a home
  directory it is relative.
  """
  folder = os.environ.get("VSWIN_JAX_CACHE")
  if not folder:
    folder = os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "vswin_jax")
  return pathlib.Path(os.path.expanduser(folder))


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Replaces a file atomically: yields a temporary path to write to, which is renamed at the end.

  After a kill or an error, the file is unchanged.
  """
  path = pathlib.Path(path)
  temporary = path.with_name(f".{path.name}.tmp")
  try:
    yield temporary
    temporary.replace(path)
  finally:
    temporary.unlink(missing_ok=True)


def write_table(path: str | os.PathLike, header: Sequence[str], rows: Iterable[Sequence]) -> None:
  """Writes a CSV file atomically."""
  with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
    table = csv.writer(file)
    table.writerow(header)
    table.writerows(rows)
