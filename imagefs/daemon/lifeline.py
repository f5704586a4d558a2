"""The worker's end of what it and its supervisor say to each other (``life``).

It says once a second that the event loop goes round. When the supervisor is gone, so is the worker, at once: nobody would start another,
and the next daemon of this instance waits for the lock that both hold.
"""

import array
import contextlib
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import trio

from imagefs.daemon.life import ALIVE_SECONDS, MESSAGE_MAX, Word, message, parsed
from imagefs.daemon.wire import rebuilt
from imagefs.errors import DeadlineError, ImageFSError
from imagefs.fuse.handover import Takeover

_ORPHANED: Final = 1
_FUSE_SECONDS: Final = 60.0
_RELOAD_SECONDS: Final = 90.0


@dataclass(slots=True)
class _Outcome:
    """What came of asking for another worker, for all who have asked meanwhile."""

    known: trio.Event = field(default_factory=trio.Event)
    error: ImageFSError | None = None


class Lifeline:
    """See the module. Belongs to the trio thread, once that runs."""

    def __init__(self, channel: socket.socket) -> None:
        """``channel`` is this worker's end."""
        self._channel = channel
        self._connections, self._wanted = trio.open_memory_channel[dict[str, Any]](1)
        self._outcome = _Outcome()

    def say(self, word: Word, **fields: object) -> None:
        """Tell the supervisor something. One that listens to nothing for minutes is not waited for."""
        with contextlib.suppress(OSError):
            self._channel.send(message(word, **fields), socket.MSG_DONTWAIT)

    def told_to_go(self) -> dict[str, Any]:
        """Wait for the word to go, and return what comes with it. Before trio runs; a supervisor that dies meanwhile ends this process."""
        while True:
            data = self._channel.recv(MESSAGE_MAX)
            if not data:
                os._exit(_ORPHANED)
            if (said := parsed(data))["word"] == "go":
                return said

    async def beat(self) -> None:
        """Say that this worker is alive, until cancelled."""
        while True:
            self.say("alive")
            await trio.sleep(ALIVE_SECONDS)

    async def listen(self, drain: Callable[[], None], end: Callable[[], None]) -> None:
        """Listen until cancelled. ``drain`` and ``end`` are called when the supervisor says so."""
        ours = trio.socket.from_stdlib_socket(self._channel)
        while True:
            try:
                data, more, _, _ = await ours.recvmsg(MESSAGE_MAX, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
            except ConnectionError:
                # It had not read all that it was told.
                os._exit(_ORPHANED)
            if not data:
                os._exit(_ORPHANED)
            self._hear(parsed(data), _descriptors(more), drain, end)

    def _hear(self, said: dict[str, Any], descriptors: list[int], drain: Callable[[], None], end: Callable[[], None]) -> None:
        match said["word"]:
            case "given" | "refused":
                self._connections.send_nowait(said | {"descriptor": descriptors.pop() if descriptors else None})
            case "drain":
                self._outcome.known.set()
                drain()
            case "kept":
                outcome, self._outcome = self._outcome, _Outcome()
                outcome.error = rebuilt(said["error"])
                outcome.known.set()
            case "end":
                end()
        for descriptor in descriptors:
            os.close(descriptor)

    async def connection(self) -> Takeover:
        """Return the connection, mounted if it was not. Raises what that met."""
        self.say("fuse")
        with trio.move_on_after(_FUSE_SECONDS):
            said = await self._wanted.receive()
            if said["descriptor"] is None:
                raise rebuilt(said["error"])
            return Takeover(said["descriptor"], bytes.fromhex(said["init"]), resend=said["resend"], is_asked_again=said["resends"])
        raise DeadlineError("the supervisor did not answer")

    def answered(self) -> None:
        """Tell that the kernel has its answer."""
        self.say("answered")

    async def reload(self) -> None:
        """Ask for another worker in place of this one; return when that is ready to take over. Raises why it is not."""
        outcome = self._outcome
        self.say("reload")
        with trio.move_on_after(_RELOAD_SECONDS):
            await outcome.known.wait()
            if outcome.error is not None:
                raise outcome.error
            return
        raise DeadlineError("the new worker does not get ready", hint="the daemon's log may say why")


def _descriptors(more: list[tuple[int, int, bytes]]) -> list[int]:
    found = array.array("i")
    for level, kind, data in more:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return list(found)
