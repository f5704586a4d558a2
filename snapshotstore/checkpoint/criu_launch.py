"""Tells a keeper what to keep, and waits until the program of its sandbox runs.

Promises: after an error nothing runs, and the sandbox's directory is as empty as it was; whoever starts one and is killed meanwhile leaves
nothing that runs either, because a keeper that cannot say that its program runs ends, with all that it started.
"""

import json
import os
import socket
import subprocess
from contextlib import closing, suppress
from typing import Any

from imagefs.errors import EngineError
from snapshotstore.checkpoint import criu_state
from snapshotstore.checkpoint.base import Sandbox
from snapshotstore.checkpoint.criu_keeper import MESSAGE_MAX, encode
from snapshotstore.checkpoint.criu_run import failed
from snapshotstore.checkpoint.criu_state import KEEPER, PROGRAM, Until
from snapshotstore.checkpoint.waiting import Waiting


class EngineFailedError(EngineError):
    """CRIU itself ended with ``code``: what it has to say is in its log."""

    def __init__(self, code: int) -> None:
        """Keep the exit status."""
        super().__init__(f"criu ended with {code}")
        self.code = code


def launch(waiting: Waiting, sandbox: Sandbox, restore: dict[str, Any] | None, until: Until) -> None:
    """Tell a keeper what ``criu_keeper.encode`` takes; return when the program runs. Errors of ours, ``EngineFailedError`` too."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        try:
            with theirs:
                waiting.tell(encode(sandbox, restore), theirs.fileno())
            (keeper,) = _receive(ours, KEEPER, waiting, until)
        except BaseException:
            _end(waiting.process, ours)
            raise
        waiting.process.wait()  # It has ended, but for what the kernel has to do.
        try:
            criu_state.remember(sandbox.state, {KEEPER: keeper})
            ours.send(b"!")
            program = _receive(ours, PROGRAM, waiting, until)
            try:
                criu_state.remember(sandbox.state, {KEEPER: keeper, PROGRAM: program[0] if program else None})
            finally:
                for descriptor in program:
                    os.close(descriptor)
        except BaseException:
            criu_state.kill(keeper)
            raise
        finally:
            os.close(keeper)


def _end(process: subprocess.Popen[bytes], talk: socket.socket) -> None:
    """Have the first process end, and with it the keeper that it may have started meanwhile."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=1)  # It says who the keeper is, if it comes to that, and ends.
    process.kill()
    process.wait()
    talk.setblocking(False)
    with suppress(OSError):
        _, descriptors, _, _ = socket.recv_fds(talk, MESSAGE_MAX, 1, socket.MSG_CMSG_CLOEXEC)
        for keeper in descriptors:
            criu_state.kill(keeper)
            os.close(keeper)


def _receive(talk: socket.socket, name: str, waiting: Waiting, until: Until) -> list[int]:
    """Return the pidfd that is said under ``name``; none for a process that has ended already."""
    until.wait(talk.fileno())
    data, descriptors, _, _ = socket.recv_fds(talk, MESSAGE_MAX, 1, socket.MSG_CMSG_CLOEXEC)
    if not data:
        raise EngineError(": ".join(filter(None, ["the sandbox's keeper ended", waiting.said])))
    document = json.loads(data)
    if "engine" in document:
        raise EngineFailedError(document["engine"])
    if name not in document:
        raise EngineError(document.get("error", "the sandbox's keeper says what nobody understands"))
    return descriptors


def check_unused(sandbox: Sandbox) -> None:
    """See that the sandbox's directory is there, and empty but for the output. ``EngineError``."""
    try:
        others = [path.name for path in sandbox.state.iterdir() if path != sandbox.output]
    except OSError as error:
        raise EngineError(f"{sandbox.state}: {error.strerror}") from error
    if others:
        raise EngineError(f"{sandbox.state} is in use: it has {others[0]}", hint="each sandbox has an empty directory of its own")


def launched(waiting: Waiting, sandbox: Sandbox, restore: dict[str, Any] | None, until: Until) -> None:
    """Launch, and on any failure leave the sandbox's directory empty. ``waiting`` is closed in any case."""
    try:
        with closing(waiting):
            launch(waiting, sandbox, restore, until)
    except BaseException as error:  # noqa: BLE001 - raised again below, or what it stands for
        found = failed("restore", error.code, sandbox.state / "criu" / "restore.log") if isinstance(error, EngineFailedError) else error
        criu_state.clear(sandbox.state, sandbox.output)
        raise found from None
