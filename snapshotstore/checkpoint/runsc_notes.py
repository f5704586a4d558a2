"""What is known of a sandbox that runsc runs, in its directory: who its processes are, and how the program ended.

Promises: a process is named by its id *and* the time of its start, so a note never speaks of another one that has got the id since; a note
is there whole or not at all. A process that is a zombie has ended.
"""

import json
import os
import select
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

KEEPER: Final = "keeper"
SANDBOX: Final = "sandbox"
EXIT: Final = "exit"

_START: Final = 19  # of the fields of /proc/PID/stat after the name: proc(5) counts it as 22


def write(path: Path, text: str) -> None:
    """Write a note."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(text, encoding="ascii")
    new.rename(path)


def write_process(path: Path, pid: int) -> None:
    """Note a process that is there, or is this process's child and not reaped. ``OSError`` if it is not there."""
    write(path, json.dumps({"pid": pid, "start": _start_of(pid)}))


@dataclass(frozen=True, slots=True)
class Process:
    """A process that is held: its id is its own until this is closed, whether it has ended or not."""

    pid: int
    pidfd: int

    def __enter__(self) -> Self:
        """Give it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Let it go."""
        os.close(self.pidfd)

    def has_ended(self, seconds: float = 0) -> bool:
        """Wait until it has ended, for some seconds at most; say whether it has."""
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return bool(poll.poll(max(seconds, 0) * 1000))

    def end(self, number: int, patience: float) -> None:
        """Send it a signal, and after some seconds the one that it cannot handle; return when it has ended, or will not."""
        for each in (number, signal.SIGKILL):
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, each)
            if self.has_ended(patience):
                return


def open_process(path: Path) -> Process | None:
    """Return the process that was noted, to be closed; None if it has ended, or nothing was noted."""
    try:
        noted = json.loads(path.read_bytes())
        held = Process(noted["pid"], os.pidfd_open(noted["pid"]))
    except (FileNotFoundError, NotADirectoryError, ProcessLookupError):
        return None
    with suppress(OSError):
        # Looked at once it is held: the id cannot go to another process now.
        if _start_of(held.pid) == noted["start"] and not held.has_ended():
            return held
    os.close(held.pidfd)
    return None


def read_exit(state: Path) -> int | None:
    """Return the exit status of the program of a sandbox, None if none was noted."""
    try:
        return int((state / EXIT).read_text(encoding="ascii"))
    except (FileNotFoundError, NotADirectoryError):
        return None


def _start_of(pid: int) -> int:
    # The name, in parentheses, may have anything in it.
    return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[_START])
