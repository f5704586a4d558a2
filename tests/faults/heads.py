"""HTTP/1.1 as far as a proxy has to know it: heads, and where a body ends.

Guarantees: a head that nobody edits goes out as the bytes that came in, so what a signature covers (Host above all) stays what it was; a
body is read to its end and not a byte further. A ``Source`` and the bodies read from it belong to one thread.

Not here: what is done with a body, and anything about S3.
"""

import re
import socket
from dataclasses import dataclass, field
from typing import Final, Protocol
from urllib.parse import unquote

_HEAD_LIMIT: Final = 64 << 10
_RANGE: Final = re.compile(rb"bytes=(\d*)-(\d*)\s*")
_CONTENT_RANGE: Final = re.compile(rb"bytes (\d+)-(\d+)/(\d+)\s*")


class Broken(Exception):  # noqa: N818 - the other side broke off, or does not speak HTTP: an event, like trio.Cancelled
    """A peer closed its connection in the middle of a message, or sent what is no HTTP."""


@dataclass(slots=True)
class Head:
    """The start line and the header lines of a message, without their line ends."""

    start: bytes
    lines: list[bytes]

    @classmethod
    def parse(cls, raw: bytes) -> "Head":
        """Read a head that ends in an empty line; raise ``Broken`` for one without three words in its start line."""
        start, *lines = raw.removesuffix(b"\r\n\r\n").split(b"\r\n")
        if len(start.split(b" ", 2)) < 2:
            raise Broken(f"no start line of HTTP: {start[:80]!r}")
        return cls(start, lines)

    def get(self, name: bytes) -> bytes | None:
        """Return the value of the first header ``name`` (lower case), or None."""
        for line in self.lines:
            found, _, value = line.partition(b":")
            if found.lower() == name:
                return value.strip()
        return None

    def drop(self, *names: bytes) -> None:
        """Remove every header of these names (lower case)."""
        self.lines = [line for line in self.lines if line.partition(b":")[0].lower() not in names]

    def put(self, name: bytes, value: bytes) -> None:
        """Replace the header ``name``, or add it."""
        self.drop(name.lower())
        self.lines.append(name + b": " + value)

    @property
    def raw(self) -> bytes:
        """The bytes to send."""
        return b"\r\n".join([self.start, *self.lines, b"", b""])

    @property
    def closes(self) -> bool:
        """Whether the sender closes the connection after this message."""
        option = (self.get(b"connection") or b"").lower()
        return b"close" in option or (b"HTTP/1.0" in self.start and b"keep-alive" not in option)

    @property
    def length(self) -> int | None:
        """The Content-Length, or None without a usable one."""
        value = self.get(b"content-length")
        return int(value) if value is not None and value.isdigit() else None

    @property
    def chunked(self) -> bool:
        """Whether the body comes in chunks."""
        return b"chunked" in (self.get(b"transfer-encoding") or b"").lower()


@dataclass(slots=True)
class Request:
    """A request's head, and what is read off it: ``start`` and ``end`` (exclusive) of the range asked for, None where it is left open."""

    head: Head
    method: str
    key: str
    query: str
    start: int | None = None
    end: int | None = None

    @classmethod
    def of(cls, head: Head) -> "Request":
        """Take apart a request's head."""
        method, target = (word.decode("latin-1") for word in head.start.split(b" ")[:2])
        if target.startswith("http://"):  # as clients write to what they take for their HTTP proxy
            target = "/" + target.removeprefix("http://").partition("/")[2]
        path, _, query = target.partition("?")
        request = cls(head, method, unquote(path).lstrip("/"), query)
        found = _RANGE.fullmatch(head.get(b"range") or b"")
        if found:
            request.start = int(found[1]) if found[1] else None
            request.end = int(found[2]) + 1 if found[1] and found[2] else None
        return request

    @property
    def target(self) -> str:
        """What a fault's ``key`` is searched in: the decoded path without its first slash, and the query after a question mark."""
        return f"{self.key}?{self.query}" if self.query else self.key

    @property
    def size(self) -> int | None:
        """Bytes of the body that is sent, or of the range that is asked for; None if the request says neither."""
        if self.head.length:
            return self.head.length
        return self.end - self.start if self.start is not None and self.end is not None else None


def content_range(head: Head) -> tuple[int, int, int] | None:
    """Return start, end (exclusive) and the whole's size from an answer's Content-Range."""
    found = _CONTENT_RANGE.fullmatch(head.get(b"content-range") or b"")
    return (int(found[1]), int(found[2]) + 1, int(found[3])) if found else None


