"""Downloads from a server in this process that can misbehave."""

import contextlib
import dataclasses
import errno
import hashlib
import http.server
import socket
import threading
import time

import numpy as np
import pytest

from vswin_jax.conversion import download
from vswin_jax.conversion.download import DownloadError, fetch
from vswin_jax.conversion.released import find

_CONTENT = np.random.default_rng(0).bytes(300_000)
_DIGEST = hashlib.sha256(_CONTENT).hexdigest()


@dataclasses.dataclass
class _Server:
  """What the server does, and the Range headers it was asked for."""

  url: str = ""
  content: bytes = _CONTENT
  ranges: bool = True
  content_type: str = "application/octet-stream"
  # One for each request, then all is well: a status, or bytes after which the connection ends.
  failures: list[tuple[str, int]] = dataclasses.field(default_factory=list)
  asked: list[str | None] = dataclasses.field(default_factory=list)
  over: threading.Event = dataclasses.field(default_factory=threading.Event)
  wrong_offset: int = 0


def _handler(server: _Server):
  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      asked = self.headers.get("Range")
      server.asked.append(asked)
      kind, amount = server.failures.pop(0) if server.failures else ("none", 0)
      if kind == "status":
        self.send_error(amount)
        return
      start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
      if not server.ranges:
        start = 0
      size = len(server.content)
      if start and start >= size:
        self.send_response(416)
        self.send_header("Content-Range", f"bytes */{size}")
        self.end_headers()
        return
      body = server.content[start:]
      self.send_response(206 if start else 200)
      if start:
        first = start + server.wrong_offset
        self.send_header("Content-Range", f"bytes {first}-{size - 1}/{size}")
      self.send_header("Content-Type", server.content_type)
      if kind != "no length":
        self.send_header("Content-Length", str(len(body)))
      self.end_headers()
      self.wfile.write(body[:amount] if kind in ("cut", "silence") else body)
      if kind == "silence":
        self.wfile.flush()
        server.over.wait(10)

    def log_message(self, *arguments):
      pass

  return Handler


@pytest.fixture
def server(monkeypatch):
  monkeypatch.setenv("no_proxy", "127.0.0.1")
  settings = _Server()
  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(settings)) as running:
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    settings.url = f"http://127.0.0.1:{running.server_port}/weights.pth"
    yield settings
    settings.over.set()
    running.shutdown()
    thread.join()


def _released(server: _Server, **metadata):
  metadata = {"sha256": _DIGEST[:8], "size": len(_CONTENT)} | metadata
  return dataclasses.replace(
    find("swin_t_k400_torchvision"), file="weights.pth", url=server.url, **metadata
  )


@contextlib.contextmanager
def _error(*parts: str):
  with pytest.raises(DownloadError) as raised:
    yield
  message = str(raised.value)
  assert "\n" not in message
  for part in parts:
    assert part in message, message


def test_downloads_into_a_new_folder_and_only_once(server, tmp_path):
  cache = tmp_path / "new" / "cache"
  path = fetch(_released(server), cache)
  assert path == cache / "weights.pth"
  assert path.read_bytes() == _CONTENT
  assert [file.name for file in cache.iterdir()] == ["weights.pth"]
  assert fetch(_released(server), str(cache)) == path
  assert server.asked == [None]


def test_a_file_put_there_by_hand_needs_no_network(tmp_path):
  (tmp_path / "weights.pth").write_bytes(_CONTENT)
  released = _released(_Server(url="http://127.0.0.1:9/weights.pth"))
  assert fetch(released, tmp_path).read_bytes() == _CONTENT


def test_continues_an_earlier_download(server, tmp_path):
  (tmp_path / "weights.pth.part").write_bytes(_CONTENT[:100_000])
  assert fetch(_released(server), tmp_path).read_bytes() == _CONTENT
  assert server.asked == ["bytes=100000-"]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_cut_connection_is_retried_once(server, tmp_path, ranges):
  server.ranges = ranges
  server.failures = [("cut", 120_000)]
  assert fetch(_released(server), tmp_path).read_bytes() == _CONTENT
  assert server.asked == [None, "bytes=120000-"]


def test_two_cuts_keep_what_came_for_the_next_call(server, tmp_path):
  server.failures = [("cut", 120_000), ("cut", 30_000)]
  with _error(server.url, str(tmp_path / "weights.pth"), "150000 of 300000 bytes"):
    fetch(_released(server), tmp_path)
  assert (tmp_path / "weights.pth.part").read_bytes() == _CONTENT[:150_000]
  assert not (tmp_path / "weights.pth").exists()
  assert fetch(_released(server), tmp_path).read_bytes() == _CONTENT
  assert server.asked[-1] == "bytes=150000-"


