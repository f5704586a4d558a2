"""gVisor: programs run by ``runsc``, on a kernel of their own that can be frozen whole, their writable layer and network stack included.

How it keeps the promises of ``base``:

- **The program goes on**: a checkpoint is always taken with ``--leave-running``, without which a failed one kills the program. What runsc
  would fail at is looked for before (``runsc_sockets``), because it finds it only once the program is frozen.
- **Who is alive** is told by the sandbox process, which is the program's kernel and ends with it; runsc's own ``state`` calls dead ones
  running. It is held by a pidfd, and its keeper (``runsc_keeper``) notes its exit status, which is the program's.
- **Each call has a deadline**: a runsc that is late is killed; and where a program was to be started, all that came of it.
- The images have the layer, which is in the sandbox's memory. So there is never an ``images / LAYER``; ``lower`` is refused.

What this engine cannot do: ``fixed_layout`` is without effect, since gVisor lays out addresses itself, at random, whatever its process's
personality, and refuses ``personality(2)`` to programs. So two starts of one program share 12 % of their pages; a snapshot and the next
one, or that of a clone, all of them (measured, runsc 2024-07). And each program has ``HOME`` in its environment, from the image's
``/etc/passwd`` if it is not given.

A network namespace that is given loses the addresses of its links to the sandbox, for good: its next sandbox needs them set anew.
"""

import errno
import json
import os
import select
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from imagefs.errors import DeadlineError, EngineError, ImageFSError, StoreFullError, UnsupportedError
from snapshotstore.checkpoint import bundle, runsc_notes, runsc_program, runsc_reader, runsc_sockets
from snapshotstore.checkpoint.base import ENGINE, Engine, Sandbox
from snapshotstore.checkpoint.runsc_keeper import MODULE, Request, said
from snapshotstore.checkpoint.waiting import Spare

IDENTITY: Final = "sandbox.json"
_FILES: Final = ("checkpoint.img", "pages_meta.img", "pages.img", IDENTITY)

_BUNDLE: Final = "bundle"
_ROOT: Final = "runsc"
_PID_FILE: Final = "sandbox.pid"
_TRIAL: Final = "/imagefs-none"
_TRIAL_SECONDS: Final = 30.0
_END_SECONDS: Final = 10.0
_HANG_UP_SECONDS: Final = 2.0
_REPORT_MAX: Final = 1 << 20
_NO_ROOM: Final = os.strerror(errno.ENOSPC).lower()


