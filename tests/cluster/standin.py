"""A store in memory with S3's face, that can be told to lie: for tests of the test clients."""

from __future__ import annotations

import hashlib
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit


class Store(ThreadingHTTPServer):
    """A store in memory that can be told to lie."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.objects: dict[str, bytes] = {}
        self.parts: dict[int, bytes] = {}
        self.mode = "honest"
        self.writes = 0
        self.mutex = threading.Lock()
        self.gate = threading.Event()  # writes wait here while it is clear
        self.gate.set()

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Store

    def log_message(self, *_args: object) -> None:
        pass

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, text in headers.items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_PUT(self) -> None:
        store, url = self.server, urlsplit(self.path)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        store.gate.wait(10)
        with store.mutex:
            store.writes += 1
            number = store.writes
        etag = f'"{hashlib.md5(body).hexdigest()}"'
        query = parse_qs(url.query)
        if "partNumber" in query:
            store.parts[int(query["partNumber"][0])] = body
        elif store.mode == "refuses" and number % 3 == 0:
            self.reply(503, b"<Error><Code>SlowDown</Code></Error>")
            return
        elif store.mode == "refuses but does" and number % 3 == 0:
            store.objects[url.path] = body
            self.reply(503)
            return
        elif store.mode == "damages" and number % 5 == 0:
            store.objects[url.path] = body[:-1] + bytes([body[-1] ^ 1])
        elif not (store.mode == "forgets" and number % 5 == 0):
            store.objects[url.path] = body
        self.reply(200, ETag=etag)

    def do_POST(self) -> None:
        url = urlsplit(self.path)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if url.query == "uploads=":
            self.reply(200, b"<R><UploadId>u1</UploadId></R>")
            return
        numbers = [int(n) for n in re.findall(rb"<PartNumber>(\d+)<", body)]
        parts = [self.server.parts[n] for n in numbers]
        self.server.objects[url.path] = b"".join(parts)
        digest = hashlib.md5(b"".join(hashlib.md5(p).digest() for p in parts)).hexdigest()
        self.reply(200, f"<R><ETag>{digest}-{len(parts)}</ETag></R>".encode())

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if "list-type" in url.query:
            self.list_page(url.path, parse_qs(url.query))
            return
        body = self.server.objects.get(url.path)
        self.reply(404 if body is None else 200, body or b"")

    def do_HEAD(self) -> None:
        found = urlsplit(self.path).path in self.server.objects
        self.send_response(200 if found else 404)
        self.send_header("Content-Length", "4096")
        self.end_headers()

    def list_page(self, bucket: str, query: dict[str, list[str]]) -> None:
        """Pages of 100 keys; the token is the last key of the page before."""
        prefix = f"{bucket}/{query['prefix'][0]}"
        after = query.get("continuation-token", [""])[0]
        keys = sorted(k for k in self.server.objects if k.startswith(prefix) and k > after)
        rows = "".join(f"<Key>{k}</Key>" for k in keys[:100])
        if len(keys) > 100:
            rows += f"<NextContinuationToken>{keys[99]}</NextContinuationToken>"
        self.reply(200, f"<R>{rows}</R>".encode())

    def do_DELETE(self) -> None:
        self.server.objects.pop(urlsplit(self.path).path, None)
        self.reply(204)
