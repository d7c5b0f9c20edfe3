"""How the commands of this package end when something goes wrong.

Exit statuses of `USER_ERRORS` say that the command has to be changed, `UNEXPECTED` and `TRANSIENT`
that the same command may succeed. What launches runs goes by them.
"""

import ast
import contextlib
import os
import re
import sys
import traceback
from collections.abc import Iterator

from absl import app, flags

# 1 is how these commands end, 2 how Python does if its own command line is wrong.
USER_ERRORS = (1, 2)
UNEXPECTED = 70
TRANSIENT = 75
# Of the errors of an operating system, those that stay until somebody does something.
_LASTING = (
  FileExistsError, FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError,
)  # fmt: skip
# How buckets and clusters say so, where their libraries raise errors of their own.
_LASTING_CODES = ("400", "401", "403")
_LASTING_WORDS = re.compile(r"\b(Forbidden|PERMISSION_DENIED|UNAUTHENTICATED)\b")


@contextlib.contextmanager
def one_line_errors(interrupted: str, errors: tuple = (ValueError,)) -> Iterator[None]:
  """Ends the program with one line in place of a traceback.

  Args:
    interrupted: what an interruption leaves behind, in words.
    errors: the exceptions, besides OSError, that speak to the user; their `exit_status`, if they
      have one, takes the place of 1. Every error of this library's own is a ValueError.
  """
  try:
    yield
  except BrokenPipeError:
    # Whoever read the output has enough; Python's own flush at exit would complain.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(1)
  except (OSError, *errors) as error:
    status = getattr(error, "exit_status", 1)
    # Without a number it is no error of the operating system, but of a library that says it so.
    if isinstance(error, OSError) and error.errno and is_transient(error):
      status = TRANSIENT
    line = f"error: {' '.join(str(error).split()) if isinstance(error, OSError) else error}"
    if status == 1:
      sys.exit(line)
    print(line, file=sys.stderr)
    sys.exit(status)
  except KeyboardInterrupt:
    sys.exit(f"error: interrupted; {interrupted}")


@contextlib.contextmanager
def unexpected_errors() -> Iterator[None]:
  """Ends the program with the status `UNEXPECTED` after the traceback of an error."""
  try:
    yield
  except Exception:
    traceback.print_exc()
    sys.exit(UNEXPECTED)


def is_transient(error: BaseException | None) -> bool:
  """Whether what files, disks or networks raised may be gone at the next try: not if it, or its
  cause, stays until somebody does something."""
  while error is not None:
    code = getattr(error, "code", None) or getattr(error, "status", None)
    if isinstance(error, _LASTING) or str(code) in _LASTING_CODES:
      return False
    if _LASTING_WORDS.search(str(error)):
      return False
    error = error.__cause__
  return True


def refuse_arguments(arguments: list[str]) -> None:
  """Ends a program that takes options alone if it was given anything else."""
  if arguments[1:]:
    sys.exit(f"error: unexpected argument {arguments[1]!r}; options start with --")


def parse_config_flags(arguments: list[str]) -> list[str]:
  """Parses flags; one that does not exist, or a config that can't be made of them, ends the program
  with one line."""
  app.define_help_flags()
  try:
    return flags.FLAGS(arguments)
  except OSError as error:
    sys.exit(f"error: {' '.join(str(error).split())}")
  except flags.Error as error:
    # Of an error inside a config file the whole traceback, the error itself last.
    sys.exit(f"error: {str(error).strip().splitlines()[-1]}")
  except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
    text = str(error.args[0] if error.args else error)
    with contextlib.suppress(SyntaxError, ValueError):  # some are quoted once more
      text = str(ast.literal_eval(text))
    sys.exit(f"error: config key {' '.join(text.split())}")
