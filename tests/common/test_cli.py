"""How commands end: one line, and a status that says whether the same command may succeed."""

import errno
import subprocess
import sys

import pytest

from vswin_jax.checkpoints.errors import storage_error
from vswin_jax.common.cli import TRANSIENT, UNEXPECTED, USER_ERRORS, one_line_errors
from vswin_jax.data.pipeline import LostWorkerError
from vswin_jax.distributed.errors import StartupError, TransientStartupError


class BucketError(Exception):
  """As gcsfs and Kubernetes raise them."""

  def __init__(self, code: int):
    super().__init__("an error of a service")
    self.code = code


@pytest.mark.parametrize(
  "error, status",
  [
    (ValueError("odd value"), 1),
    (FileNotFoundError(errno.ENOENT, "No such file", "a.mp4"), 1),
    (PermissionError(errno.EACCES, "Permission denied", "a.mp4"), 1),
    (OSError("a library says so"), 1),
    (OSError(errno.EIO, "Input/output error"), 75),
    (LostWorkerError("a data worker died"), 75),
    (StartupError("two have one number"), 1),
    (TransientStartupError("one is late"), 75),
    (storage_error("can't write", ConnectionError("reset")), 75),
    (storage_error("can't write", OSError("Forbidden: gs://runs")), 1),
    (storage_error("can't write", ValueError("PERMISSION_DENIED: no rights")), 1),
    (storage_error("can't write", BucketError(403)), 1),
    (storage_error("can't write", BucketError(503)), 75),
  ],
)
def test_errors_end_in_one_line_and_their_status(error, status, capsys):
  with pytest.raises(SystemExit) as end, one_line_errors("", (ValueError, LostWorkerError)):
    raise error
  code = end.value.code
  # Python prints a text and ends with 1.
  assert (1 if isinstance(code, str) else code) == status
  line = code if isinstance(code, str) else capsys.readouterr().err.rstrip("\n")
  assert line == f"error: {error}"


def test_a_command_line_that_python_refuses_is_a_user_error(tmp_path):
  ended = subprocess.run([sys.executable, tmp_path / "missing.py"], capture_output=True)
  assert ended.returncode in USER_ERRORS
  assert not {0, UNEXPECTED, TRANSIENT}.intersection(USER_ERRORS)


def test_other_errors_keep_their_traceback():
  with pytest.raises(KeyError), one_line_errors(""):
    raise KeyError("a fault of the program")
