"""Google Cloud Storage on this machine, as far as gcsfs and TensorStore need it."""

import contextlib
import email
import email.policy
import http.server
import json
import re
import threading
import urllib.parse
from collections.abc import Iterator


@contextlib.contextmanager
def serving() -> Iterator[tuple[str, dict[str, bytes]]]:
  """Serves every bucket that is asked for.

  Yields:
    The address, and the contents of the objects by "bucket/name".
  """
  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
  server.objects, server.generations, server.uploads = {}, {}, {}
  server.lock = threading.Lock()
  # Clients may end in the middle of an answer.
  server.handle_error = lambda *_: None
  thread = threading.Thread(target=server.serve_forever, daemon=True)
  thread.start()
  try:
    yield f"http://127.0.0.1:{server.server_port}", server.objects
  finally:
    server.shutdown()
    server.server_close()


def environment(address: str) -> dict[str, str]:
  """What makes gcsfs and TensorStore use a server, without credentials."""
  return {
    "STORAGE_EMULATOR_HOST": address,
    "TENSORSTORE_GCS_HTTP_URL": address,
    "GCE_METADATA_ROOT": "127.0.0.1:1",
    "GOOGLE_AUTH_TOKEN_FOR_TESTING": "anything",
    "NO_GCE_CHECK": "true",
    # Which kind of bucket it is would be asked for through gRPC.
    "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
  }


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = "HTTP/1.1"

  def log_message(self, *_):
    pass

  def _reply(self, status: int, body=b"", **headers) -> None:
    if not isinstance(body, bytes):
      body = json.dumps(body).encode()
      headers["Content-Type"] = "application/json"
    self.send_response(status)
    for name, value in headers.items():
      self.send_header(name.replace("_", "-"), value)
    self.send_header("Content-Length", str(len(body)))
    self.end_headers()
    self.wfile.write(body)

  def _missing(self) -> None:
    self._reply(404, {"error": {"code": 404, "message": "Not Found"}})

  def _resource(self, key: str) -> dict:
    bucket, _, name = key.partition("/")
    return {
      "kind": "storage#object",
      "id": f"{key}/1",
      "bucket": bucket,
      "name": name,
      "size": str(len(self.server.objects[key])),
      "generation": str(self.server.generations[key]),
      "metageneration": "1",
      "storageClass": "STANDARD",
      "timeCreated": "2024-01-01T00:00:00.000Z",
      "updated": "2024-01-01T00:00:00.000Z",
    }

  def _put(self, key: str, data: bytes) -> bool:
    """Writes an object unless its generation is not the one that is expected."""
    expected = self.query.get("ifGenerationMatch")
    with self.server.lock:
      current = self.server.generations.get(key, 0) if key in self.server.objects else 0
      if expected is not None and int(expected) != current:
        self._reply(412, {"error": {"code": 412, "message": "Precondition Failed"}})
        return False
      self.server.generations[key] = self.server.generations.get(key, 0) + 1
      self.server.objects[key] = data
    return True

  def _body(self) -> bytes:
    if self.headers.get("Transfer-Encoding") == "chunked":
      chunks = []
      while size := int(self.rfile.readline(), 16):
        chunks.append(self.rfile.read(size))
        self.rfile.readline()
      self.rfile.readline()
      return b"".join(chunks)
    return self.rfile.read(int(self.headers.get("Content-Length") or 0))

  def _handle(self) -> None:
    url = urllib.parse.urlsplit(self.path)
    self.query = dict(urllib.parse.parse_qsl(url.query))
    body = self._body()
    if match := re.fullmatch(r"/(?:resumable/)?upload/storage/v1/b/([^/]+)/o/?", url.path):
      self._upload(match[1], body)
    elif match := re.fullmatch(r"/storage/v1/b/([^/]+)/?", url.path):
      self._reply(200, {"kind": "storage#bucket", "name": match[1], "id": match[1]})
    elif match := re.fullmatch(r"/storage/v1/b/([^/]+)/o/?", url.path):
      self._list(match[1])
    elif match := re.fullmatch(
      r"/storage/v1/b/([^/]+)/o/([^/]+)/(?:rewriteTo|copyTo)/b/([^/]+)/o/([^/]+)", url.path
    ):
      self._copy(*map(urllib.parse.unquote, match.groups()))
    elif match := re.fullmatch(r"/storage/v1/b/([^/]+)/o/([^/]+)/moveTo/o/([^/]+)", url.path):
      bucket, name, to_name = map(urllib.parse.unquote, match.groups())
      self._copy(bucket, name, bucket, to_name)
      self.server.objects.pop(f"{bucket}/{name}", None)
    elif match := re.fullmatch(r"(?:/download)?/storage/v1/b/([^/]+)/o/([^/]+)", url.path):
      self._object(f"{match[1]}/{urllib.parse.unquote(match[2])}")
    elif url.path == "/batch/storage/v1":
      self._batch(body)
    else:
      self._missing()

  do_GET = do_POST = do_PUT = do_DELETE = _handle

  def _object(self, key: str) -> None:
    if key not in self.server.objects:
      self._missing()
    elif self.command == "DELETE":
      del self.server.objects[key]
      self._reply(204)
    elif self.query.get("alt") != "media":
      self._reply(200, self._resource(key))
    else:
      data, generation = self.server.objects[key], str(self.server.generations[key])
      if self.query.get("ifGenerationNotMatch") == generation:
        self._reply(304)
        return
      headers = {"x_goog_generation": generation, "Content_Type": "application/octet-stream"}
      asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
      if not asked:
        self._reply(200, data, **headers)
        return
      first, last = asked.groups()
      start = int(first) if first else max(len(data) - int(last), 0)
      end = min(int(last) + 1 if first and last else len(data), len(data))
      if start >= len(data):
        self._reply(416)
      else:
        headers["Content_Range"] = f"bytes {start}-{end - 1}/{len(data)}"
        self._reply(206, data[start:end], **headers)

  def _list(self, bucket: str) -> None:
    prefix, delimiter = self.query.get("prefix", ""), self.query.get("delimiter")
    start, end = self.query.get("startOffset", ""), self.query.get("endOffset")
    items, prefixes = [], set()
    for key in sorted(self.server.objects):
      own_bucket, _, name = key.partition("/")
      is_there = own_bucket == bucket and name.startswith(prefix) and name >= start
      if not is_there or (end and name >= end):
        continue
      rest = name[len(prefix) :]
      if delimiter and delimiter in rest:
        prefixes.add(prefix + rest.partition(delimiter)[0] + delimiter)
      else:
        items.append(self._resource(key))
    limit = int(self.query.get("maxResults", 1000))
    found = {"items": items[:limit], "prefixes": sorted(prefixes)}
    self._reply(200, {"kind": "storage#objects", **found})

  def _upload(self, bucket: str, body: bytes) -> None:
    kind = self.query.get("uploadType")
    if kind == "media":
      key = f"{bucket}/{self.query['name']}"
      if self._put(key, body):
        self._reply(200, self._resource(key))
    elif kind == "multipart":
      head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
      message = email.message_from_bytes(head + body, policy=email.policy.HTTP)
      metadata, content = message.iter_parts()
      key = f"{bucket}/{json.loads(metadata.get_payload(decode=True))['name']}"
      if self._put(key, content.get_payload(decode=True)):
        self._reply(200, self._resource(key))
    elif "upload_id" not in self.query:
      name = self.query.get("name") or json.loads(body)["name"]
      number = str(len(self.server.uploads))
      self.server.uploads[number] = (f"{bucket}/{name}", bytearray())
      host = f"http://{self.headers['Host']}{urllib.parse.urlsplit(self.path).path}"
      self._reply(200, {}, Location=f"{host}?uploadType=resumable&upload_id={number}")
    else:
      key, data = self.server.uploads[self.query["upload_id"]]
      data += body
      if self.headers.get("Content-Range", "/*").endswith("/*"):
        self._reply(308, Range=f"bytes=0-{len(data) - 1}")
      elif self._put(key, bytes(data)):
        self._reply(200, self._resource(key))

  def _copy(self, bucket: str, name: str, to_bucket: str, to_name: str) -> None:
    key, target = f"{bucket}/{name}", f"{to_bucket}/{to_name}"
    if key not in self.server.objects:
      self._missing()
    elif self._put(target, self.server.objects[key]):
      self._reply(200, {"done": True, "resource": self._resource(target)})

  def _batch(self, body: bytes) -> None:
    """Several deletions in one request."""
    head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
    message = email.message_from_bytes(head + body, policy=email.policy.HTTP)
    answers = []
    for part in message.iter_parts():
      request = part.get_payload(decode=True).decode()
      match = re.match(r"DELETE [^ ]*/storage/v1/b/([^/]+)/o/([^ ?]+)", request)
      key = f"{match[1]}/{urllib.parse.unquote(match[2])}"
      found = self.server.objects.pop(key, None) is not None
      status = "204 No Content" if found else "404 Not Found"
      answers.append(
        f"--answer\r\nContent-Type: application/http\r\nContent-ID: <response-{part['Content-ID']}>"
        f"\r\n\r\nHTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n\r\n"
      )
    text = "".join(answers) + "--answer--"
    self._reply(200, text.encode(), Content_Type="multipart/mixed; boundary=answer")
