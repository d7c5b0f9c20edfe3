"""Download of released checkpoints into a cache folder, with resuming and verification."""

import hashlib
import http.client
import os
import pathlib
import shutil
import ssl
import urllib.error
import urllib.request

from tqdm import tqdm

from vswin_jax.common.messages import one_line
from vswin_jax.conversion.released import Released

_SECONDS_WITHOUT_DATA = 30.0
_ATTEMPTS = 2
_CHUNK_BYTES = 1 << 16


class DownloadError(ValueError):
  """Raised when a file can't be downloaded; the message says where to get it and put it."""


def fetch(released: Released, cache: str | os.PathLike) -> pathlib.Path:
  """Returns the path of a released file in the cache folder; downloads it if it is missing.

  A download is written to `<file>.part`, which a later call continues, and renamed once its size
  and SHA-256 are verified. A file that is in the cache already is verified too.

  Raises:
    DownloadError: no network, no such file on the server, or another file than was released.
  """
  path = pathlib.Path(cache).expanduser() / released.file
  part = path.with_name(f"{path.name}.part")
  try:
    if path.is_file():
      problem = _find_problem(released, path)
      if problem is not None:
        raise DownloadError(
          f"{path} is {problem}; remove it, or put the right file from {released.url} there"
        )
      return path
    path.parent.mkdir(parents=True, exist_ok=True)
    _download(released.url, part, path)
    problem = _find_problem(released, part)
    if problem is not None:
      part.unlink()
      raise DownloadError(
        f"{released.url} gave {problem}, which was deleted; try again, or put the right file at "
        f"{path}"
      )
    part.replace(path)
  except OSError as error:
    raise DownloadError(f"{path} can't be written: {error.strerror or error}") from error
  return path


def file_sha256(path: pathlib.Path) -> str:
  """Returns the SHA-256 of a file in hexadecimal digits."""
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _find_problem(released: Released, path: pathlib.Path) -> str | None:
  """Returns how a file differs from the released one in size or SHA-256, None if it does not."""
  size = path.stat().st_size
  if released.size not in (None, size):
    return f"a file of {size} bytes instead of {released.size}"
  known = released.sha256
  if known and not (digest := file_sha256(path)).startswith(known):
    return f"a file with SHA-256 {digest[: len(known)]} instead of {known}"
  return None


def _is_local_error(error: Exception) -> bool:
  """Returns whether an error is of the disk and not of the network."""
  network = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError)
  return not isinstance(error, (*network, ssl.SSLError)) and isinstance(error, OSError)


def _download(url: str, part: pathlib.Path, path: pathlib.Path) -> None:
  """Completes `part`, which becomes `path`."""
  problem = None
  for _ in range(_ATTEMPTS):
    try:
      _receive(url, part)
      return
    except urllib.error.HTTPError as error:
      problem = f"the server answered {error.code} {error.reason}"
      if error.code < 500:
        break
    except (OSError, http.client.HTTPException) as error:
      if _is_local_error(error):
        raise
      problem = one_line(getattr(error, "reason", None) or str(error) or type(error).__name__)
  raise DownloadError(
    f"{url} can't be downloaded ({problem}); get it another way and put it at {path}"
  )


def _receive(url: str, part: pathlib.Path) -> None:
  """Requests the bytes that `part` lacks and appends them."""
  start = part.stat().st_size if part.is_file() else 0
  headers = {"User-Agent": "vswin_jax"} | ({"Range": f"bytes={start}-"} if start else {})
  request = urllib.request.Request(url, headers=headers)
  try:
    response = urllib.request.urlopen(request, timeout=_SECONDS_WITHOUT_DATA)
  except urllib.error.HTTPError as error:
    if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE or not start:
      raise
    if error.headers.get("Content-Range") == f"bytes */{start}":
      return
    part.unlink()
    raise ConnectionError("the server has less than was downloaded before") from error
  with response:
    if response.headers.get_content_type() == "text/html":
      raise ConnectionError("a web page came instead of the file")
    if response.status != http.client.PARTIAL_CONTENT:
      start = 0
    elif not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
      part.unlink()
      raise ConnectionError("the server sent another part than asked for")
    length = response.headers.get("Content-Length", "")
    total = start + int(length) if length.isdigit() else None
    # A log gets no progress bar: that is what None disables.
    bar = {"desc": part.stem, "initial": start, "total": total, "disable": None}
    with part.open("ab" if start else "wb") as file, tqdm.wrapattr(file, "write", **bar) as output:
      shutil.copyfileobj(response, output, _CHUNK_BYTES)
  received = part.stat().st_size
  if total is not None and received < total:
    raise ConnectionError(f"the connection ended after {received} of {total} bytes")
