"""One dump of a sandbox by CRIU, with a copy of its writable layer from the same moment.

CRIU runs a script of ours when it has everything and the program is still frozen. The script says so, and waits for an answer: meanwhile
the layer is copied. Promises: **the program is never left frozen**: if this process is killed, the script finds no answer and fails, and
CRIU lets the program go on; if CRIU is killed, the kernel does. A layer that could not be copied makes the dump fail. At its deadline CRIU
is made to fail, and not killed, for as long as it goes along with that: see ``criu_run.running``.

The script and its two pipes are reached as ``/proc/PID/fd/N`` of this process: so they need no file, no name that a shell could misread,
and no file system on which programs may be run.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

from imagefs.errors import EngineError
from snapshotstore.checkpoint.base import ENGINE, LAYER, Sandbox
from snapshotstore.checkpoint.criu_layer import copy_layer
from snapshotstore.checkpoint.criu_probe import can_freeze_sockets
from snapshotstore.checkpoint.criu_refusals import Descriptor, check_users, descriptors_of, processes_of, refusals, sockets
from snapshotstore.checkpoint.criu_run import COMMON, NOTE, Running, failed, running, work_folder
from snapshotstore.checkpoint.criu_state import Until, program_pid
from snapshotstore.checkpoint.namespaces import place_of

_GHOST_LIMIT: Final = "1G"
_GRACE: Final = 5.0
"""Seconds past its deadline that CRIU gets to put the program right."""

_SCRIPT: Final = """#!/bin/sh
[ "$CRTOOLS_SCRIPT_ACTION" = post-dump ] || exit 0
echo frozen >/proc/{pid}/fd/{tell} || exit 1
read -r answer </proc/{pid}/fd/{ask} && [ "$answer" = go ]
"""


class _Script(NamedTuple):
    """Where the script is, a descriptor that tells when the program is frozen, and one to answer with."""

    path: str
    frozen: int
    go: int


def dump(engine: Path, sandbox: Sandbox, images: Path, until: Until) -> None:
    """Dump a sandbox whose program runs. Errors of ours, ``OSError``: ``images`` may have anything then."""
    program = program_pid(sandbox.state)
    processes = processes_of(program)
    descriptors = list(descriptors_of(processes))
    check_users(processes)
    refused = refusals(program, descriptors)
    if (quiet := sockets(program, descriptors)) and not can_freeze_sockets(engine, until):
        refused += [f"{what}, which CRIU before 4.2 cannot freeze on this kernel" for what in quiet]
    if refused:
        raise EngineError(f"it has {'; '.join(refused)}", hint="close it before the snapshot")
    target, work = images / ENGINE, work_folder(sandbox)
    target.mkdir(mode=0o700)
    files = _outputs(sandbox, descriptors)
    command = [str(engine), "dump", *COMMON, "--tree", str(program), "--leave-running", "--images-dir", str(target)]
    command += ["--work-dir", str(work), "--log-file", "dump.log", "--libdir", str(work / "none"), "--ghost-limit", _GHOST_LIMIT]
    command += ["--network-lock", "skip", "--timeout", str(max(1, int(until.left)))]
    for external in _externals(sandbox, program, files):
        command += ["--external", external]

    def copy() -> None:
        copy_layer(sandbox.state / "upper", images / LAYER, Path(f"/proc/{program}/root"), lambda: until.left)

    with _script() as script:
        command += ["--action-script", script.path]
        with running(command, work / "dump.out", grace=_GRACE) as run:
            _attend(run, script, copy, until)
    if run.code:
        raise failed("dump", run.code, work / "dump.log")
    if not (images / LAYER).exists():
        raise EngineError("criu ended without having frozen the program")
    sizes = {path.name: path.stat().st_size for path in sorted(target.iterdir())}
    note = {"files": files, "binds": [place_of(bind) for bind in sandbox.binds], "sizes": sizes}
    (target / NOTE).touch(0o600)
    (target / NOTE).write_text(json.dumps(note), encoding="ascii")


def _attend(run: Running, script: _Script, copy: Callable[[], None], until: Until) -> None:
    """Copy the layer when the program is frozen, and see CRIU to its end."""
    try:
        if script.frozen in until.wait(script.frozen, run.pidfd):
            copy()
            os.write(script.go, b"go\n")
            until.wait(run.pidfd)
    except BaseException:
        os.write(script.go, b"no\n")  # now, or when it asks
        raise


def _outputs(sandbox: Sandbox, descriptors: list[Descriptor]) -> list[str]:
    """Return CRIU's names of the sandbox's output, which is no file of its own: one for each way in which it was opened."""
    with suppress(FileNotFoundError):
        output = sandbox.output.stat()
        names = set()
        for process, number, _ in descriptors:
            with suppress(FileNotFoundError, ProcessLookupError):
                found = Path(f"/proc/{process}/fd/{number}").stat()
                if (found.st_dev, found.st_ino) == (output.st_dev, output.st_ino):
                    lines = Path(f"/proc/{process}/fdinfo/{number}").read_text(encoding="ascii").splitlines()
                    mount = next(int(line.split()[1]) for line in lines if line.startswith("mnt_id:"))
                    names.add(f"file[{mount:x}:{found.st_ino:x}]")
        return sorted(names)
    return []


def _externals(sandbox: Sandbox, program: int, files: Sequence[str]) -> Iterator[str]:
    """Give what CRIU is not to dump: each clone gets its own."""
    yield f"net[{Path(f'/proc/{program}/ns/net').stat().st_ino}]:network"
    yield "mnt[/dev]:dev"
    for number, bind in enumerate(sandbox.binds):
        yield f"mnt[{place_of(bind)}]:bind{number}"
    yield from files


@contextmanager
def _script() -> Iterator[_Script]:
    script = os.memfd_create("frozen")
    frozen, tell = os.pipe()
    ask, go = os.pipe()
    try:
        os.write(script, _SCRIPT.format(pid=os.getpid(), tell=tell, ask=ask).encode())
        # Who has a file open for writing keeps it from being run.
        readable = os.open(f"/proc/self/fd/{script}", os.O_RDONLY | os.O_CLOEXEC)
        os.close(script)
        script = readable
        yield _Script(f"/proc/{os.getpid()}/fd/{script}", frozen, go)
    finally:
        for descriptor in (script, frozen, tell, ask, go):
            os.close(descriptor)