class Runsc:
    """See the module. ``program`` is runsc; nothing else is kept, but what :meth:`probe` found."""

    def __init__(self, program: Path) -> None:
        """Nothing is run yet."""
        self._program = program
        self._found: Engine | None = None
        self._spare = Spare(MODULE)

    def probe(self) -> Engine:
        """Look once: what was found holds as long as this object is used."""
        if self._found is None:
            self._found = runsc_program.look(self._program)
            try:
                self._try()
            except BaseException:
                self._found = None
                raise
        return self._found

    def trust(self, found: Engine) -> None:
        """Take what another object for this program has found."""
        self._found = found

    def _try(self) -> None:
        """Start a program that is not there: what says so is the kernel in the sandbox, which then works."""
        import tempfile  # noqa: PLC0415 # which a restore need not wait for

        with tempfile.TemporaryDirectory(prefix="imagefs-probe-") as name:
            folder = Path(name)
            for place in ("root", "state"):
                (folder / place).mkdir(mode=0o700)
            sandbox = Sandbox(
                name=f"probe-{os.urandom(8).hex()}",
                root=folder / "root",
                state=folder / "state",
                output=folder / "output",
                argv=(_TRIAL,),
            )
            try:
                self.start(sandbox, deadline=_TRIAL_SECONDS)
            except (EngineError, DeadlineError) as error:
                if _TRIAL not in error.message:
                    raise UnsupportedError(f"{self._program} does not work here: {error.message}") from error
            finally:
                self.remove(sandbox)

    def prepare(self) -> None:
        """See ``Checkpointer``."""
        self._spare.prepare()

    def close(self) -> None:
        """See ``Checkpointer``."""
        self._spare.close()

    # -- a program begins -----------------------------------------------------------------------------------------------------------------

    def start(self, sandbox: Sandbox, *, deadline: float) -> None:
        """See ``Checkpointer``."""
        until = time.monotonic() + deadline
        self.probe()
        self._launch(sandbox, [["start", sandbox.name]], until)

    def restore(self, sandbox: Sandbox, images: Path, *, deadline: float) -> None:
        """See ``Checkpointer``."""
        until = time.monotonic() + deadline
        folder = images / ENGINE
        _check_images(sandbox, folder)
        restore = ["restore", "--image-path", str(folder), "--bundle", str(sandbox.state / _BUNDLE), "--detach"]
        commands = [[*restore, sandbox.name]]
        if runsc_program.BACKGROUND in self.probe().features:
            # The program runs before its pages are there; nothing may go away before they are.
            commands = [[*restore, "--background", sandbox.name], ["wait", "--restore", sandbox.name]]
        self._launch(sandbox, commands, until)

    def _launch(self, sandbox: Sandbox, commands: list[list[str]], until: float) -> None:
        """Have a keeper run commands that leave the program running; return when it runs."""
        document = _document(sandbox)
        try:
            with _explained(f"{sandbox.name} does not run"):
                _lay_out(sandbox, document)
                self._hear(sandbox, commands, until)
        except BaseException:
            self.remove(sandbox)
            raise

    def _hear(self, sandbox: Sandbox, commands: list[list[str]], until: float) -> None:
        """Tell a keeper, and wait for its report. It ends with the keeper, if not before: then nothing is left of what that started."""
        reader, writer = os.pipe()
        with os.fdopen(reader, "rb", buffering=0), closing(self._spare.take()) as keeper:
            with os.fdopen(writer, "wb", buffering=0), _output_of(sandbox) as output:
                keeper.tell(json.dumps(self._request(sandbox, commands)).encode(), output, writer)
            try:
                told = _read_all(reader, until)
            except DeadlineError:
                _end_group(keeper.process.pid, reader)
                raise DeadlineError(f"{sandbox.name} did not run before the deadline") from None
        answer = json.loads(told) if told else {"error": "its keeper was ended"}
        if "error" in answer:
            raise EngineError(answer["error"])

    def _request(self, sandbox: Sandbox, commands: list[list[str]]) -> Request:
        log, pid_file = sandbox.state / "begin.log", sandbox.state / _PID_FILE
        create = ["create", "--bundle", str(sandbox.state / _BUNDLE), "--pid-file", str(pid_file), sandbox.name]
        return {
            "state": str(sandbox.state),
            "cgroup": str(sandbox.cgroup) if sandbox.cgroup is not None else None,
            "has_network": sandbox.network is not None,
            "log": str(log),
            "pid_file": str(pid_file),
            "commands": [self._command(sandbox, log, *command) for command in (create, *commands)],
        }

    # -- it is frozen ---------------------------------------------------------------------------------------------------------------------

    def checkpoint(self, sandbox: Sandbox, images: Path, *, deadline: float) -> None:
        """See ``Checkpointer``."""
        until = time.monotonic() + deadline
        features = self.probe().features
        folder = images / ENGINE
        command = ["checkpoint", "--image-path", str(folder), "--leave-running", "--compression=none"]
        if runsc_program.ZERO_PAGES in features:
            command.append(f"--{runsc_program.ZERO_PAGES}")
        with _explained(f"cannot freeze {sandbox.name}"), self._running(sandbox) as process:
            self._refuse(sandbox, process, until)
            with _whole(folder):
                self._call(sandbox, [*command, sandbox.name], until)
                (folder / IDENTITY).write_bytes(bundle.encode(bundle.identity(sandbox)))
                for name in _FILES:
                    (folder / name).chmod(0o600)
                if process.has_ended():
                    # By itself perhaps, and after it was frozen: nobody can tell.
                    raise EngineError("it ended meanwhile")

    def _refuse(self, sandbox: Sandbox, process: runsc_notes.Process, until: float) -> None:
        """Raise what the program has open that cannot be frozen, if anything."""
        found = [f"the host's socket {name}" for name in runsc_sockets.host_unix_sockets(process.pid, process.pidfd)]
        if sandbox.network is not None:
            found += self._connections(sandbox, until)
        if found:
            raise EngineError(
                f"it has connections that cannot be frozen: {'; '.join(found)}",
                hint="a program closes its connections before a snapshot, and opens them anew after it",
            )

    def _connections(self, sandbox: Sandbox, until: float) -> list[str]:
        count = runsc_sockets.count_open(self._call(sandbox, ["export-metrics", sandbox.name], until))
        if count == 0:
            return []
        with suppress(EngineError):
            return [f"TCP {connection}" for connection in runsc_sockets.connections(self._tcp_tables(sandbox, until))]
        return [f"{'some' if count is None else count} TCP connections (nobody can see which)"]

    def tcp_tables(self, sandbox: Sandbox, *, deadline: float) -> str:
        """Return the tables of the program's TCP sockets, as in ``/proc/net/tcp``. ``EngineError`` if they cannot be read."""
        return self._tcp_tables(sandbox, time.monotonic() + deadline)

    def _tcp_tables(self, sandbox: Sandbox, until: float) -> str:
        with runsc_reader.ways() as ways:
            problem: EngineError | None = None
            for way in ways:
                command = ["exec", *way.options, "--cwd", "/", sandbox.name, "cat", *runsc_sockets.TCP_TABLES]
                try:
                    return self._call(sandbox, command, until, way.descriptors).decode(errors="replace")
                except EngineError as error:
                    problem = error
        raise problem or EngineError("there is no way to read in a sandbox")

    # -- it is there, or is not -----------------------------------------------------------------------------------------------------------

    def is_alive(self, sandbox: Sandbox) -> bool:
        """See ``Checkpointer``."""
        held = runsc_notes.open_process(sandbox.state / runsc_notes.SANDBOX)
        if held is None:
            return False
        with held:
            return True

    def _running(self, sandbox: Sandbox) -> runsc_notes.Process:
        held = runsc_notes.open_process(sandbox.state / runsc_notes.SANDBOX)
        if held is None:
            raise EngineError("it does not run")
        return held

    def wait(self, sandbox: Sandbox, *, deadline: float) -> int:
        """See ``Checkpointer``."""
        until = time.monotonic() + deadline
        for name in (runsc_notes.KEEPER, runsc_notes.SANDBOX):
            held = runsc_notes.open_process(sandbox.state / name)
            if held is not None:
                with held:
                    if not held.has_ended(until - time.monotonic()):
                        raise DeadlineError(f"{sandbox.name} still runs")
        code = runsc_notes.read_exit(sandbox.state)
        if code is None:
            was_there = (sandbox.state / runsc_notes.KEEPER).exists()
            raise EngineError(f"{sandbox.name} {'was killed together with its keeper' if was_there else 'was never started here'}")
        return code

    def remove(self, sandbox: Sandbox) -> None:
        """See ``Checkpointer``."""
        if sandbox.network is not None:
            self._hang_up(sandbox)
        # The sandbox process is there still if its keeper was killed.
        for name, number in ((runsc_notes.KEEPER, signal.SIGTERM), (runsc_notes.SANDBOX, signal.SIGKILL)):
            held = runsc_notes.open_process(sandbox.state / name)
            if held is not None:
                with held:
                    held.end(number, _END_SECONDS)
        root = sandbox.state / _ROOT
        if root.is_dir() and any(root.iterdir()):
            with suppress(ImageFSError):  # What it knew of is gone; whatever it did not remove is removed below.
                self._call(sandbox, ["delete", "--force", sandbox.name], time.monotonic() + _END_SECONDS)
        with suppress(FileNotFoundError):
            for entry in sandbox.state.iterdir():
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry, ignore_errors=True)
                else:
                    entry.unlink(missing_ok=True)

    def _hang_up(self, sandbox: Sandbox) -> None:
        """End the program from within: its kernel closes its connections then, of which their other ends would hear nothing otherwise."""
        held = runsc_notes.open_process(sandbox.state / runsc_notes.SANDBOX)
        if held is None:
            return
        with held, suppress(ImageFSError):
            self._call(sandbox, ["kill", sandbox.name, "KILL"], time.monotonic() + _HANG_UP_SECONDS)
            held.has_ended(_HANG_UP_SECONDS)

    # -- runsc ----------------------------------------------------------------------------------------------------------------------------

    def _command(self, sandbox: Sandbox, log: Path, *arguments: str) -> list[str]:
        """Return a command line. What runsc is told before the command has to be equal for all commands of a sandbox, and of a snapshot."""
        flags = runsc_program.flags(sandbox, sandbox.state / _ROOT, log, self._found.features if self._found else frozenset())
        return [str(self._program), *flags, *arguments]

    def _call(self, sandbox: Sandbox, arguments: Sequence[str], until: float, descriptors: Sequence[int] = ()) -> bytes:
        """Run a command to its end; return what it wrote."""
        log = sandbox.state / f"{arguments[0]}.log"
        log.unlink(missing_ok=True)
        try:
            return runsc_program.run(self._command(sandbox, log, *arguments), until, descriptors=descriptors)
        except runsc_program.StatusError as error:
            raise EngineError(said(log)) from error


