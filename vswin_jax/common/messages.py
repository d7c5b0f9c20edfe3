"""Texts of other libraries as one line of a message."""


def one_line(text: object) -> str:
  """Returns a text, or that of an error, with single spaces in place of all white space."""
  return " ".join(str(text).split())


def describe_error(error: BaseException, message: str | None = None) -> str:
  """Returns the type of an error and its message as one line of at most about 400 characters.

  Args:
    message: the message if it is not all of the error's text.
  """
  text = f"{type(error).__name__}: {one_line(error if message is None else message)}"
  # The operation that failed comes first, the reason last.
  return text if len(text) <= 400 else f"{text[:150]} ... {text[-250:]}"


def shorten(name: str, width: int) -> str:
  """Returns a name of at most `width` characters, shortened in the middle."""
  if len(name) <= width:
    return name
  head = (width - 1) // 2
  return f"{name[:head].rstrip()}\N{HORIZONTAL ELLIPSIS}{name[head + 1 - width :].lstrip()}"
