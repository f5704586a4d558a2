"""One client's connection: requests go to the server, answers come back, and on the way happens what the script says.

Guarantees: requests reach the server as the client wrote them (one header, Range, is dropped for one fault); answers keep the client's
connection open whatever the server does with its own. A fault at an offset happens exactly there: the client can read every byte before it.

A ``Relay`` belongs to its thread, except for ``drop``. It has one connection to the server at a time, used again while that is in step.
"""

import contextlib
import fcntl
import re
import socket
import struct
import termios
import time
from dataclasses import dataclass, field
from typing import Final

from tests.faults.answers import canned
from tests.faults.bodies import Padded, Plan
from tests.faults.heads import Body, Broken, Chunked, Head, Request, Source, UntilClose, answer_body, content_range, request_body, status
from tests.faults.ledger import Exchange, Ledger
from tests.faults.link import PIECE, Gone, Link, closed
from tests.faults.script import Hit, Script

_SIGNED: Final = re.compile(r"SignedHeaders=([^,&\s]*)", re.IGNORECASE)


class _End(Exception):  # noqa: N818 - an event, like trio.Cancelled
    """The client's connection is to end now, with RST or with FIN."""

    def __init__(self, *, reset: bool) -> None:
        super().__init__()
        self.reset = reset


class _Upstream(Exception):  # noqa: N818 - likewise
    """The server does not answer as a server should."""


