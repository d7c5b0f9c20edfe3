"""Errors and limits shared by the readers of weight files."""

# Limit of numpy.
MOST_AXES = 64
DAMAGED = "the file is damaged; download or save it again"


class FileError(ValueError):
  """Raised when a file can't be read; the message is one line."""


def is_count(value: object) -> bool:
  """Returns whether a value is an int that can count elements or bytes."""
  return type(value) is int and 0 <= value < 2**62
