"""Exit statuses and one-line errors of the commands.

The launchers restart a command that ends with `UNEXPECTED` or `TRANSIENT`, as it may succeed next
time. After a status of `USER_ERRORS` the command, or its input, must be changed first.
"""

import ast
import contextlib
import os
import re
import sys
import traceback
from collections.abc import Iterator

from absl import app, flags

from vswin_jax.common.messages import one_line

# 1 is used by the commands, 2 by Python for its own command line.
USER_ERRORS = (1, 2)
UNEXPECTED = 70
TRANSIENT = 75
# Errors of the operating system that remain until somebody acts.
_LASTING = (
  FileExistsError, FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError,
)  # fmt: skip
# The same, in errors of the libraries for buckets and clusters.
_LASTING_CODES = ("400", "401", "403")
_LASTING_WORDS = re.compile(r"\b(Forbidden|PERMISSION_DENIED|UNAUTHENTICATED)\b")


@contextlib.contextmanager
def one_line_errors(interrupted: str, errors: tuple = (ValueError,)) -> Iterator[None]:
  """Ends the program with one line instead of a traceback after errors meant for the user.

  Args:
    interrupted: state of the output after Ctrl-C, for the message.
    errors: exceptions, besides OSError, whose messages are written for the user. Their attribute
      `exit_status` becomes the exit status; without it, that is 1. Other exceptions pass through.
  """
  try:
    yield
  except BrokenPipeError:
    # The reader, such as `head`, has ended; without this, Python's flush at exit fails.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(1)
  except (OSError, *errors) as error:
    status = getattr(error, "exit_status", 1)
    # Without a number, a library and not the operating system raised it.
    if isinstance(error, OSError) and error.errno and is_transient(error):
      status = TRANSIENT
    line = f"error: {one_line(error) if isinstance(error, OSError) else error}"
    if status == 1:
      sys.exit(line)
    print(line, file=sys.stderr)
    sys.exit(status)
  except KeyboardInterrupt:
    sys.exit(f"error: interrupted; {interrupted}")


@contextlib.contextmanager
def unexpected_errors() -> Iterator[None]:
  """Ends the program with a traceback and the status `UNEXPECTED` after an exception."""
  try:
    yield
  except Exception:
    traceback.print_exc()
    sys.exit(UNEXPECTED)


def is_transient(error: BaseException | None) -> bool:
  """Returns whether an error of files, disks or networks may be gone at the next attempt.

  Missing files and missing rights, also as the cause of the error, are not transient.
  """
  while error is not None:
    code = getattr(error, "code", None) or getattr(error, "status", None)
    if isinstance(error, _LASTING) or str(code) in _LASTING_CODES:
      return False
    if _LASTING_WORDS.search(str(error)):
      return False
    error = error.__cause__
  return True


def refuse_arguments(arguments: list[str]) -> None:
  """Ends the program with one line if the command line has arguments that are not options."""
  if arguments[1:]:
    sys.exit(f"error: unexpected argument {arguments[1]!r}; options start with --")


def parse_config_flags(arguments: list[str]) -> list[str]:
  """Parses flags, and ends the program with one line if one is unknown or the config is invalid."""
  app.define_help_flags()
  try:
    return flags.FLAGS(arguments)
  except OSError as error:
    sys.exit(f"error: {one_line(error)}")
  except flags.Error as error:
    # For an error inside a config file it is the whole traceback, with the error last.
    sys.exit(f"error: {str(error).strip().splitlines()[-1]}")
  except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
    text = str(error.args[0] if error.args else error)
    with contextlib.suppress(SyntaxError, ValueError):  # some texts are in quotes
      text = str(ast.literal_eval(text))
    sys.exit(f"error: config key {one_line(text)}")
