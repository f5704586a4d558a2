"""When a program of which nothing is known can be frozen: what is asked of it from outside, and waiting for it.

What was asked for is one or more of: it listens on a TCP port, it has written a text, some seconds have passed. All of it has to hold at
once. None of it needs anything of the program or its image, and nothing is sent to it: a connection could be its first one, and the last
that it takes.

- With CRIU the program's sockets are the host's: who listens is in its network namespace's table, and which of those are its own is in
  ``/proc/PID/fd``.
- gVisor has tables of its own, which are read in the sandbox (``runsc_reader``).
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from imagefs.errors import DeadlineError, EngineError, ImageFSError, ProgramError, UsageError
from snapshotstore.checkpoint import criu_refusals, criu_state
from snapshotstore.checkpoint.base import Checkpointer, Sandbox
from snapshotstore.checkpoint.runsc import Runsc

_LOOK: Final = 0.02
_LISTEN: Final = "0A"
_PORT_MAX: Final = 65535
_ASK_SECONDS: Final = 20.0
_READ_MAX: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """What is asked for: each that is not None has to hold."""

    listening: int | None = None
    output: str | None = None
    after: float | None = None

    def __post_init__(self) -> None:
        """``UsageError`` for what cannot come."""
        if self.listening is None and self.output is None and self.after is None:
            raise UsageError(
                "it has to be said when the program is ready to be frozen",
                hint="--when-listening PORT, --when-output TEXT or --after SECONDS",
            )
        if self.listening is not None and not 0 < self.listening <= _PORT_MAX:
            raise UsageError(f"there is no port {self.listening}")
        if self.output is not None and (not self.output or "\n" in self.output):
            raise UsageError("--when-output takes a part of a line")
        if self.after is not None and not 0 <= self.after < float("inf"):
            raise UsageError(f"nothing is {self.after} seconds from now")

    def __str__(self) -> str:
        """What it is, for a person."""
        told = [f"it listened on port {self.listening}"] * (self.listening is not None)
        told += [f"it had written {self.output!r}"] * (self.output is not None)
        return " and ".join(told) or f"{self.after:g} s had passed"


def wait_until_ready(ready: Ready, engine: Checkpointer, sandbox: Sandbox, *, deadline: float) -> None:
    """Wait until the program can be frozen. ``ProgramError`` if it ends before, ``DeadlineError``."""
    begun = time.monotonic()
    pending: list[Callable[[], bool]] = []
    if ready.after is not None:
        end = begun + ready.after
        pending.append(lambda: time.monotonic() >= end)
    if ready.output is not None:
        pending.append(Written(sandbox.output, ready.output))
    if (port := ready.listening) is not None:
        # The dearest comes last, and is asked only once the others hold.
        pending.append(_Listens(engine, sandbox, port))
    while True:
        if not engine.is_alive(sandbox):
            code = _code(engine, sandbox)
            raise ProgramError(f"the program ended{code} before {ready}", hint=f"what it wrote is in {sandbox.output}")
        if all(holds() for holds in pending):
            return
        if time.monotonic() > begun + deadline:
            why = next((f" ({holds.problem})" for holds in pending if isinstance(holds, _Listens) and holds.problem), "")
            hint = f"--timeout gives it longer; what it wrote is in {sandbox.output}"
            raise DeadlineError(f"{deadline:g} s passed before {ready}{why}", hint=hint)
        time.sleep(_LOOK)


def listening(engine: Checkpointer, sandbox: Sandbox) -> frozenset[int]:
    """Return the TCP ports on which the sandbox's program listens; none if it has ended. ``EngineError`` if nobody can tell."""
    if isinstance(engine, Runsc):
        return frozenset(port for _, port in _listening(engine.tcp_tables(sandbox, deadline=_ASK_SECONDS)))
    return _of_the_host(sandbox)


class Written:
    """Says whether a text was written to a file that grows."""

    def __init__(self, path: Path, text: str) -> None:
        """Nothing is read yet; the file need not be there."""
        self._path = path
        self._text = text.encode(errors="surrogateescape")
        self._position = 0
        self._rest = b""

    def __call__(self) -> bool:
        """Look at what is new since the last time; what was seen once stays seen."""
        if self._position < 0:
            return True
        try:
            with self._path.open("rb") as file:
                file.seek(self._position)
                while new := file.read(_READ_MAX):
                    self._position += len(new)
                    if self._text in (seen := self._rest + new):
                        self._position = -1
                        return True
                    self._rest = seen[-len(self._text) :]
        except FileNotFoundError:
            pass
        return False


class _Listens:
    """Says whether the program listens on a port. That nobody can tell may pass, as while it begins: the ``problem`` is kept."""

    def __init__(self, engine: Checkpointer, sandbox: Sandbox, port: int) -> None:
        self._engine = engine
        self._sandbox = sandbox
        self._port = port
        self.problem = ""

    def __call__(self) -> bool:
        self.problem = ""
        try:
            return self._port in listening(self._engine, self._sandbox)
        except (EngineError, DeadlineError) as error:
            self.problem = error.message
            return False


def _code(engine: Checkpointer, sandbox: Sandbox) -> str:
    try:
        return f" with {engine.wait(sandbox, deadline=_ASK_SECONDS)}"
    except ImageFSError:
        return ""


def _of_the_host(sandbox: Sandbox) -> frozenset[int]:
    try:
        program = criu_state.program_pid(sandbox.state)
        tables = [Path(f"/proc/{program}/net/{name}").read_text(encoding="ascii") for name in ("tcp", "tcp6")]
    except (EngineError, OSError):
        return frozenset()
    rows = {inode: port for table in tables for inode, port in _listening(table)}
    if not rows:
        return frozenset()
    # A namespace that was given may have others that listen in it.
    held = criu_refusals.descriptors_of(criu_refusals.processes_of(program))
    return frozenset(rows[inode] for each in held if (inode := each.target.removeprefix("socket:[").removesuffix("]")) in rows)


def _listening(table: str) -> list[tuple[str, int]]:
    """Return the sockets that listen in a table like ``/proc/net/tcp``, by number, with their ports."""
    fields = (line.split() for line in table.splitlines())
    return [(row[9], int(row[1].rpartition(":")[2], 16)) for row in fields if len(row) > 9 and row[3] == _LISTEN]
