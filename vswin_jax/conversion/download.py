"""Fetches released checkpoints into a cache folder, resuming and verifying."""

import hashlib
import http.client
import os
import pathlib
import urllib.error
import urllib.request

from tqdm import tqdm

from vswin_jax.conversion.released import Released

_SECONDS_WITHOUT_DATA = 30.0
_ATTEMPTS = 2
_CHUNK_BYTES = 1 << 16


class DownloadError(ValueError):
  """A file that could not be fetched; the message says where to get it and where to put it."""


def default_cache() -> pathlib.Path:
  """Folder of downloaded files: `$VSWIN_JAX_CACHE`, or ~/.cache/vswin_jax."""
  return pathlib.Path(os.environ.get("VSWIN_JAX_CACHE") or "~/.cache/vswin_jax").expanduser()


def fetch(released: Released, cache: str | os.PathLike) -> pathlib.Path:
  """Path of a released file in the cache folder, downloaded if it is not there yet.

  A download goes to `<file>.part`, which a later call continues, and gets its name when it is
  complete and as large and of the SHA-256 as known; a file that is there already must be so too.

  Raises:
    DownloadError: no network, no such file on the server, or another file than was released.
  """
  path = pathlib.Path(cache).expanduser() / released.file
  part = path.with_name(f"{path.name}.part")
  try:
    if path.is_file():
      problem = _find_problem(released, path, None)
      if problem is not None:
        raise DownloadError(
          f"{path} is {problem}; remove it, or put the right file from {released.url} there"
        )
      return path
    path.parent.mkdir(parents=True, exist_ok=True)
    size = _download(released.url, part, path)
    problem = _find_problem(released, part, size)
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
  """SHA-256 of a file, in hexadecimal digits."""
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _find_problem(released: Released, part: pathlib.Path, announced: int | None) -> str | None:
  actual = part.stat().st_size
  for expected in (released.size, announced):
    if expected is not None and actual != expected:
      return f"a file of {actual} bytes instead of {expected}"
  if released.sha256 is not None:
    digest = file_sha256(part)
    if not digest.startswith(released.sha256):
      known = released.sha256
      return f"a file with SHA-256 {digest[: len(known)]} instead of {known}"
  return None


def _download(url: str, part: pathlib.Path, path: pathlib.Path) -> int | None:
  """Completes `part`; returns the bytes the server announced, None if it did not."""
  problem = None
  for _ in range(_ATTEMPTS):
    try:
      return _receive(url, part)
    except urllib.error.HTTPError as error:
      problem = f"the server answered {error.code} {error.reason}"
      if error.code < 500:
        break
    except ConnectionError as error:
      problem = " ".join(str(error).split())
  raise DownloadError(
    f"{url} can't be downloaded ({problem}); get it another way and put it at {path}"
  )


def _receive(url: str, part: pathlib.Path) -> int | None:
  """One request for what `part` lacks."""
  start = part.stat().st_size if part.is_file() else 0
  try:
    response = _open(url, start)
  except urllib.error.HTTPError as error:
    if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE or not start:
      raise
    if error.headers.get("Content-Range") == f"bytes */{start}":
      return start
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
    _write(response, part, start, total)
  received = part.stat().st_size
  if total is not None and received < total:
    raise ConnectionError(f"the connection ended after {received} of {total} bytes")
  return total


def _write(response, part: pathlib.Path, start: int, total: int | None) -> None:
  bar = tqdm(
    desc=part.stem,
    initial=start,
    total=total,
    unit="B",
    unit_scale=True,
    unit_divisor=1024,
    dynamic_ncols=True,
    # A log gets no progress bar.
    disable=None,
  )
  with part.open("ab" if start else "wb") as file, bar:
    for chunk in _chunks(response):
      file.write(chunk)
      bar.update(len(chunk))


def _open(url: str, start: int):
  """A response; failures are an `HTTPError` or a `ConnectionError`, unlike those of the disk."""
  headers = {"User-Agent": "vswin_jax"} | ({"Range": f"bytes={start}-"} if start else {})
  request = urllib.request.Request(url, headers=headers)
  try:
    return urllib.request.urlopen(request, timeout=_SECONDS_WITHOUT_DATA)
  except urllib.error.HTTPError:
    raise
  except urllib.error.URLError as error:
    raise ConnectionError(error.reason) from error
  except (OSError, http.client.HTTPException) as error:
    raise ConnectionError(str(error) or type(error).__name__) from error


def _chunks(response):
  try:
    while chunk := response.read(_CHUNK_BYTES):
      yield chunk
  except (OSError, http.client.HTTPException) as error:
    raise ConnectionError(str(error) or type(error).__name__) from error