def status(head: Head) -> int:
    """Return an answer's status, or raise ``Broken``."""
    word = head.start.split(b" ")[1]
    if not head.start.startswith(b"HTTP/") or not word.isdigit():
        raise Broken(f"no status line of HTTP: {head.start[:80]!r}")
    return int(word)


@dataclass(slots=True)
class Source:
    """What comes in on a connection: a little may be held here, after a head; the rest is in the socket."""

    sock: socket.socket
    _held: bytes = field(default=b"")

    def head(self) -> Head | None:
        """Read a head; None if the connection ended in place of one."""
        while (end := self._held.find(b"\r\n\r\n")) < 0:
            more = self.sock.recv(16 << 10)
            if not more and not self._held:
                return None
            if not more or len(self._held) > _HEAD_LIMIT:
                raise Broken("a connection ended inside a head, or a head does not end")
            self._held = (self._held + more).lstrip(b"\r\n") if not self._held else self._held + more
        raw, self._held = self._held[: end + 4], self._held[end + 4 :]
        return Head.parse(raw)

    def line(self) -> bytes:
        """Read a line, without its end."""
        while (end := self._held.find(b"\r\n")) < 0:
            more = self.sock.recv(16 << 10)
            if not more or len(self._held) > _HEAD_LIMIT:
                raise Broken("a connection ended inside a line, or a line does not end")
            self._held += more
        line, self._held = self._held[:end], self._held[end + 2 :]
        return line

    def read(self, view: memoryview) -> int:
        """Read up to ``len(view)`` bytes into ``view``: how many, and 0 at the end of the connection."""
        if self._held:
            taken = self._held[: len(view)]
            view[: len(taken)] = taken
            self._held = self._held[len(taken) :]
            return len(taken)
        return self.sock.recv_into(view)


class Body(Protocol):
    """A message's payload, without its framing."""

    @property
    def left(self) -> int | None:
        """Bytes still to come; None if only the end will tell."""

    def read(self, view: memoryview) -> int:
        """Read up to ``len(view)`` (not 0) bytes into ``view``; return how many, and 0 at the body's end."""


@dataclass(slots=True)
class Sized:
    """A body of known length."""

    source: Source
    left: int

    def read(self, view: memoryview) -> int:
        """Read as ``Body`` says; raise ``Broken`` if the connection ends before the body does."""
        if not self.left:
            return 0
        count = self.source.read(view[: self.left])
        if not count:
            raise Broken(f"a connection ended {self.left} bytes before a body's end")
        self.left -= count
        return count


@dataclass(slots=True)
class Chunked:
    """A body in chunks. Extensions and trailers are read and dropped."""

    source: Source
    left: None = None
    _chunk: int = 0
    _state: str = "first"

    def read(self, view: memoryview) -> int:
        """Read as ``Body`` says; raise ``Broken`` if the connection ends before the body does."""
        if not self._chunk and not self._next():
            return 0
        count = self.source.read(view[: self._chunk])
        if not count:
            raise Broken("a connection ended inside a chunk")
        self._chunk -= count
        return count

    def _next(self) -> bool:
        """Read up to the next chunk's payload; False at the end."""
        if self._state == "end":
            return False
        if self._state == "more":
            self.source.line()
        word = self.source.line().partition(b";")[0].strip()
        try:
            self._chunk = int(word, 16)
        except ValueError as error:
            raise Broken(f"no chunk size: {word[:80]!r}") from error
        self._state = "more" if self._chunk else "end"
        while self._state == "end" and self.source.line():
            pass
        return bool(self._chunk)


@dataclass(slots=True)
class UntilClose:
    """A body that ends with its connection."""

    source: Source
    left: None = None

    def read(self, view: memoryview) -> int:
        """Read as ``Body`` says."""
        return self.source.read(view)


def request_body(head: Head, source: Source) -> Body:
    """Return the body that follows a request's head."""
    return Chunked(source) if head.chunked else Sized(source, head.length or 0)


def answer_body(method: str, head: Head, source: Source) -> Body:
    """Return the body that follows the head of an answer to ``method``."""
    if method == "HEAD" or status(head) in {204, 304}:
        return Sized(source, 0)
    if head.chunked:
        return Chunked(source)
    return UntilClose(source) if head.length is None else Sized(source, head.length)
