"""A process that serves or is to serve, as its supervisor sees it: its end, the channel to it, and since when it has been silent.

Which it is, a worker or a template of workers, is for who has it (``supervisor``, ``reserve``). All are children of this process, whoever
forked them. Nothing here waits but :meth:`Worker.wait`.
"""

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from imagefs.daemon.instance import Role
from imagefs.daemon.life import MESSAGE_MAX, Word, message, parsed
from imagefs.daemon.oom import oom_kills
from imagefs.daemon.plain_log import PlainLog
from imagefs.errors import ImageFSError

START_SECONDS: Final = 60.0
"""For a process to load its code, and to be ready."""

ABORT_SECONDS: Final = 1.0
"""For a process that is silent to write its stacks into the log, before it is killed."""

COMMAND: Final = (sys.executable, "-P", "-X", "faulthandler", "-m", "imagefs.daemon.worker")
"""What loads the code that is on disk when it starts."""

_STDERR: Final = 2
_LOOK_SECONDS: Final = 0.005
_CHANGED_BY_PYTHON: Final = (signal.SIGPIPE, signal.SIGXFSZ)


class Worker:
    """One process.

    ``ready_at``, ``leaving`` and ``error`` are the supervisor's notes of what it said and was told. ``kill_at`` is when it is to be killed
    if it is still there, ``killed_at`` when it was: moments of the monotonic clock. ``patience``: seconds for which it may be silent.
    """

    def __init__(self, pid: int, channel: socket.socket) -> None:
        """``channel`` is this process's end, which does not block, and this object's from now on."""
        self.pid = pid
        self.channel = channel
        self.ready_at: float | None = None
        self.leaving = False
        self.error: ImageFSError | None = None
        self.kill_at: float | None = None
        self.killed_at: float | None = None
        self.heard_at = time.monotonic()
        self.patience = START_SECONDS
        self.has_hung_up = False
        self._was_aborted = False
        self._silent = ""
        self._ended: int | None = None
        self._oom_kills = oom_kills()
        self._lacked_memory = False

    @classmethod
    def started(cls, command: Sequence[str], role: Role, listener: socket.socket, lock: int) -> "Worker":
        """Start one by a command, with the listening socket and the instance's lock. ``OSError`` if that cannot be."""
        ours, theirs = channel_pair()
        with theirs:
            passed = (theirs.fileno(), listener.fileno(), lock)
            told = role.told() | dict(zip(("life", "listener", "lock"), passed, strict=True)) | {"pid": os.getpid()}
            log = open_log(role.log)
            try:
                return cls(_spawn([*command, json.dumps(told)], passed, log), ours)
            except BaseException:
                ours.close()
                raise
            finally:
                os.close(log)

    def say(self, word: Word, *descriptors: int, **fields: object) -> None:
        """Tell it something, with descriptors that it gets too. One that is gone, or takes nothing more, is not told."""
        with suppress(OSError):
            socket.send_fds(self.channel, [message(word, **fields)], descriptors)

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

    def hangs(self, now: float, log: PlainLog, seconds: float, *, may_be_silent: bool) -> bool:
        """See that it ends if it has to, or is silent; say whether it was killed ``seconds`` ago and is there all the same."""
        if self.killed_at is not None:
            if now - self.killed_at > seconds:
                log.error("worker_hangs_in_the_kernel", worker=self.pid)
                return True
        elif self.kill_at is not None and now >= self.kill_at:
            log.error("worker_killed", worker=self.pid)
            self.kill()
        elif not (may_be_silent or self._was_aborted) and now - self.heard_at > self.patience:
            log.error("worker_silent", worker=self.pid, seconds=round(now - self.heard_at, 1))
            self._abort(now)
        return False

    def _abort(self, now: float) -> None:
        """Have it say in the log where it is, and end; soon after it is to be killed."""
        self._silent = f"it was silent for {now - self.heard_at:.1f} s, and "
        self.kill_at = now + ABORT_SECONDS
        self._was_aborted = True
        self._send(signal.SIGABRT)

    def kill(self) -> None:
        """End it at once."""
        self.kill_at = None
        self.killed_at = time.monotonic()
        self._send(signal.SIGKILL)

    def wait(self, seconds: float) -> None:
        """Wait for its end, but not for ever."""
        until = time.monotonic() + seconds
        while not self.has_ended() and time.monotonic() < until:
            time.sleep(_LOOK_SECONDS)

    def has_ended(self) -> bool:
        """Say whether it is gone; then it is no zombie any more."""
        if self._ended is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._ended = os.waitstatus_to_exitcode(status)
                if self._ended == -signal.SIGKILL and self.killed_at is None and self._oom_kills is not None:
                    self._lacked_memory = (oom_kills() or 0) > self._oom_kills
        return self._ended is not None

    def how_it_ended(self) -> str:
        """Say how, in words."""
        status = self._ended
        if status is None:
            return f"{self._silent}it was killed, and hangs in the kernel"
        if status >= 0:
            return f"{self._silent}it ended with status {status}"
        name = signal.Signals(-status).name if -status in set(signal.Signals) else "unknown"
        return f"{self._silent}it was killed by signal {-status} ({name}){', as its memory ran out' if self._lacked_memory else ''}"

    def _send(self, number: int) -> None:
        # Its id is its own until its end was taken note of.
        if not self.has_ended():
            os.kill(self.pid, number)


def channel_pair() -> tuple[socket.socket, socket.socket]:
    """Return the two ends of a channel: this process's, which does not block, and the other's."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    return ours, theirs


def open_log(path: Path | None) -> int:
    """Return a descriptor, to be closed, of what another process says in plain words."""
    if path is None:
        return os.dup(_STDERR)
    # By name: the one that this process has may have been renamed when it was full.
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def bury_others(ours: Collection[int]) -> None:
    """Take note of the end of what is none of ``ours``: templates that were let go of, and what a worker that died had started."""
    with suppress(ChildProcessError):
        while True:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if found is None or found.si_pid in ours:
                return
            os.waitpid(found.si_pid, os.WNOHANG)


def _inheritable() -> Iterator[int]:
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
        # That of the listing is closed by now.
        with suppress(OSError):
            if os.get_inheritable(int(name)):
                yield int(name)


def _spawn(command: list[str], passed: Sequence[int], log: int) -> int:
    """Start a command that gets the descriptors ``passed``, and ``log`` as both outputs; return its process id."""
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    actions: list[tuple[int, ...]] = [(os.POSIX_SPAWN_DUP2, source, target) for source, target in ((null, 0), (log, 1), (log, 2))]
    # What this process was started with is not for others.
    actions += [(os.POSIX_SPAWN_CLOSE, descriptor) for descriptor in _inheritable() if descriptor > _STDERR]
    try:
        for descriptor in passed:
            os.set_inheritable(descriptor, True)
        return os.posix_spawn(command[0], command, os.environ, file_actions=actions, setsigdef=_CHANGED_BY_PYTHON)
    finally:
        os.close(null)
        for descriptor in passed:
            os.set_inheritable(descriptor, False)
