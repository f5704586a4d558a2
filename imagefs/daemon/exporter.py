"""Where Prometheus asks: ``GET /metrics`` over HTTP/1.1, on ``metrics.sock`` in the instance's directory and, if wanted, on the loopback.

Each worker binds both anew: while one is replaced nobody listens, a scrape is refused and comes again, and no reader waits for it. An
address that somebody else has is tried again; the daemon serves meanwhile.

Invariants: one request a connection; its size and time are bounded, and so are the connections of each socket; whatever comes in, mounts go
on. The trio thread makes each answer from plain numbers, in less than a millisecond or two. What does not live here: the text
(``imagefs.daemon.prometheus``).
"""

import socket
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Final

import structlog
import trio

from imagefs.daemon.instance import METRICS_NAME, bind_socket
from imagefs.daemon.prometheus import CONTENT_TYPE, load_library

PATH: Final = "/metrics"
REQUEST_MAX: Final = 8 << 10
"""Bytes of a request, its headers included."""

REQUEST_SECONDS: Final = 5.0
"""For a request to come, and as much for its answer to go."""

CONNECTIONS_MAX: Final = 8
"""Of each socket at once; who comes then waits in the kernel's queue."""

_AGAIN_SECONDS: Final = 10.0
_PAUSE_SECONDS: Final = 1.0
_PLAIN: Final = "text/plain; charset=utf-8"

Bind = Callable[[], socket.socket]
Render = Callable[[], str]


class Exporter:
    """Serves what ``render`` returns."""

    def __init__(self, directory: Path, listen: str | None, render: Render, log: structlog.typing.FilteringBoundLogger) -> None:
        """``listen`` is ``HOST:PORT``, or None for the Unix socket in ``directory`` alone."""
        self._directory = directory
        self._listen = listen
        self._render = render
        self._log = log
        self._is_loaded = False

    async def run(self) -> None:
        """Serve until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._serve, METRICS_NAME, lambda: bind_socket(self._directory, METRICS_NAME))
            if self._listen is not None:
                listen = self._listen
                nursery.start_soon(self._serve, listen, lambda: _bind_tcp(listen))

    async def _serve(self, name: str, bind: Bind) -> None:
        with await self._bound(name, bind) as listener:
            listener.setblocking(False)
            server = trio.SocketListener(trio.socket.from_stdlib_socket(listener))
            room = trio.Semaphore(CONNECTIONS_MAX)
            async with trio.open_nursery() as nursery:
                while True:
                    await room.acquire()
                    try:
                        stream = await server.accept()
                    except OSError:
                        # No descriptors are left: that may pass.
                        room.release()
                        await trio.sleep(_PAUSE_SECONDS)
                    else:
                        nursery.start_soon(self._answer, stream, room)

    async def _bound(self, name: str, bind: Bind) -> socket.socket:
        told = ""
        while True:
            try:
                return bind()
            except OSError as error:
                if str(error) != told:
                    told = str(error)
                    self._log.warning("metrics_unavailable", address=name, error=told)
            await trio.sleep(_AGAIN_SECONDS)

    async def _answer(self, stream: trio.SocketStream, room: trio.Semaphore) -> None:
        try:
            async with stream:
                head = await _head(stream)
                await self._loaded()
                answer = self._answer_to(head)
                with trio.move_on_after(REQUEST_SECONDS):
                    await stream.send_all(answer)
                    await stream.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            pass  # The client has left.
        finally:
            room.release()

    async def _loaded(self) -> None:
        """Have the library loaded, by a thread: reads go on meanwhile."""
        if not self._is_loaded:
            await trio.to_thread.run_sync(load_library)
            self._is_loaded = True

    def _answer_to(self, head: bytes | HTTPStatus | None) -> bytes:
        if head is None:
            return b""
        if isinstance(head, HTTPStatus):
            return _response(head)
        method, target = _request_line(head)
        if not method:
            return _response(HTTPStatus.BAD_REQUEST)
        if method not in {"GET", "HEAD"}:
            return _response(HTTPStatus.METHOD_NOT_ALLOWED, extra="Allow: GET, HEAD\r\n")
        if target.partition("?")[0] != PATH:
            return _response(HTTPStatus.NOT_FOUND, f"There is {PATH}, and nothing else.\n", is_head=method == "HEAD")
        try:
            text = self._render()
        except Exception:  # noqa: BLE001 # a bug in a figure must not end the mounts
            self._log.exception("metrics_bug")
            return _response(HTTPStatus.INTERNAL_SERVER_ERROR)
        return _response(HTTPStatus.OK, text, kind=CONTENT_TYPE, is_head=method == "HEAD")


def remove_socket(directory: Path) -> None:
    """Take away the Unix socket of a daemon that ends."""
    (directory / METRICS_NAME).unlink(missing_ok=True)


async def _head(stream: trio.SocketStream) -> bytes | HTTPStatus | None:
    """Return a request up to the empty line; the status to answer if it never comes; None if the client has left."""
    data = b""
    with trio.move_on_after(REQUEST_SECONDS):
        while True:
            head, end, _ = data.partition(b"\r\n\r\n")
            if end:
                return head
            if len(data) > REQUEST_MAX:
                return HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            more = await stream.receive_some(REQUEST_MAX)
            if not more:
                return HTTPStatus.BAD_REQUEST if data else None
            data += more
    return HTTPStatus.REQUEST_TIMEOUT


def _request_line(head: bytes) -> tuple[str, str]:
    """Return method and target; empty ones for what is no request of HTTP/1."""
    words = head.partition(b"\r\n")[0].decode("ascii", "replace").split(" ")
    if len(words) != 3 or words[2] not in {"HTTP/1.0", "HTTP/1.1"}:
        return "", ""
    return words[0], words[1]


def _response(status: HTTPStatus, text: str | None = None, *, kind: str = _PLAIN, is_head: bool = False, extra: str = "") -> bytes:
    body = (f"{status.value} {status.phrase}\n" if text is None else text).encode()
    head = f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n{extra}"
    return f"{head}Connection: close\r\n\r\n".encode() + (b"" if is_head else body)


def _bind_tcp(listen: str) -> socket.socket:
    host, _, port = listen.rpartition(":")
    family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        # The port of a worker that has just ended is not another's.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host.strip("[]"), int(port)))
        listener.listen(CONNECTIONS_MAX)
    except BaseException:
        listener.close()
        raise
    return listener
