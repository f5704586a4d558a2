"""The command in a world of its own, and what a test needs of the machine.

Guarantees: each world has its own store, cache, runtime and scratch directory below one directory; every wait has a deadline; whatever a
test leaves mounted or running below its directory is unmounted and ended, by process id, when it is over. Nothing here sleeps in hope.
"""

import contextlib
import ctypes
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

import pytest

DEADLINE: Final = 60.0
"""Seconds that a command may take before the test fails."""

_LIBC = ctypes.CDLL(None, use_errno=True)
_MNT_DETACH: Final = 2
_PACKAGE_ROOTS: Final = [str(Path(__file__).parents[2]), str(Path(__file__).parents[2] / "tools")]


def missing(reason: str) -> NoReturn:
    """Skip the test for ``reason``, or fail it where everything has to be there (``IMAGEFS_REQUIRE=1``)."""
    if os.environ.get("IMAGEFS_REQUIRE") == "1":
        pytest.fail(f"required here, but missing: {reason}", pytrace=False)
    pytest.skip(reason)


_FEATURES: Final[Mapping[str, Callable[[], bool]]] = {
    "root": lambda: os.geteuid() == 0,
    "fuse": lambda: os.access("/dev/fuse", os.R_OK | os.W_OK),
    "erofs": lambda: "\terofs\n" in Path("/proc/filesystems").read_text(),
}
"""What is probed otherwise than by looking for a program of that name."""


@functools.cache
def _has(feature: str) -> bool:
    probe = _FEATURES.get(feature)
    return probe() if probe else shutil.which(feature) is not None


def require(feature: str, reason: str = "") -> None:
    """Go on if this machine has ``feature`` (root, fuse, erofs, or a program); otherwise skip, or fail under ``IMAGEFS_REQUIRE=1``."""
    if not _has(feature):
        missing(f"no {feature} here" + (f": {reason}" if reason else ""))


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 20.0) -> None:
    """Return as soon as ``condition`` holds; fail the test, naming ``what``, after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"waited {seconds} s for {what}")
        time.sleep(0.005)


def tool(*command: str | bytes | Path, cwd: Path | None = None, seconds: float = DEADLINE) -> bytes:
    """Run another program; return its output, or fail the test with its messages."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, timeout=seconds, check=False)
    if done.returncode:
        pytest.fail(
            f"{command} ended with {done.returncode}:\n{done.stdout.decode(errors='replace')}{done.stderr.decode(errors='replace')}"
        )
    return done.stdout


def mounts_below(path: Path) -> list[bytes]:
    """Return the mountpoints at or below ``path``, the deepest first, without touching any of them."""
    prefix = os.fsencode(path)
    points = [
        line.split(b" ")[4].replace(b"\\040", b" ").replace(b"\\011", b"\t").replace(b"\\012", b"\n").replace(b"\\134", b"\\")
        for line in Path("/proc/self/mountinfo").read_bytes().splitlines()
    ]
    return [point for point in reversed(points) if point == prefix or point.startswith(prefix + b"/")]


def detach(path: bytes | Path) -> None:
    """Unmount at once, also what is busy or dead; not being mounted is no error."""
    _LIBC.umount2(os.fsencode(path), _MNT_DETACH)


@dataclass(frozen=True)
class Done:
    """How a command ended: exit status, standard output and standard error."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON document on standard output."""
        return json.loads(self.out)


