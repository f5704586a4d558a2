"""A small server to try the proxy on: objects whose bytes are known without the server, ranges, uploads, chunks.

It answers GET and HEAD of ``/bucket/<name>-<size>`` with ``content(size)``, under ``/chunked/`` in chunks; it takes what is PUT, and gives
it back. Answers name the peer's port (``X-Peer``), so that connections can be told apart. It sends bodies from memory, a thread a
connection, and keeps connections open. ``Origin`` runs it in a process of its own.
"""

import functools
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Final, Self

from tests.faults.heads import Broken, Head, Request, Source, request_body

_SIZE: Final = re.compile(r"-(\d+)$")
_REPEAT: Final = 1 << 20


@functools.cache
def content(size: int) -> bytes:
    """Return the bytes of every object of ``size``: random, the same every MiB and a byte (so that a shift by a MiB shows)."""
    block = random.Random(1).randbytes(min(size, _REPEAT + 1))
    return (block * (size // (_REPEAT + 1) + 1))[:size]


def _serve(client: socket.socket, objects: dict[str, bytes]) -> None:
    source = Source(client)
    with client:
        while (head := source.head()) is not None:
            request = Request.of(head)
            body = request_body(head, source)
            view, came = memoryview(bytearray(1 << 18)), bytearray()
            while count := body.read(view):
                came += view[:count]
            if request.method == "PUT":
                objects[request.key] = bytes(came)
                client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nETag: stored\r\n\r\n")
                continue
            found = _SIZE.search(request.key)
            data = objects.get(request.key) or (content(int(found[1])) if found else b"")
            _answer(client, request, head, data)


def _answer(client: socket.socket, request: Request, head: Head, data: bytes) -> None:
    part, lines = memoryview(data), [b"HTTP/1.1 200 OK", b"X-Peer: %d" % client.getpeername()[1]]
    if not data:
        lines[0] = b"HTTP/1.1 404 Not Found"
    elif request.start is not None:
        part = part[request.start : request.end]
        lines[0] = b"HTTP/1.1 206 Partial Content"
        lines.append(b"Content-Range: bytes %d-%d/%d" % (request.start, request.start + len(part) - 1, len(data)))
    if request.key.startswith("chunked/"):
        lines.append(b"Transfer-Encoding: chunked")
    else:
        lines.append(b"Content-Length: %d" % len(part))
    client.sendall(b"\r\n".join([*lines, b"", b""]))
    if request.method == "HEAD":
        return
    if not request.key.startswith("chunked/"):
        client.sendall(part)
        return
    for at in range(0, len(part), 1000):
        piece = part[at : at + 1000]
        client.sendall(b"%x;name=value\r\n%b\r\n" % (len(piece), bytes(piece)))
    client.sendall(b"0\r\nX-Trailer: 1\r\n\r\n")


def _connection(client: socket.socket, objects: dict[str, bytes]) -> None:
    try:
        _serve(client, objects)
    except (Broken, OSError):
        client.close()


class Origin:
    """The server in a process of its own, as a context: ``address`` is its host:port. It ends with the context, or with this process."""

    address: str

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "tests.faults.origin"]
        self._process = subprocess.Popen(command, cwd=Path(__file__).parents[2], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout
        self.address = self._process.stdout.readline().strip()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate(timeout=5)


def main() -> None:
    """Serve until standard input ends."""
    objects: dict[str, bytes] = {}
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
        print(f"127.0.0.1:{listener.getsockname()[1]}", flush=True)
        threading.Thread(target=_accept, args=(listener, objects), daemon=True).start()
        sys.stdin.read()
        os._exit(0)


def _accept(listener: socket.socket, objects: dict[str, bytes]) -> None:
    while True:
        client, _ = listener.accept()
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=_connection, args=(client, objects), daemon=True).start()


if __name__ == "__main__":
    main()
