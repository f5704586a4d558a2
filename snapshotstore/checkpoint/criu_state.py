"""What is kept of a sandbox in its directory: which processes are its, and how its program ended.

Any process of this host that may read the directory can ask, also after the one that started the sandbox has ended. A process is named by
its number and when it was started, so that another that got the number later is not taken for it. ``processes.json`` is written before a
keeper does anything, and again when its program runs.
"""

import json
import os
import select
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from imagefs.errors import DeadlineError, EngineError
from snapshotstore.checkpoint.criu_keeper import EXIT

KEEPER: Final = "keeper"
PROGRAM: Final = "program"

_PROCESSES: Final = "processes.json"
_REMOVAL: Final = 30.0
"""Seconds within which what was killed has to be gone."""


class Until:
    """A deadline, given as seconds from now, and what it is for."""

    def __init__(self, seconds: float, what: str) -> None:
        """It runs from now on."""
        self._end = time.monotonic() + seconds
        self._seconds = seconds
        self._what = what

    @property
    def left(self) -> float:
        """Seconds that are left. ``DeadlineError`` if none are."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise DeadlineError(f"{self._what} took more than {self._seconds:g} s")
        return left

    def wait(self, *descriptors: int) -> list[int]:
        """Wait until one of the descriptors can be read or is at its end; return those that are. ``DeadlineError``."""
        poll = select.poll()
        for descriptor in descriptors:
            poll.register(descriptor, select.POLLIN)
        while True:
            # Rounded up: the last part of a millisecond would be spent asking again and again.
            if ready := poll.poll(self.left * 1000 + 1):
                return [descriptor for descriptor, _ in ready]


def pid_of(pidfd: int) -> int | None:
    """Return the number that a process has in this pid namespace; None if it is gone."""
    for line in Path(f"/proc/self/fdinfo/{pidfd}").read_text(encoding="ascii").splitlines():
        if line.startswith("Pid:"):
            pid = int(line.split()[1])
            return pid if pid > 0 else None
    return None


def remember(state: Path, processes: dict[str, int | None]) -> None:
    """Write down the processes that these pidfds are of; None is one that has ended."""
    known: dict[str, tuple[int, int] | None] = {}
    for name, pidfd in processes.items():
        pid = None if pidfd is None else pid_of(pidfd)
        begun = None if pid is None else _begun(pid)
        known[name] = (pid, begun) if pid is not None and begun is not None else None
    new = state / f"{_PROCESSES}.new"
    new.write_text(json.dumps(known), encoding="ascii")
    new.rename(state / _PROCESSES)


def opened(state: Path, name: str) -> int | None:
    """Return a pidfd of a process of the sandbox, for the caller to close; None if it has ended. ``EngineError`` if there never was one."""
    try:
        known = json.loads((state / _PROCESSES).read_bytes()).get(name)
    except FileNotFoundError:
        raise EngineError(f"nothing was started in {state}") from None
    except (ValueError, AttributeError) as error:
        raise EngineError(f"{state / _PROCESSES} is damaged") from error
    if known is None:
        return None
    pid, begun = known
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    if _begun(pid) == begun and not _readable(pidfd):
        return pidfd
    os.close(pidfd)
    return None


def program_pid(state: Path) -> int:
    """Return the number of the sandbox's program in this pid namespace. ``EngineError`` if it does not run."""
    pidfd = opened(state, PROGRAM)
    if pidfd is None:
        raise EngineError(f"the program in {state} has ended")
    try:
        pid = pid_of(pidfd)
    finally:
        os.close(pidfd)
    if pid is None:
        raise EngineError(f"the program in {state} has ended")
    return pid


def is_alive(state: Path) -> bool:
    """Say whether the sandbox's program runs."""
    try:
        pidfd = opened(state, PROGRAM)
    except EngineError:
        return False
    if pidfd is not None:
        os.close(pidfd)
    return pidfd is not None


def wait(state: Path, until: Until) -> int:
    """Wait for the program's end; return its exit status. ``EngineError`` if nobody wrote that down."""
    # The keeper ends after it has written that down, and with it all that the program left behind.
    pidfd = opened(state, KEEPER)
    if pidfd is not None:
        try:
            until.wait(pidfd)
        finally:
            os.close(pidfd)
    try:
        return int((state / EXIT).read_text(encoding="ascii"))
    except (FileNotFoundError, ValueError):
        raise EngineError(f"nobody knows how the program in {state} ended: its keeper was killed") from None


def end(state: Path) -> None:
    """End everything that runs for the sandbox. ``DeadlineError`` if the kernel does not end it."""
    with suppress(EngineError):
        pidfd = opened(state, KEEPER)
        if pidfd is not None:
            try:
                kill(pidfd)
            finally:
                os.close(pidfd)


def kill(keeper: int) -> None:
    """End a keeper, and with it all that is in its pid namespace: when its pidfd says that it is gone, so are they."""
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(keeper, signal.SIGKILL)
    Until(_REMOVAL, "ending a sandbox").wait(keeper)


def clear(state: Path, output: Path) -> None:
    """Take away all that is in the directory but ``output``, which may be there."""
    with suppress(FileNotFoundError):
        for path in state.iterdir():
            if path == output:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def _readable(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def _begun(pid: int) -> int | None:
    """Return when a process was started, in ticks since the machine was: proc_pid_stat(5), field 22."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(stat[stat.rindex(b")") + 2 :].split()[19])
