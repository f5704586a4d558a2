"""A worker, as its supervisor sees it: a process, the channel to it, and since when it has been silent. Nothing here waits."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, Final

from imagefs.daemon.instance import Role
from imagefs.daemon.life import MESSAGE_MAX, Word, message, parsed
from imagefs.errors import ImageFSError

COMMAND: Final = (sys.executable, "-P", "-X", "faulthandler", "-m", "imagefs.daemon.worker")
"""What runs a worker: the code that is on disk when it starts."""

_STDERR: Final = 2


class Worker:
    """One worker process.

    ``ready_at``, ``leaving`` and ``error`` are the supervisor's notes of what it said and was told. ``kill_at`` is when it is to be killed
    if it is still there, ``killed_at`` when it was: moments of the monotonic clock.
    """

    def __init__(self, command: Sequence[str], role: Role, listener: socket.socket, lock: int) -> None:
        """Start it, with the listening socket and the instance's lock. ``OSError`` if that cannot be."""
        self.ready_at: float | None = None
        self.leaving = False
        self.error: ImageFSError | None = None
        self.kill_at: float | None = None
        self.killed_at: float | None = None
        self.heard_at = time.monotonic()
        self.has_hung_up = False
        self.was_aborted = False
        self._silent = ""
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.channel.setblocking(False)
        log = _STDERR
        try:
            if role.log is not None:
                # By name: the one that this process has may have been renamed when it was full.
                log = os.open(role.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            passed = (theirs.fileno(), listener.fileno(), lock)
            told = role.told() | dict(zip(("life", "listener", "lock"), passed, strict=True)) | {"pid": os.getpid()}
            self.process = subprocess.Popen(  # noqa: S603 # our own arguments
                [*command, json.dumps(told)], stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=passed, cwd="/"
            )
        except BaseException:
            self.channel.close()
            raise
        finally:
            theirs.close()
            if log != _STDERR:
                os.close(log)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def say(self, word: Word, descriptor: int | None = None, **fields: object) -> None:
        """Tell it something, with a descriptor that it gets too. One that is gone, or takes nothing more, is not told."""
        with suppress(OSError):
            socket.send_fds(self.channel, [message(word, **fields)], [] if descriptor is None else [descriptor])

    def heard(self) -> Iterator[dict[str, Any]]:
        """Yield what it has said since the last time."""
        while True:
            try:
                data = self.channel.recv(MESSAGE_MAX)
            except OSError:
                return
            if not data:
                self.has_hung_up = True
                return
            self.heard_at = time.monotonic()
            with suppress(ValueError):
                yield parsed(data)

    def abort(self, grace: float) -> None:
        """Have it say in the log where it is, and end; after ``grace`` seconds it is to be killed."""
        now = time.monotonic()
        self._silent = f"it was silent for {now - self.heard_at:.1f} s, and "
        self.kill_at = now + grace
        self.was_aborted = True
        self.process.send_signal(signal.SIGABRT)

    def kill(self) -> None:
        """End it at once."""
        self.kill_at = None
        self.killed_at = time.monotonic()
        self.process.kill()

    def wait(self, seconds: float) -> None:
        """Wait for its end, but not for ever."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(max(seconds, 0.0))

    def has_ended(self) -> bool:
        """Say whether it is gone; then it is no zombie any more."""
        return self.process.poll() is not None

    def how_it_ended(self) -> str:
        """Say how, in words."""
        status = self.process.returncode
        if status is None:
            return f"{self._silent}it was killed, and hangs in the kernel"
        if status >= 0:
            return f"{self._silent}it ended with status {status}"
        name = signal.Signals(-status).name if -status in set(signal.Signals) else "unknown"
        return f"{self._silent}it was killed by signal {-status} ({name})"
