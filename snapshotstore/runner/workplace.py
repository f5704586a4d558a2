"""Where a runner works: a directory of its own below the runtime directory, one below it for each replica, and the logs, which stay.

Invariants: everything is for this user alone (0700); a directory is locked as long as its runner lives, so one that is not is a dead
one's, and :meth:`Workplace.sweep` ends what ran there and takes it away. Directories are made, and told to be dead, under one lock, so that
none is taken for dead before it is locked. Logs are bounded in number, the oldest go.
"""

import contextlib
import errno
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from imagefs.digest import digest_of
from imagefs.errors import AccessError, ImageFSError, StoreFullError
from imagefs.mount.bind import unmount
from imagefs.mount.mountinfo import read_mounts
from snapshotstore.checkpoint.base import Checkpointer, Sandbox

LOGS_MAX: Final = 200
_RUNNERS: Final = "runners"
_LOGS: Final = "logs"
_LOCK: Final = "lock"
_CHECKPOINTS: Final = "-checkpoints"
_ENGINE: Final = "engine"
_FULL: Final = {errno.ENOSPC, errno.EDQUOT}


@contextlib.contextmanager
def host_errors() -> Iterator[None]:
    """Make an error of ours of what the directories of this host have to say: they are full, or cannot be used."""
    try:
        yield
    except OSError as error:
        where = error.filename2 or error.filename or "its directories"
        if error.errno in _FULL:
            raise StoreFullError(
                f"this host has no room for a program to run: {where}: {error.strerror}",
                hint="free some space there, or use another --runtime and --cache",
            ) from error
        raise AccessError(f"cannot use {where}: {error.strerror or error}", hint="check --runtime and --cache") from error


class Workplace:
    """See the module. A context manager: leaving it takes the directory away."""

    def __init__(self, runtime: Path, cache: Path) -> None:
        """Make a directory below ``runtime``. What is frozen lies beside ``cache`` until it is published: it is as large as the memory."""
        self._runners = runtime / _RUNNERS
        self.logs = runtime / _LOGS
        self._checkpoints = cache.with_name(cache.name + _CHECKPOINTS)
        with host_errors():
            for folder in (runtime, cache.parent):
                folder.mkdir(parents=True, exist_ok=True)
            for folder in (self._runners, self.logs, self._checkpoints):
                folder.mkdir(mode=0o700, exist_ok=True)
            # Several runtime directories may have one cache: each looks after what is its own there.
            self._mine = f"{digest_of(os.fsencode(os.path.realpath(runtime))).hex()[:8]}-"
            self.name = os.urandom(6).hex()
            self.folder = self._runners / self.name
            with _alone(self._runners):
                self.folder.mkdir(mode=0o700)
                self._lock = _locked(self.folder)
            self.mounts = self.folder / "mounts"
            self.mounts.mkdir(mode=0o700)

    def replica(self, app: str, engine: str) -> "ReplicaPlace":
        """Make a place for a replica of ``app`` that ``engine`` runs, and its log. ``StoreFullError``, ``AccessError``."""
        name = f"r-{self.name}-{os.urandom(4).hex()}"
        home = self.folder / name
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
        place = ReplicaPlace(name, home, self.logs / f"{app}-{stamp}-{name[2:]}.log")
        try:
            with host_errors():
                for folder in (home, home / "state", home / "replica"):
                    folder.mkdir(mode=0o700)
                (home / _ENGINE).write_text(engine)
                self._prune()
        except BaseException:
            place.close()
            raise
        return place

    def checkpoint(self) -> Path:
        """Make an empty directory for what is frozen. ``StoreFullError``, ``AccessError``."""
        folder = self._checkpoints / f"{self._mine}{self.name}-{os.urandom(4).hex()}"
        with host_errors():
            folder.mkdir(mode=0o700)
        return folder

    def close(self) -> None:
        """Take the directory away; whoever mounted something there has unmounted it."""
        with _alone(self._runners):
            shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)

    def _prune(self) -> None:
        # A name begins with an app, so the time is the file's own.
        names = os.listdir(self.logs)  # noqa: PTH208 - there are hundreds, and a call waits for this
        for suffix in (".log", ".json"):
            found = [self.logs / name for name in names if name.endswith(suffix)]
            if len(found) >= LOGS_MAX:
                found.sort(key=_mtime)
                for path in found[: len(found) - LOGS_MAX + 1]:
                    with contextlib.suppress(OSError):
                        path.unlink()

    def sweep(self, engine: Callable[[str], Checkpointer]) -> None:
        """Take away what killed runners left: programs, mounts, directories. What cannot be taken away now stays for the next one.

        ``engine`` gives what may have run something here, by name, whether or not it still works; ``KeyError`` for one that is none.
        """
        # Before the runners: one that makes a checkpoint from now on is among those.
        checkpoints = [folder for folder in self._checkpoints.iterdir() if folder.name.startswith(self._mine)]
        dead = []
        with _alone(self._runners):
            folders = [folder for folder in self._runners.iterdir() if folder.is_dir()]
            for folder in folders:
                lock = _locked(folder, wait=False) if folder != self.folder else -1
                if lock >= 0:
                    dead.append((folder, lock))
        try:
            for folder, _ in dead:
                _take_away(folder, engine)
        finally:
            for _, lock in dead:
                os.close(lock)
        living = {folder.name for folder in folders} - {folder.name for folder, _ in dead}
        for folder in checkpoints:
            if folder.name.removeprefix(self._mine).partition("-")[0] not in living:
                shutil.rmtree(folder, ignore_errors=True)


