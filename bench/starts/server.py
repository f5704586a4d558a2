"""An HTTP server of images and files, for what pulls and for what mounts over HTTP: ``python -m bench.starts.server FOLDER``.

It answers, from ``FOLDER``, to GET and HEAD:

* ``/v2/NAME/manifests/REFERENCE`` and ``/v2/NAME/blobs/DIGEST``: the OCI distribution API of the OCI layout ``FOLDER/layouts/NAME``;
* ``/files/PATH``: the file ``FOLDER/files/PATH``, ranges too, and lists of folders as web servers give them.

Guarantees: loopback only, connections are kept, bodies go from the file to the socket without passing Python, and it ends with the
process that started it. It is meant for a bench: it knows no users, no uploads and no several ranges in one request.
"""

import html
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import urllib.parse
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Self

_RANGE = re.compile(r"bytes=(\d*)-(\d*)$")
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})$")
_NAME = re.compile(r"/v2/([a-z0-9-]+)/(manifests|blobs)/([A-Za-z0-9_.:-]+)$")


@dataclass(frozen=True, slots=True)
class Found:
    """What a path stands for: a file, or ``text`` in its place."""

    kind: str
    file: Path | None = None
    text: bytes = b""
    digest: str = ""


def find(top: Path, path: str) -> Found | None:
    """Find what ``path``, decoded, stands for below ``top``."""
    if path in {"/v2", "/v2/"}:
        return Found("application/json", text=b"{}")
    if named := _NAME.match(path):
        return _of_layout(top / "layouts" / named[1], named[2], named[3])
    place = (top / path.lstrip("/")).resolve()
    if not place.is_relative_to(top / "files"):
        return None
    if place.is_dir():
        names = sorted(entry.name + "/" * entry.is_dir() for entry in place.iterdir())
        rows = "".join(f'<a href="{urllib.parse.quote(name)}">{html.escape(name)}</a>\n' for name in names)
        return Found("text/html; charset=utf-8", text=f"<html><body><pre>\n{rows}</pre></body></html>\n".encode())
    return Found("application/octet-stream", place) if place.is_file() else None


def _of_layout(layout: Path, kind: str, reference: str) -> Found | None:
    media = "application/octet-stream"
    if kind == "manifests":
        index = json.loads((layout / "index.json").read_text()) if layout.is_dir() else {"manifests": []}
        for entry in index["manifests"]:
            if reference in {entry["digest"], entry.get("annotations", {}).get("org.opencontainers.image.ref.name")}:
                reference, media = entry["digest"], entry["mediaType"]
                break
        else:
            return None
    digest = _DIGEST.match(reference)
    file = layout / "blobs" / "sha256" / digest[1] if digest else None
    return Found(media, file, digest=reference) if file and file.is_file() else None


def span(asked: str, size: int) -> tuple[int, int] | None:
    """Give (start, end) of ``Range: bytes=…`` in a body of ``size`` bytes, end exclusive; None if nothing of it is there."""
    found = _RANGE.match(asked)
    if not found or not (found[1] or found[2]):
        return None
    if not found[1]:
        return max(size - int(found[2]), 0), size
    start, end = int(found[1]), min(int(found[2]) + 1, size) if found[2] else size
    return (start, end) if start < end else None


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers one connection's requests."""

    protocol_version = "HTTP/1.1"
    top: Path
    # Or the head would wait for the acknowledgement of what went before.
    disable_nagle_algorithm = True
    # A head that goes with the body's first bytes.
    wbufsize = 1 << 16

    def do_GET(self) -> None:
        """Answer with the body."""
        self._answer(body=True)

    def do_HEAD(self) -> None:
        """Answer without the body."""
        self._answer(body=False)

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _answer(self, *, body: bool) -> None:
        found = find(self.top, urllib.parse.unquote(urllib.parse.urlsplit(self.path).path))
        if found is None:
            self._head(HTTPStatus.NOT_FOUND, "text/plain", 0)
            return
        if found.file is None:
            self._head(HTTPStatus.OK, found.kind, len(found.text))
            if body:
                self.wfile.write(found.text)
            return
        with found.file.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            asked = self.headers.get("Range")
            part = span(asked, size) if asked else (0, size)
            if part is None:
                self._head(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, "text/plain", 0, {"Content-Range": f"bytes */{size}"})
                return
            start, end = part
            more = {"Last-Modified": self.date_time_string(int(os.fstat(file.fileno()).st_mtime))}
            if asked:
                more["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
            if found.digest:
                more["Docker-Content-Digest"] = found.digest
            self._head(HTTPStatus.PARTIAL_CONTENT if asked else HTTPStatus.OK, found.kind, end - start, more)
            if body:
                self._send(file.fileno(), start, end)

    def _send(self, file: int, start: int, end: int) -> None:
        try:
            self.wfile.flush()
            while start < end:
                start += os.sendfile(self.connection.fileno(), file, start, end - start)
        except ConnectionError:
            # Who has read enough goes away in the middle.
            self.close_connection = True

    def _head(self, status: HTTPStatus, kind: str, length: int, more: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(length), "Accept-Ranges": "bytes", **(more or {})}.items():
            self.send_header(name, value)
        self.end_headers()


class Server:
    """The server in a process of its own, as a context: ``address`` is its host:port."""

    address: str

    def __init__(self, top: Path) -> None:
        """Serve what is, or comes, below ``top``."""
        self.top = top
        for name in ("layouts", "files"):
            (top / name).mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Self:
        """Start it."""
        tied = [setpriv, "--pdeathsig", "KILL"] if (setpriv := shutil.which("setpriv")) else []
        self._process = subprocess.Popen(
            [*tied, sys.executable, "-m", "bench.starts.server", str(self.top)],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout
        self.address = self._process.stdout.readline().strip()
        if not self.address:
            raise RuntimeError("the server of files did not start")
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self._process.kill()
        self._process.wait(20)
        assert self._process.stdout
        self._process.stdout.close()


class _Listener(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of who went away between two requests."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type] # passed on as it came


def serve(top: Path) -> tuple[http.server.ThreadingHTTPServer, threading.Thread]:
    """Serve ``top`` from a thread of this process."""
    server = _Listener(("127.0.0.1", 0), type("Bound", (Handler,), {"top": top.resolve()}))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    return server, thread


def main() -> None:
    """Serve until killed; the first line that is printed says where."""
    server, thread = serve(Path(sys.argv[1]))
    sys.stdout.write(f"127.0.0.1:{server.server_address[1]}\n")
    sys.stdout.flush()
    thread.join()


if __name__ == "__main__":
    main()
