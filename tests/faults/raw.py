"""An HTTP client that hides nothing: every byte that came, and how the connection ended."""

import contextlib
import socket
from dataclasses import dataclass, field
from typing import Self

DEADLINE = 20.0


@dataclass(slots=True)
class Reply:
    """What came: ``end`` is ``whole`` (as long as Content-Length says, or the last chunk), ``fin``, ``reset`` or ``silence``."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    end: str = "whole"


class Client:
    """One connection, opened at once."""

    def __init__(self, port: int, receive_buffer: int | None = None) -> None:
        self.sock = socket.socket()
        self.sock.settimeout(DEADLINE)
        if receive_buffer:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.sock.connect(("127.0.0.1", port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._came = bytearray()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, target: str, method: str = "GET", body: bytes = b"", **headers: str) -> None:
        """Send a request; underscores in the names of ``headers`` are dashes."""
        if body:
            headers.setdefault("Content_Length", str(len(body)))
        lines = [
            f"{method} /{target} HTTP/1.1",
            "Host: bucket.example",
            *(f"{name.replace('_', '-')}: {headers[name]}" for name in headers),
        ]
        self.sock.sendall("\r\n".join([*lines, "", ""]).encode() + body)

    def get(self, target: str, start: int | None = None, end: int | None = None) -> Reply:
        """GET an object, or a range of it (``end`` is exclusive)."""
        if start is None or end is None:
            self.send(target)
        else:
            self.send(target, Range=f"bytes={start}-{end - 1}")
        return self.reply()

    def ask(self, target: str, method: str = "GET", body: bytes = b"", **headers: str) -> Reply:
        """Send a request and read its answer."""
        self.send(target, method, body, **headers)
        return self.reply(method)

    def more(self) -> str:
        """Read what there is: empty, or how the connection ended."""
        try:
            data = self.sock.recv(1 << 20)
        except TimeoutError:
            return "silence"
        except ConnectionResetError:
            return "reset"
        self._came += data
        return "" if data else "fin"

    def reply(self, method: str = "GET", patience: float = DEADLINE) -> Reply:
        """Read an answer until it is whole, or until nothing came for ``patience`` seconds. Can be called again after silence."""
        self.sock.settimeout(patience)
        reply = Reply(end="")
        while b"\r\n\r\n" not in self._came:
            reply.end = self.more()
            if reply.end:
                return reply
        raw = bytes(self._came[: self._came.index(b"\r\n\r\n")])
        first, *lines = raw.decode().split("\r\n")
        reply.status = int(first.split(" ")[1])
        reply.headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if reply.headers.get("transfer-encoding") == "chunked":
            return self._chunks(reply, len(raw) + 4)
        length = 0 if method == "HEAD" or reply.status < 200 else int(reply.headers.get("content-length", "0"))
        while len(self._came) < len(raw) + 4 + length and not reply.end:
            reply.end = self.more()
        reply.body = bytes(self._came[len(raw) + 4 :][:length])
        if not reply.end:
            del self._came[: len(raw) + 4 + length]
            reply.end = "whole"
        return reply

    def _chunks(self, reply: Reply, at: int) -> Reply:
        """Take a body of chunks apart, without trailers."""
        body = bytearray()
        while True:
            while (line := self._came.find(b"\r\n", at)) < 0 or len(self._came) < line + 4 + int(self._came[at:line], 16):
                reply.end = self.more()
                if reply.end:
                    reply.body = bytes(body)
                    return reply
            size = int(self._came[at:line], 16)
            body += self._came[line + 2 : line + 2 + size]
            at = line + 4 + size
            if not size:
                reply.body, reply.end = bytes(body), "whole"
                del self._came[:at]
                return reply


def refused(port: int) -> bool:
    """Whether a connection is refused."""
    with contextlib.closing(socket.socket()) as sock:
        sock.settimeout(DEADLINE)
        return sock.connect_ex(("127.0.0.1", port)) != 0
