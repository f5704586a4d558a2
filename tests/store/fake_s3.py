"""An S3 server in memory that does what real ones do only on a bad day: it answers, breaks off or goes silent as it is told to.

``before`` sees each request first; what it returns is the answer. A reply may promise more bytes than it sends, and may wait for an event.
"""

import contextlib
import email.utils
import hashlib
import re
import socket
import ssl
import threading
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def operation(self) -> str:
        """What it is, in short: ``GET /bucket/key``, and the query's names."""
        return f"{self.method} {self.path}" + "".join(
            f" {name}" for name in sorted(self.query) if name in {"uploads", "uploadId", "list-type"}
        )


@dataclass(slots=True)
class Reply:
    """``sent`` bytes of the body are sent, then the connection ends; ``until`` is waited for after that, ``pause`` amid the body.

    ``raw`` replaces it all.
    """

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    sent: int | None = None
    until: threading.Event | None = None
    pause: threading.Event | None = None
    raw: bytes = b""


def error(status: int, code: str, headers: dict[str, str] | None = None, extra: str = "") -> Reply:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>Message of {code}</Message>{extra}</Error>"
    return Reply(status, body.encode(), {"Content-Type": "application/xml"} | (headers or {}))


def never(_: Request) -> Reply | None:
    return None


class FakeS3:
    """The server. Buckets exist once something is in them; ``conditional`` is whether it knows conditions."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.before: Callable[[Request], Reply | None] = never
        self.conditional = True
        self.requests: list[Request] = []
        self.objects: dict[str, bytes] = {}
        self.uploads: dict[str, dict[int, bytes]] = {}
        self.connections: list[socket.socket] = []
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # Head and body go out apart: with it, the body waits for the client to have acknowledged the head, which takes it 40 ms.
            disable_nagle_algorithm = True

            def log_message(self, *_: object) -> None:
                pass

            def handle(self) -> None:
                outer.connections.append(self.connection)
                try:
                    super().handle()
                except (OSError, ValueError):
                    self.close_connection = True

            def answer(self) -> None:
                parts = urllib.parse.urlsplit(self.path)
                query = dict(urllib.parse.parse_qsl(parts.query, keep_blank_values=True))
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                headers = {name.lower(): value for name, value in self.headers.items()}
                request = Request(self.command, urllib.parse.unquote(parts.path), query, headers, body)
                self.send(outer.reply(request))

            do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = answer  # noqa: N815 - the names that http.server calls

            def send(self, reply: Reply) -> None:
                if reply.raw:
                    self.wfile.write(reply.raw)
                    self.close_connection = True
                    return
                self.send_response(reply.status)
                for name, value in ({"Content-Length": str(len(reply.body))} | reply.headers).items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    body = reply.body[: reply.sent]
                    if reply.pause is not None:
                        self.wfile.write(body[: len(body) // 2])
                        self.wfile.flush()
                        reply.pause.wait(30)
                        body = body[len(body) // 2 :]
                    self.wfile.write(body)
                    self.wfile.flush()
                if reply.until is not None:
                    reply.until.wait(30)
                if reply.sent is not None:
                    self.close_connection = True

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        if tls:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self._scheme = "https" if tls else "http"

    @property
    def endpoint(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def asked(self) -> list[str]:
        return [request.operation for request in self.requests]

    def reply(self, request: Request) -> Reply:
        with self._lock:
            self.requests.append(request)
        unusual = self.before(request)
        if unusual is not None:
            return unusual
        with self._lock:
            return self._usual(request)

    def _usual(self, request: Request) -> Reply:
        key = request.path.removeprefix("/")
        if request.method in {"GET", "HEAD"}:
            return self._list(request) if "list-type" in request.query else self._get(key, request)
        if request.method == "POST" and "uploads" in request.query:
            self.uploads[f"u{len(self.requests)}"] = {}
            return Reply(200, f"<R><UploadId>u{len(self.requests)}</UploadId></R>".encode())
        upload = request.query.get("uploadId", "")
        if upload and upload not in self.uploads:
            return error(404, "NoSuchUpload")
        if request.method == "PUT" and upload:
            self.uploads[upload][int(request.query["partNumber"])] = request.body
            return Reply(200, b"", {"ETag": f'"{hashlib.md5(request.body).hexdigest()}"'})
        if request.method == "DELETE":
            if upload:
                del self.uploads[upload]
            else:
                self.objects.pop(key, None)
            return Reply(204)
        if "/" not in key:
            return Reply(200)
        return self._put(key, upload, request)

    def _put(self, key: str, upload: str, request: Request) -> Reply:
        if self.conditional and "if-none-match" in request.headers and key in self.objects:
            return error(412, "PreconditionFailed")
        if self.conditional and request.headers.get("if-match", self._etag(key)) != self._etag(key):
            return error(412 if key in self.objects else 404, "PreconditionFailed" if key in self.objects else "NoSuchKey")
        self.objects[key] = b"".join(data for _, data in sorted(self.uploads.pop(upload).items())) if upload else request.body
        return Reply(200, b"<R/>" if upload else b"", {"ETag": self._etag(key)})

    def _etag(self, key: str) -> str:
        return f'"{hashlib.md5(self.objects.get(key, b"")).hexdigest()}"'

    def _get(self, key: str, request: Request) -> Reply:
        if key not in self.objects:
            return error(404, "NoSuchKey")
        data = self.objects[key]
        headers = {"ETag": self._etag(key), "Last-Modified": email.utils.formatdate(usegmt=True), "Content-Type": "binary/octet-stream"}
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("range", ""))
        if match is None:
            return Reply(200, data, headers)
        start, end = int(match[1]), min(int(match[2]) + 1, len(data))
        if start >= len(data):
            return error(416, "InvalidRange")
        return Reply(206, data[start:end], headers | {"Content-Range": f"bytes {start}-{end - 1}/{len(data)}"})

    def _list(self, request: Request) -> Reply:
        bucket = request.path.strip("/")
        prefix = f"{bucket}/{request.query.get('prefix', '')}"
        entries = "".join(
            f"<Contents><Key>{key.removeprefix(bucket + '/')}</Key><Size>{len(data)}</Size>"
            "<LastModified>2026-01-01T00:00:00Z</LastModified></Contents>"
            for key, data in sorted(self.objects.items())
            if key.startswith(prefix)
        )
        return Reply(200, f"<ListBucketResult><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>".encode())