@dataclass(slots=True, eq=False)
class Relay:
    """A connection of a client, and what it takes to serve it."""

    client: socket.socket
    upstream: tuple[str, int]
    link: Link
    script: Script
    ledger: Ledger
    _number: int = 0
    _asked: int = 0
    _dropped: bool = False
    _came: Source = field(init=False)
    _server: Source | None = None
    _buffer: memoryview = field(init=False)

    def __post_init__(self) -> None:
        self._came = Source(self.client)
        self._buffer = memoryview(bytearray(PIECE))
        self._number = self.ledger.opened()

    def run(self) -> None:
        """Serve the connection to its end."""
        reset = False
        try:
            while self._exchange():
                pass
        except _End as end:
            reset = end.reset
        except (Broken, Gone, OSError):
            reset = True
        finally:
            self.ledger.closed()
            self._hang_up()
            with contextlib.suppress(OSError):
                if reset or self._dropped:
                    self.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                else:
                    self.client.shutdown(socket.SHUT_WR)
            self.client.close()

    def drop(self) -> None:
        """Have the connection reset; callable from any thread."""
        self._dropped = True
        with contextlib.suppress(OSError):
            self.client.shutdown(socket.SHUT_RD)  # wakes whoever reads or waits here

    def _exchange(self) -> bool:
        """Serve one request; False if the connection is at its end."""
        head = self._came.head()
        if head is None:
            return False
        request = Request.of(head)
        self._asked += 1
        entry = self.ledger.begin(
            Exchange(self._number, request.method, request.key, request.query, request.start, request.end, time.monotonic())
        )
        try:
            return self._serve(request, entry)
        finally:
            self.ledger.end(entry)

    def _serve(self, request: Request, entry: Exchange) -> bool:
        hits = self._noted(entry, self.script.early(request))
        self.link.admit(len(request.head.raw), self.client, up=True)
        self.link.travel(self.client, first=self._asked == 1)
        for hit in hits:
            if hit.fault.kind == "wait":
                self._hold(hit)
        answer = next((hit for hit in hits if hit.fault.kind == "answer"), None)
        expects = b"100-continue" in (request.head.get(b"expect") or b"").lower()
        if answer and not answer.fault.acted:
            if not expects:
                self._upload(request, entry, None)
            return self._can(answer, request, entry, close=expects)
        if expects:
            self.link.travel(self.client)
            self.client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.link.travel(self.client)
        whole = any(hit.fault.kind == "whole" for hit in hits)
        if whole and not _signs_range(request):
            request.head.drop(b"range")
        try:
            head, server = self._ask(request, entry, next((hit for hit in hits if hit.fault.kind == "reset-upload"), None))
        except _Upstream as error:
            self.ledger.upstream_error()
            self.ledger.answer(entry, 502)
            text = f"{type(error.__cause__).__name__}: {error.__cause__}".encode()
            self.ledger.sent(entry, len(text))
            self.ledger.end(entry)
            self.client.sendall(b"HTTP/1.1 502 Bad Gateway\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(text), text))
            return False
        if any(hit.fault.kind == "lost" for hit in hits):
            raise _End(reset=True)
        if answer:
            self._hang_up()
            return self._can(answer, request, entry, close=False)
        return self._reply(request, entry, head, server, whole=whole)

    def _ask(self, request: Request, entry: Exchange, breaking: Hit | None) -> tuple[Head, Source]:
        """Pass a request on; return the head of the answer. An old connection that turns out to be dead is replaced once."""
        while True:
            reused = self._server is not None and not closed(self._server.sock)
            try:
                server = self._server if self._server is not None and reused else self._connect()
                server.sock.sendall(request.head.raw)
                self._upload(request, entry, server.sock, breaking)
                return _answer_head(server), server
            except (Broken, OSError) as error:
                self._hang_up()
                if not reused or request.head.length or request.head.chunked:
                    raise _Upstream from error

    def _connect(self) -> Source:
        self._hang_up()
        sock = socket.create_connection(self.upstream)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._server = Source(sock)
        return self._server

    def _hang_up(self) -> None:
        if self._server is not None:
            self._server.sock.close()
            self._server = None

    def _upload(self, request: Request, entry: Exchange, server: socket.socket | None, breaking: Hit | None = None) -> None:
        """Pass the request's body on, or read and drop it without a ``server``; ``breaking`` breaks the connection on the way."""
        body = request_body(request.head, self._came)
        stop = None
        if breaking:
            stop = (request.head.length or 0) // 2 if breaking.fault.at is None else breaking.fault.at
        since, offset = 0.0, 0
        while stop is None or offset < stop:
            most = self.link.piece(up=True)
            count = self._from_client(body, most if stop is None else min(most, stop - offset))
            if not count:
                break
            since = self.link.admit(count, self.client, since, up=True)
            self.ledger.received(entry, count)
            if server is not None:
                piece = self._buffer[:count]
                server.sendall(b"%x\r\n%b\r\n" % (count, bytes(piece)) if request.head.chunked else piece)
            offset += count
        if offset == stop:
            raise _End(reset=True)
        if server is not None and request.head.chunked:
            server.sendall(b"0\r\n\r\n")

    def _from_client(self, body: Body, most: int) -> int:
        try:
            return body.read(self._buffer[:most])
        except (Broken, OSError) as error:
            raise Gone from error

    def _reply(self, request: Request, entry: Exchange, head: Head, server: Source, *, whole: bool) -> bool:
        """Bring the server's answer to the client; False if the connection is at its end."""
        code, body = status(head), answer_body(request.method, head, server)
        span: tuple[int, int | None] | None = (0, body.left) if code == 200 and request.method == "GET" else None
        found = content_range(head) if code == 206 else None
        if found and whole and body.left is not None:
            body, code, span = Padded(body, found[0], found[2] - found[1]), 200, (0, found[2])
            head.start = b"HTTP/1.1 200 OK"
            head.drop(b"content-range")
            head.put(b"Content-Length", b"%d" % found[2])
        elif found:
            span = found[:2]
        late = self.script.late(request, body.left, partial=found is not None and not whole) if 200 <= code < 300 else []
        plan = Plan.of(self._noted(entry, late), body.left)
        close = request.head.closes or isinstance(body, UntilClose)
        out_of_step = head.closes
        _rewrite(head, plan, found, resized=plan.size != body.left, close=close)
        self.link.travel(self.client)
        self.link.admit(len(head.raw), self.client)
        self.ledger.answer(entry, code, span)
        if plan.size == 0 and not plan.stops:
            self.ledger.end(entry)
        self.client.sendall(head.raw)
        self._carry(body, plan, entry, chunked=isinstance(body, Chunked))
        if out_of_step or body.left or isinstance(body, UntilClose):
            self._hang_up()
        return not close

    def _carry(self, body: Body, plan: Plan, entry: Exchange, *, chunked: bool) -> None:
        """Carry a body to the client, as planned."""
        offset, since, stops = 0, 0.0, list(plan.stops)
        while True:
            while stops and stops[0][0] == offset:
                self._stop(stops.pop(0)[1])
                since = 0.0  # standing still is no lateness to be made good
            limits = [self.link.piece(), *(at - offset for at, _ in stops[:1]), *([] if plan.size is None else [plan.size - offset])]
            if not min(limits):
                return
            if self._dropped:
                raise _End(reset=True)
            try:
                count = body.read(self._buffer[: min(limits)])
            except (Broken, OSError):
                self.ledger.upstream_error()
                raise _End(reset=True) from None
            if not count:
                break
            piece = self._buffer[:count]
            corrupted = plan.change(piece, offset)
            since = self.link.admit(count, self.client, since)
            self.ledger.sent(entry, count, corrupted=corrupted)
            offset += count
            if offset == plan.size:
                self.ledger.end(entry)
            self._send(piece, entry, chunked=chunked)
        self.ledger.end(entry)
        if chunked:
            self.client.sendall(b"0\r\n\r\n")

    def _send(self, piece: memoryview, entry: Exchange, *, chunked: bool = False) -> None:
        """Send a piece that is already counted."""
        left = piece
        try:
            if chunked:
                self.client.sendall(b"%x\r\n" % len(piece), socket.MSG_MORE)
            while left:
                left = left[self.client.send(left) :]
            if chunked:
                self.client.sendall(b"\r\n")
        except OSError:
            self.ledger.sent(entry, -len(left))
            raise

    def _can(self, hit: Hit, request: Request, entry: Exchange, *, close: bool) -> bool:
        """Send an answer of the script's; False if the connection is at its end."""
        close = close or request.head.closes
        head, body = canned(hit.fault, request.method, request.key, close=close)
        self.link.travel(self.client)
        self.link.admit(len(head) + len(body), self.client)
        self.ledger.answer(entry, hit.fault.status)
        self.ledger.sent(entry, len(body))
        self.ledger.end(entry)
        self.client.sendall(head + body)
        return not close

    def _stop(self, hit: Hit) -> None:
        """Do what a body comes to at this place."""
        if hit.fault.kind == "stall":
            self._hold(hit)
            return
        reset = hit.fault.kind == "reset"
        if reset:
            self._settle()
        raise _End(reset=reset)

    def _settle(self) -> None:
        """Wait until the client's kernel has every byte: a reset throws away what is still on its way."""
        soon = time.monotonic() + 0.02
        while self._unsent() and time.monotonic() < soon:
            time.sleep(0.0002)
        self.link.wait(lambda: self._unsent() > 0, self.client)

    def _unsent(self) -> int:
        count: int = struct.unpack("i", fcntl.ioctl(self.client, termios.TIOCOUTQ, b"\0" * 4))[0]
        return count

    def _hold(self, hit: Hit) -> None:
        """Stand still for as long as a fault says."""
        seconds = hit.fault.seconds
        until = float("inf") if seconds is None else time.monotonic() + seconds
        self.link.wait(lambda: not hit.armed.lifted, self.client, until)

    def _noted(self, entry: Exchange, hits: list[Hit]) -> list[Hit]:
        if hits:
            self.ledger.hit(entry, [hit.armed.ident for hit in hits])
        return hits


def _answer_head(server: Source) -> Head:
    """Read the head of the final answer."""
    while (head := server.head()) is not None and status(head) < 200:
        pass
    if head is None:
        raise Broken("the server closed the connection in place of an answer")
    return head


def _signs_range(request: Request) -> bool:
    """Whether the request's signature covers its Range."""
    signed = _SIGNED.search((request.head.get(b"authorization") or b"").decode("latin-1") + "&" + request.query)
    return signed is not None and "range" in re.split(r";|%3b", signed[1].lower())


def _rewrite(head: Head, plan: Plan, span: tuple[int, int, int] | None, *, resized: bool, close: bool) -> None:
    """Say in an answer's head what the plan says, and what becomes of the client's connection."""
    head.drop(b"connection", b"keep-alive")
    head.start = head.start.replace(b"HTTP/1.0", b"HTTP/1.1", 1)
    if close:
        head.put(b"Connection", b"close")
    if resized and plan.size is not None:
        head.put(b"Content-Length", b"%d" % plan.size)
    if plan.shift and span:
        start, end, whole = span
        head.put(b"Content-Range", b"bytes %d-%d/%d" % (start + plan.shift, end - 1 + plan.shift, whole))
