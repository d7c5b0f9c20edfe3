"""What the readers of files share: their error and their limits."""

# numpy's own limit on axes.
MOST_AXES = 64
DAMAGED = "the file is damaged; download or save it again"


class FileError(ValueError):
  """A file that can't be read; the message is one line: what was wrong and what to do."""


def is_count(value: object) -> bool:
  """Whether it is an int that can count elements or bytes."""
  return type(value) is int and 0 <= value < 2**62
