"""Annotation files as text: lines, tables and JSON, with the line that an error is about."""

import csv
import io
import json
import os
import re
from collections.abc import Iterator

from vswin_jax.data.annotations.common import AnnotationError

_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}


def read_text(path: str) -> str:
  """The text of a UTF-8 file, with or without a byte order mark.

  Raises:
    AnnotationError: no such file, or no UTF-8.
  """
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


def read_lines(path: str) -> Iterator[tuple[int, str]]:
  """Numbers and texts of the lines that are not blank, without surrounding space."""
  for number, line in enumerate(read_text(path).split("\n"), 1):
    if line := line.strip():
      yield number, line


def first_line(path: str) -> str:
  return next((line for _, line in read_lines(path)), "")


def delimiter(line: str) -> str | None:
  """What separates the cells of a line of CSV: a comma, else a semicolon, else a tab."""
  unquoted = re.sub('"[^"]*"', "", line)
  return next((one for one in _DELIMITERS if one in unquoted), None)


def read_table(path: str) -> Iterator[tuple[int, list[str]]]:
  """Line numbers and cells of the rows of a CSV file that are not blank; the first is the header.

  The first line tells what separates cells.

  Raises:
    AnnotationError: no CSV, or a row with another number of cells than the first.
  """
  separator = delimiter(first_line(path)) or ","
  text = io.StringIO(read_text(path), newline="")
  reader = csv.reader(text, delimiter=separator, strict=True)
  width = 0
  while True:
    try:
      cells = next(reader, None)
    except csv.Error as error:
      raise AnnotationError(f"{path}, line {reader.line_num}: no valid CSV: {error}") from error
    if cells is None:
      return
    cells = [cell.strip() for cell in cells]
    if not any(cells):
      continue
    width = width or len(cells)
    if len(cells) != width:
      raise AnnotationError(
        f"{path}, line {reader.line_num}: expected {width} columns, as in the first line, got "
        f"{len(cells)}; quote cells that hold {_DELIMITERS[separator]}"
      )
    yield reader.line_num, cells


def read_json(path: str):
  """What a JSON file holds.

  Raises:
    AnnotationError: no JSON, or a key that occurs twice in one object.
  """

  def as_dict(pairs: list[tuple[str, object]]) -> dict:
    result = dict(pairs)
    if len(result) < len(pairs):
      names = [name for name, _ in pairs]
      repeated = next(name for name in names if names.count(name) > 1)
      raise AnnotationError(f"{path}: the key {repeated!r} occurs twice in one object")
    return result

  text = read_text(path)
  try:
    result = json.loads(text, object_pairs_hook=as_dict)
    # Halves of a surrogate pair, in escapes, are no text that could be written again.
    if "\\ud" in text.lower():
      json.dumps(result, ensure_ascii=False).encode()
    return result
  except AnnotationError:
    raise
  except json.JSONDecodeError as error:
    raise AnnotationError(f"{path}, line {error.lineno}: no valid JSON: {error.msg}") from error
  except RecursionError as error:
    raise AnnotationError(f"{path}: no valid annotations: nested too deeply") from error
  except ValueError as error:
    raise AnnotationError(f"{path}: no valid annotations: {error}") from error


def suffix(path: str) -> str:
  return os.path.splitext(path)[1].lower()
