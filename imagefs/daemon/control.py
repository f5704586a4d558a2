"""The control server: a Unix socket in the instance's directory, for this user alone.

Invariants: a request is bounded in size and time; whatever a request meets is an answer, never the end of the daemon; a request that runs
goes on when its client leaves. What does not live here: what the requests do (``imagefs.daemon.service``).
"""

import os
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec
import structlog
import trio

from imagefs.daemon.requests import LINE_MAX, Request, decoder, failure, success
from imagefs.errors import AccessError, DaemonError, ImageFSError, UsageError

_REQUEST_SECONDS: Final = 30.0
_REPLY_SECONDS: Final = 10.0
_CONNECTIONS_MAX: Final = 64
_UCRED: Final = struct.Struct("3i")

Handle = Callable[[Request], Awaitable[dict[str, object]]]


async def serve_control(
    listener: socket.socket,
    handle: Handle,
    after: Callable[[], None],
    log: structlog.typing.FilteringBoundLogger,
    accepting: trio.CancelScope,
) -> None:
    """Answer requests until cancelled. ``after`` is called when an answer has been sent.

    When ``accepting`` is cancelled, what has come is answered, and who comes then waits for the next process that has this listener.
    """
    server = trio.SocketListener(trio.socket.from_stdlib_socket(listener))
    room = trio.Semaphore(_CONNECTIONS_MAX)
    async with trio.open_nursery() as nursery:
        with accepting:
            while True:
                await room.acquire()
                stream = await server.accept()
                nursery.start_soon(_serve_one, stream, handle, after, room, log)


async def _serve_one(
    stream: trio.SocketStream, handle: Handle, after: Callable[[], None], room: trio.Semaphore, log: structlog.typing.FilteringBoundLogger
) -> None:
    try:
        async with stream:
            answer = await _answer(stream, handle, log)
            if answer is not None:
                with trio.move_on_after(_REPLY_SECONDS):
                    await stream.send_all(answer)
        after()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass  # The client has left.
    finally:
        room.release()


async def _answer(stream: trio.SocketStream, handle: Handle, log: structlog.typing.FilteringBoundLogger) -> bytes | None:
    try:
        _check_peer(stream)
        line = await _read_line(stream)
        if line is None:
            return None
        try:
            request = decoder.decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise UsageError(f"not a request that this daemon knows: {error}", hint="are client and daemon of one version?") from None
        return success(await handle(request))
    except ImageFSError as error:
        return failure(error)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        raise
    except Exception as error:  # a bug in one request must not end the mounts of all
        log.exception("request_bug")
        return failure(DaemonError(f"the daemon met a bug: {type(error).__name__}: {error}", hint="its log has the details"))


def _check_peer(stream: trio.SocketStream) -> None:
    _, uid, _ = _UCRED.unpack(stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    if uid not in (0, os.geteuid()):
        raise AccessError("this daemon belongs to another user")


async def _read_line(stream: trio.SocketStream) -> bytes | None:
    """Return one line without its end; None if the client only looked in."""
    data = b""
    with trio.move_on_after(_REQUEST_SECONDS):
        while b"\n" not in data:
            if len(data) > LINE_MAX:
                raise UsageError(f"a request is longer than {LINE_MAX} bytes")
            chunk = await stream.receive_some(LINE_MAX)
            if not chunk:
                return None
            data += chunk
        return data.partition(b"\n")[0]
    return None
