"""The host's side of the agent: a directory that is bound into the sandbox, what is said in it, and the connection on which it answers.

Invariants: secrets are in the directory from when the program is told what it is to be until it has connected; each wait has a deadline,
and ends early when the program has ended or says that it failed. Whether it is alive its heartbeat tells, and not the engine. The program
is not trusted: it may put anything into the directory and on the connection, so no link is followed there, and what is read is bounded.

What does not live here: sandboxes and engines (``program``), and who is called when (``runner``).
"""

import contextlib
import json
import os
import select
import socket
import stat
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from imagefs.errors import DeadlineError, LimitError, ProgramError
from snapshotstore import agent

BEAT_SECONDS: Final = 30.0
"""How long a program may be silent: a library that holds the interpreter's lock stops its heart, too."""

_LOOK: Final = 0.005
_SOCKET: Final = "socket"
_VERSION_MAX: Final = 64
_STATE_MAX: Final = 4 << 20
_MESSAGE_MAX: Final = 100_000


class Ready(NamedTuple):
    """The versions of Python and of torch, which is empty where it was not imported."""

    python: str
    torch: str


class Replica:
    """See the module. A context manager that lets go of the directory's socket."""

    def __init__(self, folder: Path, inside: str, is_alive: Callable[[], bool]) -> None:
        """``folder`` is there and empty; the program sees it at ``inside``. ``is_alive`` asks the engine whether the program is there."""
        self._folder = folder
        self._inside = inside
        self._is_alive = is_alive
        self._connection: socket.socket | None = None
        self._listener = socket.socket(socket.AF_UNIX)
        try:
            # By a short way: the kernel takes 107 bytes.
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                self._listener.bind(f"/proc/self/fd/{descriptor}/{_SOCKET}")
            finally:
                os.close(descriptor)
            # The program is of another user; who may come here is for the directory above to say, which is root's alone.
            (folder / _SOCKET).chmod(0o777)
            folder.chmod(0o777)
            self._listener.listen(1)
        except BaseException:
            self._listener.close()
            raise

    def close(self) -> None:
        """Hang up: the program ends then."""
        if self._connection is not None:
            self._connection.close()
        self._listener.close()

    def provide(self, environment: Mapping[str, str]) -> None:
        """Give the program variables before it begins: they are not in its command, so that other values make no other sandbox."""
        self._tell(agent.BEGIN, dict(environment))

    def until_ready(self, *, deadline: float) -> Ready:
        """Wait until the program can be frozen; return what it says of itself. ``ProgramError`` if it fails or ends, ``DeadlineError``."""
        until = time.monotonic() + deadline
        while (found := self._state()).get("state") != "ready":
            self._check(found, until, "could be frozen")
            time.sleep(_LOOK)
        return Ready(*(str(found.get(name, ""))[:_VERSION_MAX] for name in Ready._fields))

    def tell(self, *, restored: bool, environment: Mapping[str, str], secrets: Mapping[str, str]) -> None:
        """Tell the program what it is to be: one that is ready, or one that is about to be restored, which finds it then."""
        told = {"restored": restored, "environment": dict(environment), "secrets": dict(secrets), "socket": f"{self._inside}/{_SOCKET}"}
        try:
            (self._folder / agent.STATE).unlink(missing_ok=True)
            self._tell(agent.REPLICA, told)
        except (IsADirectoryError, PermissionError) as error:
            raise ProgramError(f"the program has made {error.filename2 or error.filename} a directory") from error

    def until_answers(self, *, deadline: float) -> None:
        """Wait until the program that was told what it is to be has connected. Errors as of :meth:`until_ready`."""
        until = time.monotonic() + deadline
        try:
            while not select.select([self._listener], [], [], 0.05)[0]:
                self._check(self._state(), until, "answered")
            self._connection = self._listener.accept()[0]
        finally:
            (self._folder / agent.REPLICA).unlink(missing_ok=True)

    def check_failed(self) -> None:
        """Raise what the program said of itself, if it said that it failed: ``ProgramError``."""
        _check_failed(self._state())

    def call(self, method: str, args: list[Any], named: dict[str, Any], *, deadline: float) -> Any:
        """Return what the method answers. ``ProgramError`` for what it raises, and if the program ends instead; ``DeadlineError``."""
        if self._connection is None:
            raise ProgramError("the program has not connected")
        request = json.dumps({"method": method, "args": args, "named": named}).encode()
        if len(request) > agent.FRAME_MAX:
            raise LimitError(f"the arguments of {method} are {len(request)} bytes: at most {agent.FRAME_MAX} are sent")
        try:
            self._connection.settimeout(deadline)
            agent.send(self._connection, request)
            body = _receive(self._connection, time.monotonic() + deadline)
        except TimeoutError:
            raise DeadlineError(f"{method} did not answer within {deadline:g} s", hint="--timeout gives it longer") from None
        except OSError:
            body = None
        if body is None:
            raise ProgramError(f"the program ended while {method} ran")
        return _answer(body, method)

    def _tell(self, name: str, told: Mapping[str, Any]) -> None:
        """Write a file that the program finds whole. It cannot make this one write elsewhere: the file is new, whatever is there."""
        new = self._folder / f".{os.urandom(8).hex()}"
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                json.dump(told, file)
                os.fchmod(descriptor, 0o644)
            new.rename(self._folder / name)
        except BaseException:
            new.unlink(missing_ok=True)
            raise

    def _state(self) -> dict[str, Any]:
        try:
            found = json.loads(self._said(agent.STATE))
        except (ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def _said(self, name: str) -> bytes:
        """Return what the program has written to a file, as far as it is a file; nothing if there is none."""
        with contextlib.suppress(OSError):
            descriptor = os.open(self._folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(descriptor, "rb") as file:
                if stat.S_ISREG(os.fstat(descriptor).st_mode):
                    return file.read(_STATE_MAX)
        return b""

    def _check(self, found: Mapping[str, Any], until: float, what: str) -> None:
        """Raise if there is nothing more to wait for."""
        _check_failed(found)
        if time.monotonic() > until:
            raise DeadlineError(f"the deadline passed before the program {what}")
        if not self._is_alive():
            late, _, stack = self._said(agent.LATE).decode(errors="replace").partition("\n")
            raise ProgramError(late if late and stack else f"the program ended before it {what}", traceback=stack)
        with contextlib.suppress(OSError):
            silent = time.time() - (self._folder / agent.ALIVE).lstat().st_mtime
            if silent > BEAT_SECONDS:
                raise ProgramError(f"nothing was heard of the program for {silent:.0f} s before it {what}")


def _check_failed(found: Mapping[str, Any]) -> None:
    if found.get("state") == "failed":
        raised = _raised(found.get("error"))
        raise ProgramError(raised["message"] or "the program failed", traceback=raised["traceback"])


def _receive(connection: socket.socket, until: float) -> bytearray | None:
    """Return the next frame; None at the end of the stream. ``TimeoutError``, however much of it has come; ``LimitError``."""
    head = _exactly(connection, agent.FRAME.size, until)
    if head is None:
        return None
    (length,) = agent.FRAME.unpack(head)
    if length > agent.FRAME_MAX:
        raise LimitError(f"an answer of {length} bytes: at most {agent.FRAME_MAX} are taken")
    return _exactly(connection, length, until)


def _exactly(connection: socket.socket, count: int, until: float) -> bytearray | None:
    # Zeros that are not written to take no memory: a length is a claim.
    buffer = bytearray(count)
    view, at = memoryview(buffer), 0
    while at < count:
        left = until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        connection.settimeout(left)
        got = connection.recv_into(view[at:])
        if not got:
            return None
        at += got
    return buffer


def _answer(body: bytearray, method: str) -> Any:
    """Return the result that a frame is. ``ProgramError`` for what was raised, and for what is no answer."""
    try:
        answer = json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ProgramError(f"what {method} answered is no JSON: {error}") from None
    if not isinstance(answer, dict) or answer.keys() & {"result", "error"} == set():
        raise ProgramError(f"what {method} answered is neither a result nor an error")
    if "error" in answer:
        raised = _raised(answer["error"])
        raise ProgramError(f"{method} raised {raised['type']}: {raised['message']}", traceback=raised["traceback"])
    return answer["result"]


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _raised(found: Any) -> dict[str, str]:
    """Return what a program says of an exception, as far as it says anything."""
    told = found if isinstance(found, dict) else {}
    return {key: str(told.get(key, ""))[:_MESSAGE_MAX] for key in ("type", "message", "traceback")}
