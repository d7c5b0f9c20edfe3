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
