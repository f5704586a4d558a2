"""The host's side of the agent: a directory that is bound into the sandbox, what is said in it, and the connection on which it answers.

Invariants: secrets are in the directory from when the program is told what it is to be until it has connected; each wait has a deadline,
and ends early when the program has ended or says that it failed. Whether it is alive its heartbeat tells, and not the engine.

What does not live here: sandboxes and engines (``program``), and who is called when (``runner``).
"""

import contextlib
import json
import os
import select
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from imagefs.errors import DeadlineError, LimitError, ProgramError
from snapshotstore import agent

BEAT_SECONDS: Final = 30.0
"""How long a program may be silent: a library that holds the interpreter's lock stops its heart, too."""

_LOOK: Final = 0.005
_SOCKET: Final = "socket"


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
        path = self._folder / agent.BEGIN
        path.write_text(json.dumps(dict(environment)))
        path.chmod(0o644)

    def until_ready(self, *, deadline: float) -> None:
        """Wait until the program can be frozen. ``ProgramError`` if it fails or ends before, ``DeadlineError``."""
        until = time.monotonic() + deadline
        while (found := self._state()).get("state") != "ready":
            self._check(found, until, "could be frozen")
            time.sleep(_LOOK)

    def become(self, *, restored: bool, environment: Mapping[str, str], secrets: Mapping[str, str], deadline: float) -> None:
        """Tell the program what it is to be, and wait until it has connected. Errors as of :meth:`until_ready`."""
        until = time.monotonic() + deadline
        told = {"restored": restored, "environment": dict(environment), "secrets": dict(secrets), "socket": f"{self._inside}/{_SOCKET}"}
        new = self._folder / ".new"
        with contextlib.suppress(FileNotFoundError):
            (self._folder / agent.STATE).unlink()
        new.write_text(json.dumps(told))
        new.chmod(0o644)
        new.rename(self._folder / agent.REPLICA)
        try:
            while not select.select([self._listener], [], [], 0.05)[0]:
                self._check(self._state(), until, "answered")
            self._connection = self._listener.accept()[0]
        finally:
            (self._folder / agent.REPLICA).unlink(missing_ok=True)

    def call(self, method: str, args: list[Any], named: dict[str, Any], *, deadline: float) -> Any:
        """Return what the method answers. ``ProgramError`` for what it raises, and if the program ends instead; ``DeadlineError``."""
        if self._connection is None:
            raise ProgramError("the program has not connected")
        self._connection.settimeout(deadline)
        try:
            agent.send(self._connection, json.dumps({"method": method, "args": args, "named": named}).encode())
            answer = agent.receive(self._connection)
        except TimeoutError:
            raise DeadlineError(f"{method} did not answer within {deadline:g} s", hint="--timeout gives it longer") from None
        except ValueError as error:
            raise LimitError(f"{method}: {error}") from error
        except OSError:
            answer = None
        if answer is None:
            raise ProgramError(f"the program ended while {method} ran")
        if "error" in answer:
            raised = answer["error"]
            raise ProgramError(f"{method} raised {raised['type']}: {raised['message']}", traceback=raised["traceback"])
        return answer["result"]

    def _state(self) -> dict[str, Any]:
        try:
            found = json.loads((self._folder / agent.STATE).read_bytes())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _check(self, found: Mapping[str, Any], until: float, what: str) -> None:
        """Raise if there is nothing more to wait for."""
        if found.get("state") == "failed":
            raised = found.get("error", {})
            raise ProgramError(f"{raised.get('message', 'the program failed')}", traceback=raised.get("traceback", ""))
        if time.monotonic() > until:
            raise DeadlineError(f"the deadline passed before the program {what}")
        if not self._is_alive():
            raise ProgramError(f"the program ended before it {what}")
        with contextlib.suppress(OSError):
            silent = time.time() - (self._folder / agent.ALIVE).stat().st_mtime
            if silent > BEAT_SECONDS:
                raise ProgramError(f"nothing was heard of the program for {silent:.0f} s before it {what}")
