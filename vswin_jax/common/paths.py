"""Names of files and folders, here or in a bucket, and files that are there whole or not at all."""

import contextlib
import csv
import importlib.util
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeAlias, Union

if TYPE_CHECKING:
  from etils import epath

# The second, for what is in a bucket, is used alike.
AnyPath: TypeAlias = Union[pathlib.Path, "epath.Path"]

_BUCKETS = "gs://"


class LocalPathError(ValueError):
  """A name that stands for nothing that can be read or written here; one line."""


def is_in_bucket(name: str | os.PathLike) -> bool:
  """Whether a name is that of something in a bucket, "gs://bucket/folder"."""
  return os.fspath(name).startswith(_BUCKETS)


def file_path(name: str | os.PathLike) -> AnyPath:
  """The path of something local, see `local_path`, or in a bucket.

  Raises:
    LocalPathError: the name of something elsewhere, or in a bucket without what reads buckets.
  """
  if not is_in_bucket(name):
    return local_path(name)
  name = os.fspath(name)
  if not name.removeprefix(_BUCKETS).partition("/")[0]:
    raise LocalPathError(f"{name} names no bucket; expected gs://BUCKET/FOLDER")
  if importlib.util.find_spec("gcsfs") is None:
    raise LocalPathError(
      f"{name} is in a bucket, and gcsfs, which reads those, is not installed: "
      "pip install 'vswin_jax[gcs]'"
    )
  # Not needed by those that decode videos.
  from etils import epath

  return epath.Path(name)


def local_path(name: str | os.PathLike) -> pathlib.Path:
  """An absolute path; "~" is the home folder where there is one.

  Raises:
    LocalPathError: the name of something on another machine.
  """
  name = os.fspath(name)
  if "://" in name:
    raise LocalPathError(f"{name} is not a file or folder of this machine")
  return pathlib.Path(os.path.expanduser(name)).absolute()


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Yields a name to write to; at the end of the context that file takes the place of `path`.

  A kill or an error leaves what was there before.
  """
  path = pathlib.Path(path)
  temporary = path.with_name(f".{path.name}.tmp")
  try:
    yield temporary
    temporary.replace(path)
  finally:
    temporary.unlink(missing_ok=True)


def write_table(path: str | os.PathLike, header: Sequence[str], rows: Iterable[Sequence]) -> None:
  """Writes a CSV file, whole or not at all."""
  with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
    table = csv.writer(file)
    table.writerow(header)
    table.writerows(rows)