class World:
    """The ``imagefs`` command with a store, a cache, a runtime and a scratch directory below ``root``."""

    def __init__(self, root: Path) -> None:
        """Nothing is made yet but the scratch directory: the command makes the rest."""
        self.root = root
        self.store = root / "store"
        self.cache = root / "cache"
        self.runtime = root / "run"
        self.scratch = root / "scratch"
        self.scratch.mkdir(parents=True)
        self.environment: dict[str, str] = {}
        self.user: int | None = None
        self.mode = "fuse"

    def become(self, user: int) -> None:
        """Run every further command as ``user``, who gets this world's directories, and passage through those above them."""
        self.user = user
        for path in [self.root, *self.root.rglob("*")]:
            os.chown(path, user, user, follow_symlinks=False)
        for path in self.root.parents:
            if not path.stat().st_mode & 0o001:
                path.chmod(path.stat().st_mode | 0o011)
        self.environment |= {"HOME": str(self.root), "XDG_RUNTIME_DIR": str(self.root)}

    @property
    def env(self) -> dict[str, str]:
        """The environment of every command of this world."""
        keep = {name: os.environ[name] for name in ("PATH", "LANG", "HOME") if name in os.environ}
        roots = [*_PACKAGE_ROOTS, *([] if self._reachable else [sysconfig.get_path("platlib")])]
        ours = {
            "IMAGEFS_STORE": f"file://{self.store}",
            "IMAGEFS_CACHE": str(self.cache),
            "IMAGEFS_RUNTIME": str(self.runtime),
            "TMPDIR": str(self.scratch),
            "PYTHONPATH": os.pathsep.join(roots),
            "PYTHONFAULTHANDLER": "1",
        }
        return keep | ours | self.environment

    def start(self, *arguments: str | Path, **options: Any) -> subprocess.Popen[str]:
        """Start a command and leave it running; end it with :func:`end`."""
        return subprocess.Popen(
            [*self.command, *map(str, arguments)],
            env=self.env,
            cwd=self.root,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="surrogateescape",
            user=self.user,
            group=self.user,
            extra_groups=None if self.user is None else [],
            **options,
        )

    def attempt(self, *arguments: str | Path, seconds: float = DEADLINE) -> Done:
        """Run a command to its end, whatever that is."""
        # Pipes on purpose: a daemon that keeps its starter's output open would hang every script that reads it, and does hang this.
        with self.start(*arguments) as process:
            try:
                out, err = process.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                out, err = process.communicate()
                pytest.fail(f"imagefs {' '.join(map(str, arguments))} ran for more than {seconds} s\n{out}{err}")
        return Done(process.returncode, out, err)

    def run(self, *arguments: str | Path, seconds: float = DEADLINE) -> Done:
        """Run a command that has to succeed."""
        done = self.attempt(*arguments, seconds=seconds)
        if done.status != 0:
            pytest.fail(f"imagefs {' '.join(map(str, arguments))} ended with {done.status}:\n{done.out}{done.err}{self.logs()}")
        return done

    def convert(self, source: str | Path, ref: str = "test", *options: str) -> dict[str, Any]:
        """Convert, and return the figures."""
        figures: dict[str, Any] = self.run("convert", str(source), ref, "--json", *options).json
        return figures

    def mount(self, ref: str = "test", name: str = "mnt", *options: str, mode: str = "") -> Path:
        """Mount in ``mode``, this world's if none is given, at a new directory ``name``; return it."""
        point = self.root / name
        point.mkdir(exist_ok=True)
        if self.user is not None:
            os.chown(point, self.user, self.user)
        self.run("mount", ref, str(point), "--mode", mode or self.mode, *options)
        return point

    def umount(self, point: Path) -> None:
        """Unmount, and see that it is."""
        self.run("umount", str(point))
        assert os.fsencode(point) not in mounts_below(point)

    def stats(self) -> dict[str, Any]:
        """Return the daemon's counters."""
        figures: dict[str, Any] = self.run("stats", "--json").json
        return figures

    def logs(self) -> str:
        """Return what the daemons of this world logged."""
        files = sorted(self.runtime.glob("*/*.log"))  # no deeper: there a mount may be whose daemon hangs
        return "".join(f"\n--- {path.name}\n{path.read_text(errors='replace')}" for path in files)

    def published(self) -> dict[str, bytes]:
        """Return every ref and manifest of the store by key."""
        folders = [self.store / "refs", self.store / "manifests"]
        return {
            str(path.relative_to(self.store)): path.read_bytes()
            for folder in folders
            if folder.exists()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }

    def leftovers(self) -> list[str]:
        """Return what is in the scratch directory or half-written in the store."""
        scratch = [str(path) for path in self.scratch.rglob("*")]
        known = {"refs", "manifests", "blobs", "packs", "layers", "profiles", "leases", "imagefs-store.json"}
        files = [path for path in self.store.rglob("*") if path.is_file() and path != self.store / "tmp/lock"]
        half = [str(path) for path in files if path.relative_to(self.store).parts[0] not in known]
        return scratch + half

    def pids(self) -> list[int]:
        """Return the processes that live in this world: they carry its runtime directory in their environment."""
        mark = f"IMAGEFS_RUNTIME={self.runtime}".encode()
        found = []
        for folder in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if folder.name.isdigit() and mark in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
        return sorted(found)

    def close(self) -> list[str]:
        """Unmount everything and end every process of this world; return what could not be ended."""
        for point in mounts_below(self.root):
            detach(point)
        pids = self.pids()
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            deadline = time.monotonic() + 5
            while (pids := self.pids()) and time.monotonic() < deadline:
                time.sleep(0.01)
        for point in mounts_below(self.root):
            detach(point)
        return [f"process {pid} does not end" for pid in pids]

    @property
    def _reachable(self) -> bool:
        """Whether this world's user may run this interpreter: one below root's home is root's alone."""
        return self.user is None or all(path.stat().st_mode & 0o001 for path in Path(sys.executable).resolve().parents)

    @property
    def interpreter(self) -> str:
        """An interpreter that this world's user may run."""
        if self._reachable:
            return sys.executable
        system = f"/usr/bin/python3.{sys.version_info.minor}"
        if not Path(system).exists():
            missing(f"{sys.executable} is out of reach for other users, and there is no {system}")
        return system

    @property
    def command(self) -> Sequence[str]:
        """How the command is run."""
        run = ["-c", "import sys; from imagefs_cli.main import main; sys.exit(main())"]
        if not self._reachable:
            return [self.interpreter, *run]
        script = Path(sys.executable).with_name("imagefs")
        return [str(script)] if script.exists() else [sys.executable, *run]


def end(process: subprocess.Popen[str], number: int = signal.SIGKILL) -> int:
    """Send a signal to a process and wait for its end."""
    process.send_signal(number)
    process.communicate(timeout=DEADLINE)
    return process.returncode
