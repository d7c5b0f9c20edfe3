"""Names of local files and folders, and files that are there whole or not at all."""

import contextlib
import csv
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence


class LocalPathError(ValueError):
  """A name that stands for nothing on this machine; one line."""


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
