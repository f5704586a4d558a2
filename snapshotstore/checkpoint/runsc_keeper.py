"""The keeper of a sandbox that runsc runs: ``python -m snapshotstore.checkpoint.runsc_keeper DESCRIPTOR``, which is for ``told``.

It is told a :class:`Request`, and two descriptors: the program's output, and the pipe for the report.

It starts runsc inside the sandbox's cgroup, is the parent of all that runsc leaves running, and writes down how the program ended: gVisor's
sandbox process ends with the exit status of the program in it, and nobody else could reap it. Promises:

- Until the report it has ended everything if anything fails, or if it is told to end (``SIGTERM``); then it ends itself.
- After the report ``STATE/exit`` is there, whole, before it ends; and it ends soon after the program does.
- It opens nothing of the sandbox, and gives nothing to runsc but the program's output and ``/dev/null``.

It is a process of its own, and not a child of who asked, so a program outlives that. One thread. What does not live here: which commands
runsc is given, and in what order (``runsc``).
"""

import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NoReturn, NotRequired, TypedDict

from imagefs import syscalls
from snapshotstore.checkpoint import runsc_notes
from snapshotstore.checkpoint.told import told

MODULE: Final = "snapshotstore.checkpoint.runsc_keeper"

_NEW_MOUNTS: Final = 0x00020000  # CLONE_NEWNS
_MS_SLAVE: Final = 1 << 19
_MS_REC: Final = 1 << 14
_NETWORK_SETTINGS: Final = Path("/proc/sys/net")
_ENVIRONMENT: Final = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
_LOG_MAX: Final = 1 << 20
_MESSAGE_MAX: Final = 1000
_KILLED: Final = 128 + signal.SIGKILL


class Request(TypedDict):
    """What the keeper is asked to do."""

    state: str
    cgroup: str | None
    has_network: bool
    log: str
    """Where the commands leave their errors."""

    pid_file: str
    """Where the first command leaves the id of the sandbox process."""

    commands: list[list[str]]
    """The first one makes the sandbox, which is the program's from then on; the last one leaves the program running."""


class Report(TypedDict):
    """How it went, at the end of the pipe, which has nothing if the keeper was told to end. After an error nothing is left running."""

    error: NotRequired[str]


class _ToldToEndError(BaseException):
    """Raised by the signal wherever the keeper is."""


class _FailedError(Exception):
    """One of the commands failed: what it said."""


def main(arguments: list[str]) -> NoReturn:
    """Wait for what is to be kept; part from the caller; keep."""
    found = told(int(arguments[0]))
    if found is None or os.fork():
        os._exit(0)
    request, (output, report) = found
    with suppress(_ToldToEndError):
        Keeper(json.loads(request), output, report).run()
    os._exit(0)


class Keeper:
    """See the module."""

    def __init__(self, request: Request, output: int, report: int) -> None:
        """Nothing is started yet."""
        self._request = request
        self._output = output
        self._pipe = report
        self._state = Path(request["state"])
        self._ended: dict[int, int] = {}

    def run(self) -> None:
        """Run the commands, report, wait for the end of the program, write it down."""
        signal.signal(signal.SIGTERM, _told_to_end)
        sandbox = None
        try:
            sandbox = self._begin()
            self._report({})
            self._wait(sandbox)
        except _ToldToEndError:
            self._end_all()
        except (_FailedError, OSError, ValueError) as error:
            self._end_all()
            if sandbox is None:
                self._report({"error": _told(error)})
        if sandbox is not None:
            self._note_exit(self._ended.get(sandbox, _KILLED))
        self._end_all()

    def _begin(self) -> int:
        """Have runsc start or restore the program; return the id of the sandbox process."""
        request = self._request
        syscalls.adopt_orphans()
        runsc_notes.write_process(self._state / runsc_notes.KEEPER, os.getpid())
        if request["cgroup"] is not None:
            (Path(request["cgroup"]) / "cgroup.procs").write_text("0", encoding="ascii")
        if request["has_network"]:
            _hide_network_settings()
        first, *others = request["commands"]
        self._command(first)
        sandbox = int(Path(request["pid_file"]).read_text(encoding="ascii"))
        os.close(self._output)
        with suppress(OSError):  # It may have been short.
            runsc_notes.write_process(self._state / runsc_notes.SANDBOX, sandbox)
        for command in others:
            self._command(command)
        return sandbox

    def _command(self, command: list[str]) -> None:
        is_first = command is self._request["commands"][0]
        actions: list[Any] = [(os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0)]
        for number in (1, 2):
            if is_first:
                actions.append((os.POSIX_SPAWN_DUP2, self._output, number))
            else:
                actions.append((os.POSIX_SPAWN_OPEN, number, "/dev/null", os.O_WRONLY, 0))
        child = os.posix_spawn(command[0], command, _ENVIRONMENT, file_actions=actions)
        if self._wait(child):
            raise _FailedError(said(Path(self._request["log"])))

    def _wait(self, process: int) -> int:
        """Reap everything until ``process`` has ended; return its exit status, 128 and the signal for one that was killed."""
        while process not in self._ended:
            self._reap()
        return self._ended[process]

    def _reap(self) -> None:
        found, status = os.wait()
        code = os.waitstatus_to_exitcode(status)
        self._ended[found] = code if code >= 0 else 128 - code

    def _end_all(self) -> None:
        """End and reap every process below: who loses its parent meanwhile becomes a child of this process."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with suppress(ChildProcessError):
            while True:
                for child in _children():
                    with suppress(ProcessLookupError):
                        os.kill(child, signal.SIGKILL)
                self._reap()

    def _report(self, report: Report) -> None:
        with suppress(OSError), os.fdopen(self._pipe, "wb") as pipe:  # Who asked may be gone; the program stays.
            pipe.write(json.dumps(report).encode())

    def _note_exit(self, code: int) -> None:
        with suppress(OSError):  # Whoever takes the directory away wants to know nothing more.
            runsc_notes.write(self._state / runsc_notes.EXIT, f"{code}\n")


def said(log: Path) -> str:
    """Return what the first error in a log of runsc's says, the cause of the others, in one line: the rest are stacks."""
    with suppress(OSError, ValueError, KeyError, TypeError), log.open("rb") as file:
        # Documents back to back, with nothing between them.
        first, _ = json.JSONDecoder().raw_decode(file.read(_LOG_MAX).decode(errors="replace").lstrip())
        return str(first["msg"]).split("\n", 1)[0].rstrip(": ")[:_MESSAGE_MAX]
    return "it failed and did not say why"


def _children() -> list[int]:
    with suppress(FileNotFoundError):  # A kernel without CONFIG_PROC_CHILDREN
        return [int(word) for word in Path("/proc/thread-self/children").read_text(encoding="ascii").split()]
    own = str(os.getpid()).encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (folder / "stat").read_bytes().rpartition(b")")[2].split()[1] == own:
                found.append(int(folder.name))
    return found


def _hide_network_settings() -> None:
    """Show runsc a ``/proc/sys/net`` that is empty, in a mount namespace of its own.

    It takes a setting there that once only the host's first network namespace had for being in that, and then refuses to have a network.
    """
    syscalls.unshare(_NEW_MOUNTS)
    syscalls.mount(None, Path("/"), _MS_SLAVE | _MS_REC)
    syscalls.mount_new("tmpfs", "imagefs", _NETWORK_SETTINGS, 0, "size=4k")


def _told(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    return str(error) or type(error).__name__


def _told_to_end(*_: object) -> None:
    raise _ToldToEndError


if __name__ == "__main__":
    main(sys.argv[1:])
