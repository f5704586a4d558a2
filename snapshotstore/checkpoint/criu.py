"""The engine CRIU: programs are processes of this host's kernel, frozen and restored with their memory as it is.

How a sandbox is made stands in ``criu_keeper`` and ``namespaces``, how it is frozen in ``criu_dump``. A checkpoint has CRIU's own images, a
copy of the writable layer, and a note of what CRIU is to get from outside at a restore. Where the contract leaves a choice:

- Established TCP connections are refused, and connections that wait to be accepted stay with the program.
- A clone has the process numbers of the program that was frozen: its pid namespace is its own.
- CRIU is told nothing about cgroups: a clone is in the one that its sandbox names, with limits as they are there. A checkpoint is taken
  outside of it, so that its pages do not count there.
"""

import errno
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from imagefs.errors import EngineError, ImageFSError, StoreFullError
from snapshotstore.checkpoint import criu_state
from snapshotstore.checkpoint.base import ENGINE, Engine, Sandbox
from snapshotstore.checkpoint.criu_keeper import MODULE, PIDFILE, STAGE
from snapshotstore.checkpoint.criu_launch import check_unused, launched
from snapshotstore.checkpoint.criu_run import COMMON, NOTE, work_folder
from snapshotstore.checkpoint.criu_state import Until
from snapshotstore.checkpoint.namespaces import place_of
from snapshotstore.checkpoint.waiting import Spare

_PROBING: Final = 30.0
_FILE: Final = re.compile(r"file\[[0-9a-f]+:[0-9a-f]+\]")
_FULL: Final = {errno.ENOSPC, errno.EDQUOT}


class Criu:
    """A ``Checkpointer``, with the program ``program``. It keeps nothing of sandboxes: everything is in their directories."""

    def __init__(self, program: Path, *, probing: float = _PROBING) -> None:
        """Nothing is run yet. ``probing``: seconds that a probe may take."""
        self._program = program
        self._probing = probing
        self._spare = Spare(MODULE)

    def probe(self) -> Engine:
        """See ``Checkpointer``."""
        from snapshotstore.checkpoint.criu_probe import probe  # noqa: PLC0415 # which a restore need not wait for

        return probe(self._program, Until(self._probing, str(self._program)))

    def prepare(self) -> None:
        """See ``Checkpointer``."""
        self._spare.prepare()

    def close(self) -> None:
        """See ``Checkpointer``."""
        self._spare.close()

    def start(self, sandbox: Sandbox, *, deadline: float) -> None:
        """See ``Checkpointer``."""
        until = Until(deadline, f"starting {sandbox.name}")
        check_unused(sandbox)
        with _errors(f"cannot start {sandbox.name}"):
            launched(self._spare.take(), sandbox, None, until)

    def checkpoint(self, sandbox: Sandbox, images: Path, *, deadline: float) -> None:
        """See ``Checkpointer``."""
        from snapshotstore.checkpoint.criu_dump import dump  # noqa: PLC0415 # likewise

        until = Until(deadline, f"the checkpoint of {sandbox.name}")
        try:
            with _errors(f"cannot freeze {sandbox.name}"):
                dump(self._program, sandbox, images, until)
        except BaseException:
            for path in images.iterdir():
                shutil.rmtree(path)
            raise

    def restore(self, sandbox: Sandbox, images: Path, *, deadline: float) -> None:
        """See ``Checkpointer``."""
        until = Until(deadline, f"the restore of {sandbox.name}")
        check_unused(sandbox)
        files = _noted(sandbox, images / ENGINE)
        with _errors(f"cannot restore {sandbox.name}"):
            work, stage = work_folder(sandbox), sandbox.state / STAGE
            command = [str(self._program), "restore", *COMMON, "--restore-detached", "--images-dir", str(images / ENGINE)]
            command += ["--work-dir", str(work), "--log-file", "restore.log", "--libdir", str(work / "none"), "--pidfile", PIDFILE]
            command += ["--root", str(stage / "root"), "--external", f"mnt[dev]:{stage / 'dev'}"]
            for number in range(len(sandbox.binds)):
                command += ["--external", f"mnt[bind{number}]:{stage / f'bind{number}'}"]
            told = {"command": command, "files": files, "work": str(work), "log": str(work / "restore.out")}
            launched(self._spare.take(), sandbox, told, until)

    def is_alive(self, sandbox: Sandbox) -> bool:
        """See ``Checkpointer``."""
        return criu_state.is_alive(sandbox.state)

    def wait(self, sandbox: Sandbox, *, deadline: float) -> int:
        """See ``Checkpointer``."""
        return criu_state.wait(sandbox.state, Until(deadline, f"the end of {sandbox.name}"))

    def remove(self, sandbox: Sandbox) -> None:
        """See ``Checkpointer``."""
        criu_state.end(sandbox.state)
        criu_state.clear(sandbox.state, sandbox.output)


def _noted(sandbox: Sandbox, folder: Path) -> list[str]:
    """Return the names of the files that are to be inherited. ``EngineError`` if CRIU's own are not whole, or the sandbox is another."""
    try:
        noted = json.loads((folder / NOTE).read_bytes())
        files, binds, sizes = [str(name) for name in noted["files"]], list(noted["binds"]), dict(noted["sizes"])
        if not all(_FILE.fullmatch(name) for name in files):
            raise ValueError(files)  # noqa: TRY301 - like what json finds
        for name, size in sizes.items():
            if (found := (folder / name).stat().st_size) != size:
                raise EngineError(f"{folder / name} is damaged: it has {found} bytes of {size}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EngineError(f"the images in {folder} are missing or damaged: {error}") from error
    if binds != (wanted := [place_of(bind) for bind in sandbox.binds]):
        raise EngineError(f"{sandbox.name} has other binds than the program that was frozen: {', '.join(wanted)} for {', '.join(binds)}")
    return files


@contextmanager
def _errors(what: str) -> Iterator[None]:
    """Turn an ``OSError`` into an error of ours, and say in any what was tried."""
    try:
        yield
    except ImageFSError as error:
        error.args = (f"{what}: {error}", *error.args[1:])
        error.message = f"{what}: {error.message}"
        raise
    except OSError as error:
        kind = StoreFullError if error.errno in _FULL else EngineError
        raise kind(f"{what}: {error}") from error