def test_silence_ends(server, tmp_path, monkeypatch):
  monkeypatch.setattr(download, "_SECONDS_WITHOUT_DATA", 0.2)
  server.failures = [("silence", 70_000)]
  started = time.monotonic()
  assert fetch(_released(server), tmp_path).read_bytes() == _CONTENT
  assert time.monotonic() - started < 5
  assert len(server.asked) == 2


def test_a_server_that_does_not_say_the_length(server, tmp_path):
  server.failures = [("no length", 0)]
  assert fetch(_released(server, size=None), tmp_path).read_bytes() == _CONTENT


def test_a_complete_part_is_only_renamed(server, tmp_path):
  (tmp_path / "weights.pth.part").write_bytes(_CONTENT)
  assert fetch(_released(server), tmp_path).read_bytes() == _CONTENT
  assert server.asked == ["bytes=300000-"]


def test_a_part_longer_than_the_file_starts_over(server, tmp_path):
  (tmp_path / "weights.pth.part").write_bytes(_CONTENT + b"more")
  assert fetch(_released(server), tmp_path).read_bytes() == _CONTENT
  assert server.asked == ["bytes=300004-", None]


def test_a_part_from_elsewhere_in_the_file_starts_over(server, tmp_path):
  server.wrong_offset = 7
  (tmp_path / "weights.pth.part").write_bytes(_CONTENT[:1000])
  assert fetch(_released(server), tmp_path).read_bytes() == _CONTENT
  assert server.asked == ["bytes=1000-", None]


@pytest.mark.parametrize(
  ("metadata", "problem"),
  [
    ({"sha256": "00000000"}, f"SHA-256 {_DIGEST[:8]} instead of 00000000"),
    ({"size": 299_999}, "300000 bytes instead of 299999"),
  ],
)
def test_a_wrong_file_is_not_kept(server, tmp_path, metadata, problem):
  with _error(server.url, problem, str(tmp_path / "weights.pth")):
    fetch(_released(server, **metadata), tmp_path)
  assert list(tmp_path.iterdir()) == []


def test_a_damaged_part_is_found_by_the_hash(server, tmp_path):
  (tmp_path / "weights.pth.part").write_bytes(bytes(1000))
  with _error("SHA-256"):
    fetch(_released(server), tmp_path)
  assert fetch(_released(server), tmp_path).read_bytes() == _CONTENT


def test_no_such_file_is_asked_for_once(server, tmp_path):
  server.failures = [("status", 404)] * 2
  with _error(server.url, "404 Not Found", str(tmp_path / "weights.pth")):
    fetch(_released(server), tmp_path)
  assert len(server.asked) == 1


def test_a_server_in_trouble_is_asked_again(server, tmp_path):
  server.failures = [("status", 503)]
  assert fetch(_released(server), tmp_path).read_bytes() == _CONTENT
  server.failures = [("status", 503)] * 2
  with _error("503 Service Unavailable"):
    fetch(_released(server), tmp_path / "other")


def test_a_web_page_is_no_checkpoint(server, tmp_path):
  server.content_type = "text/html; charset=utf-8"
  with _error("a web page came", str(tmp_path / "weights.pth")):
    fetch(_released(server, sha256=None, size=None), tmp_path)
  assert list(tmp_path.iterdir()) == []


def test_no_network(tmp_path, monkeypatch):
  monkeypatch.setenv("no_proxy", "127.0.0.1")
  with socket.socket() as unused:
    unused.bind(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{unused.getsockname()[1]}/weights.pth"
  with _error(url, str(tmp_path / "weights.pth"), "refused"):
    fetch(_released(_Server(url=url)), tmp_path)


def test_a_folder_that_can_not_be_made(server, tmp_path):
  (tmp_path / "file").write_text("in the way")
  with _error("can't be written", str(tmp_path / "file" / "weights.pth")):
    fetch(_released(server), tmp_path / "file")


def test_a_folder_in_the_way_is_named(server, tmp_path):
  (tmp_path / "weights.pth.part").mkdir()
  with _error("weights.pth can't be written: Is a directory"):
    fetch(_released(server), tmp_path)


def test_a_full_disk_is_named(server, tmp_path, monkeypatch):
  def fail(*_):
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr("shutil.copyfileobj", fail)
  with _error("weights.pth can't be written: No space left on device"):
    fetch(_released(server), tmp_path)


def test_a_file_that_was_put_there_is_verified_and_kept(server, tmp_path):
  path = tmp_path / "weights.pth"
  path.write_bytes(b"other")
  with _error(str(path), "is a file of 5 bytes instead of"):
    fetch(_released(server), tmp_path)
  assert path.read_bytes() == b"other"
