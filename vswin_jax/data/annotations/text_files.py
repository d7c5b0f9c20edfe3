"""Text, CSV and JSON files.

Functions raise AnnotationError, with the file and the line, for files that are missing or have
other content than expected. Functions that yield pairs give the place of an entry, for messages,
and the entry.
"""

import csv
import io
import json
import os
import re
from collections.abc import Iterator, Sequence

from vswin_jax.data.annotations.common import AnnotationError


def read_text(path: str) -> str:
  """Returns the content of a UTF-8 file, with or without a byte order mark."""
  try:
    with open(path, "rb") as file:
      content = file.read()
  except OSError as error:
    raise AnnotationError(f"{path}: {error.strerror}; expected a text file") from error
  try:
    return content.decode("utf-8-sig")
  except UnicodeDecodeError as error:
    line = content.count(b"\n", 0, error.start) + 1
    raise AnnotationError(f"{path}, line {line}: not UTF-8 text; save the file as UTF-8") from error


def read_lines(path: str) -> Iterator[tuple[str, str]]:
  """Yields the stripped lines of a file that are not blank."""
  for number, line in enumerate(read_text(path).split("\n"), 1):
    if line := line.strip():
      yield f"{path}, line {number}", line


def is_table(path: str) -> bool:
  """Returns whether a file is a table: its suffix is .csv or .tsv and its first line has cells."""
  return suffix(path) in (".csv", ".tsv") and _delimiter(path) is not None


def _delimiter(path: str) -> str | None:
  """Returns the delimiter in the first line: a comma, else a semicolon, else a tab, else None."""
  _, line = next(read_lines(path), ("", ""))
  unquoted = re.sub('"[^"]*"', "", line)
  return next((delimiter for delimiter in ",;\t" if delimiter in unquoted), None)


def read_table(path: str, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
  """Yields the rows of a table as dicts by the lower-case names in the first line.

  Tables with no more than the columns may lack the first line.

  Args:
    path: of the file.
    columns: names of columns; all but the last are required.
  """
  delimiter = _delimiter(path)
  reader = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=delimiter, strict=True)
  header = ()
  try:
    for cells in reader:
      cells = [cell.strip() for cell in cells]
      where = f"{path}, line {reader.line_num}"
      if not any(cells):
        continue
      if not header:
        header = [name.lower() for name in cells]
        if set(columns[:-1]) <= set(header):
          continue
        if set(columns) & set(header) or len(cells) != len(columns):
          raise AnnotationError(
            f"{where}: expected the columns {','.join(columns)}, got {','.join(cells)!r:.200}"
          )
        header = columns
      if len(cells) != len(header):
        raise AnnotationError(
          f"{where}: expected {len(header)} columns as in the first line, got {len(cells)}; quote "
          f"cells that contain {delimiter!r}"
        )
      yield where, dict(zip(header, cells))
  except csv.Error as error:
    raise AnnotationError(f"{path}, line {reader.line_num}: not valid CSV: {error}") from error


def read_json(path: str):
  """Returns the content of a JSON file whose objects have no key twice."""
  text = read_text(path)
  try:
    content = json.loads(text, object_pairs_hook=_object)
    # Escaped halves of a surrogate pair can't be written again.
    json.dumps(content, ensure_ascii=False).encode()
    return content
  except (ValueError, RecursionError) as error:
    raise AnnotationError(f"{path}: not valid JSON: {error}") from error


def _object(pairs: list[tuple[str, object]]) -> dict:
  result = dict(pairs)
  if len(result) < len(pairs):
    raise ValueError(f"a key occurs twice in an object with the keys {', '.join(result):.200}")
  return result


def read_objects(path: str) -> Iterator[tuple[str, dict]]:
  """Yields the objects of the list in a JSON file."""
  content = read_json(path)
  if not isinstance(content, list):
    raise AnnotationError(f"{path}: expected a list of objects")
  for number, value in enumerate(content, 1):
    where = f"{path}, entry {number}"
    if not isinstance(value, dict):
      raise AnnotationError(f"{where}: expected an object, got {value!r:.200}")
    yield where, value


def suffix(path: str) -> str:
  """Returns the suffix of a path in lower case, such as ".csv"."""
  return os.path.splitext(path)[1].lower()