class ReplicaPlace:
    """A replica's ``home``, which has ``state`` and ``replica``, its log ``output``, and its ``name``, unlike any other's here."""

    def __init__(self, name: str, home: Path, output: Path) -> None:
        """All of it is there."""
        self.name = name
        self.home = home
        self.output = output

    def close(self) -> None:
        """Take it away, but for the log."""
        shutil.rmtree(self.home, ignore_errors=True)
        with contextlib.suppress(OSError):
            if not self.output.stat().st_size:
                self.output.unlink()


def logs_folder(runtime: Path) -> Path:
    """Return where the logs of replicas are, and the files that tell how they started (``timeline``)."""
    return runtime / _LOGS


def logs_of(runtime: Path) -> list[Path]:
    """Return the logs of replicas below ``runtime``, the newest first."""
    return sorted(logs_folder(runtime).glob("*.log"), key=_mtime, reverse=True)


def _take_away(folder: Path, engine: Callable[[str], Checkpointer]) -> None:
    for home in folder.glob("r-*"):
        with contextlib.suppress(ImageFSError, OSError, KeyError):
            # By its own engine alone: another one knows nothing of its programs, and takes away what is known of them.
            ran = engine((home / _ENGINE).read_text())
            ran.remove(Sandbox(name=home.name, root=Path("/"), state=home / "state", output=home / "none", argv=("none",)))
    for point in _mounted_below(folder):
        with contextlib.suppress(ImageFSError):
            unmount(point, lazy=True)
    if not _mounted_below(folder):
        shutil.rmtree(folder, ignore_errors=True)


def _mounted_below(folder: Path) -> list[Path]:
    """Return the mountpoints below a directory, what lies over others first."""
    below = os.fsencode(folder) + b"/"
    found = [os.fsencode(entry.mountpoint) for entry in read_mounts()]
    return [Path(os.fsdecode(point)) for point in reversed(found) if point.startswith(below)]


@contextlib.contextmanager
def _alone(runners: Path) -> Iterator[None]:
    """Be the only one that makes directories of runners, takes them away, or tells which are dead."""
    descriptor = os.open(runners, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _locked(folder: Path, *, wait: bool = True) -> int:
    """Return a descriptor that holds the directory's lock; -1 if another one has it."""
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(descriptor)
        return -1
    return descriptor


def _mtime(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
