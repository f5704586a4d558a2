"""CRIU as a process of ours: how it is run, where it works, and what it said when it failed."""

import errno
import os
import re
import resource
import select
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from imagefs.errors import EngineError, StoreFullError
from snapshotstore.checkpoint.base import Sandbox

ENVIRONMENT: Final = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
"""Of CRIU, which runs tar(1)."""

COMMON: Final = ("--manage-cgroups=ignore", "--no-default-config", "--file-locks", "--link-remap", "--skip-in-flight")
"""Options of both ways: cgroups are the caller's; connections that wait to be accepted stay where they are."""

NOTE: Final = "imagefs.json"
"""What a restore has to know beside CRIU's files: which ``files`` it inherits, where the ``binds`` are seen, and the ``sizes`` of its own.

CRIU does not end if its pages are fewer than it was told.
"""

_ERROR: Final = re.compile(r"Error \([^)]*\): *(.*)")
_ERRORS_SHOWN: Final = 3
_NOISE: Final = ("rlimit: ", "Dumping FAILED", "Restoring FAILED")
"""Lines of its log that say nothing: it goes on with fewer descriptors than it would like, and it failed."""

_MEANINGS: Final[Mapping[str, str]] = {
    "Can't get 1:16 opt": "CRIU before 4.2 cannot freeze TCP and UDP sockets on Linux 6.16 and newer",
    "Can't dump that handle": "it has an inotify or fanotify watch on a file of its root, which is an overlay: CRIU cannot find that again",
    "Can't lookup mount=": "a file is mapped or open that is in none of the sandbox's mounts: its root may be an overlay on an overlay",
}
"""What some of its lines mean, by how they begin."""


def work_folder(sandbox: Sandbox) -> Path:
    """Return where CRIU works for a sandbox, and writes its logs. An empty directory in it is to have no plugins of CRIU's."""
    folder = sandbox.state / "criu"
    (folder / "none").mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


class Running:
    """CRIU while it runs: ``pidfd`` can be read once it has ended. Its exit status is ``code``, from when it was left on."""

    def __init__(self) -> None:
        """It is not known yet."""
        self.pidfd = -1
        self.code = 0


@contextmanager
def running(command: Sequence[str], output: Path, *, grace: float = 0.0) -> Iterator[Running]:
    """Run CRIU; end it, and what it started, when that is left: if it has to be, after ``grace`` seconds in which it may end by itself.

    Killed while it is in a program's memory, CRIU may take the program along (measured: about once in a hundred kills). So a dump is first
    made to fail: whatever it writes to a file is refused from then on, and it puts the program right, as where the disk is full.
    """
    with output.open("wb") as file:
        # As Python has it, SIGXFSZ stays ignored: what is refused is an error then, and kills nobody.
        process = subprocess.Popen(  # noqa: S603 - the engine that the caller named
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env=ENVIRONMENT,
            umask=0o077,
            start_new_session=True,
            restore_signals=not grace,
        )
    run = Running()
    try:
        run.pidfd = os.pidfd_open(process.pid)
        try:
            yield run
        finally:
            if grace and not _ends(run.pidfd, 0):
                with suppress(ProcessLookupError):
                    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, resource.prlimit(process.pid, resource.RLIMIT_FSIZE)[1]))
                _ends(run.pidfd, grace)
            os.close(run.pidfd)
    finally:
        # It is not reaped yet, so that the number is that of its process group, whoever is left in it.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        run.code = process.wait()


def _ends(pidfd: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def failed(what: str, code: int, log: Path) -> EngineError | StoreFullError:
    """Return the error for CRIU's exit status, with the first that it says about it in its log."""
    text = ""
    with suppress(OSError):
        text = log.read_text(errors="replace")
    found = [match[1].strip() for match in map(_ERROR.search, text.splitlines()) if match]
    said = [meaning for begin, meaning in _MEANINGS.items() if any(begin in line for line in found)]
    said = said or list(dict.fromkeys(line for line in found if line and not line.startswith(_NOISE)))
    if any(os.strerror(number) in line for number in (errno.ENOSPC, errno.EDQUOT) for line in said):
        return StoreFullError(f"no room for the {what}: {said[0]}")
    return EngineError(f"criu {what} failed: {'; '.join(said[:_ERRORS_SHOWN]) or f'it ended with {code}'}")