def _document(sandbox: Sandbox) -> dict[str, Any]:
    """Return the sandbox's document, if it can be run here."""
    if sandbox.lower:
        raise EngineError(
            f"{sandbox.name} cannot lie over frozen layers, as {sandbox.lower[0]}: this engine has them in its files",
            hint="snapshots with layers are those of another engine",
        )
    with _explained(f"{sandbox.name} does not run"):
        if any(sandbox.state.iterdir()):
            raise EngineError(f"{sandbox.state} is not empty: remove what ran there first")
        for path in (sandbox.root, *(bind.source for bind in sandbox.binds)):
            path.stat()  # Of what is not there runsc's process for files dies, and nobody says of what.
    return bundle.config(sandbox)


def _lay_out(sandbox: Sandbox, document: dict[str, Any]) -> None:
    for name in (_ROOT, _BUNDLE):
        (sandbox.state / name).mkdir(mode=0o700)
    with open(sandbox.state / _BUNDLE / "config.json", "xb", opener=_private) as file:
        file.write(bundle.encode(document))


@contextmanager
def _output_of(sandbox: Sandbox) -> Iterator[int]:
    output = os.open(sandbox.output, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        yield output
    finally:
        os.close(output)


def _end_group(group: int, report: int) -> None:
    """End a keeper that is not known yet, by its session; return when it has ended, or will not."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(group, number)
        with suppress(DeadlineError):
            _read_all(report, time.monotonic() + _END_SECONDS)
            return


def _read_all(descriptor: int, until: float) -> bytes:
    """Read a pipe to its end."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    told = b""
    while poll.poll(max(0, until - time.monotonic()) * 1000):
        read = os.read(descriptor, _REPORT_MAX)
        if not read:
            return told
        told += read
    raise DeadlineError("nothing was heard of a keeper")


def _check_images(sandbox: Sandbox, folder: Path) -> None:
    """Raise unless ``folder`` has what a sandbox like this one can be restored from. That the bytes are right is for the store to see."""
    missing = [name for name in _FILES if not (folder / name).is_file()]
    if missing:
        raise EngineError(f"{sandbox.name} cannot be restored: the images lack {', '.join(missing)}")
    try:
        known = json.loads((folder / IDENTITY).read_bytes())
        differing = bundle.differences(known, bundle.identity(sandbox))
    except (OSError, ValueError, AttributeError) as error:
        raise EngineError(f"{sandbox.name} cannot be restored: what was frozen is not told in {IDENTITY}: {error}") from error
    if differing:
        raise EngineError(f"{sandbox.name} cannot be restored: it differs from what was frozen in its {', '.join(differing)}")


@contextmanager
def _whole(folder: Path) -> Iterator[None]:
    """Make a directory, and take it away again if what fills it fails."""
    folder.mkdir(mode=0o700)
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


@contextmanager
def _explained(problem: str) -> Iterator[None]:
    """Say of an error what it prevented, and make it one that callers expect."""
    try:
        yield
    except (EngineError, OSError) as error:
        why = error.message if isinstance(error, EngineError) else f"{error.filename}: {error.strerror}"
        kind = StoreFullError if _NO_ROOM in why.lower() else EngineError
        raise kind(f"{problem}: {why}", hint=getattr(error, "hint", None)) from error


def _private(path: str, how: int) -> int:
    return os.open(path, how, 0o600)
