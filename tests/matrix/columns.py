"""How each fault is brought about, and how it is taken away again."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final

from imagefs.mount.table import KERNEL
from tests.faults import Fault
from tests.matrix import content
from tests.matrix.place import IMAGE, Stage
from tests.system.world import tool, wait_until

Bringing = Callable[[Stage], AbstractContextManager[None]]
"""Brings a fault about for the length of a block."""

DISK_MIB: Final[Mapping[str, int]] = {"full": 40, "read-only": 40}
"""The faults for which the cache has a file system of its own, of so many MiB."""

_PACKS: Final = "/packs/"
_INDEX: Final = "/(blobs|manifests)/"
_CONTENT: Final = "/(packs|blobs|manifests)/"
"""What has a digest for its name, by its path."""

_STEP: Final = 64 << 10
_SECTOR: Final = 512


def _link(**shape: object) -> Bringing:
    @contextlib.contextmanager
    def bring(stage: Stage) -> Iterator[None]:
        stage.proxy.set(**shape)
        # Connections that are open already would know nothing of it.
        stage.proxy.drop()
        yield
        stage.proxy.set(bandwidth=None, refuse=False, black_hole=False)

    return bring


def _script(*faults: Fault) -> Bringing:
    @contextlib.contextmanager
    def bring(stage: Stage) -> Iterator[None]:
        numbers = [stage.proxy.fault(fault) for fault in faults]
        yield
        stage.proxy.lift(*numbers)
        hits = stage.proxy.stats().hits
        assert all(hits[number] for number in numbers), "a fault that was in force hit nothing"

    return bring


def _answers(status: int, key: str = "", method: str | None = None, retry_after: str | None = None) -> Bringing:
    return _script(Fault(kind="answer", status=status, key=key, method=method, retry_after=retry_after))


# -- the disk -------------------------------------------------------------------------------------------------------------------------


def _damaged(damage: Callable[[Path], None]) -> Bringing:
    @contextlib.contextmanager
    def bring(stage: Stage) -> Iterator[None]:
        held = stage.held()
        assert held
        for path in held:
            damage(path)
        if stage.mode == KERNEL:
            _have_it_found(stage)
        yield

    return bring


def _have_it_found(stage: Stage) -> None:
    """Have the daemon verify what the kernel reads without it, and wait until the mounts look anew."""
    assert stage.command("cache", "verify")["bad"] > 0

    def is_right() -> bool:
        with contextlib.suppress(AssertionError):
            for name in (content.SSD, content.RAM):
                stage.read(name)
            return True
        time.sleep(0.5)
        return False

    wait_until(is_right, "what is damaged to be served no longer")


def _flip(path: Path) -> None:
    with path.open("r+b") as file:
        for at in range(_STEP // 2, path.stat().st_size, _STEP):
            byte = os.pread(file.fileno(), 1, at)
            os.pwrite(file.fileno(), bytes([byte[0] ^ 0x04]), at)


def _zero(path: Path) -> None:
    with path.open("r+b") as file:
        for at in range(_STEP // 2, path.stat().st_size - _SECTOR, _STEP):
            os.pwrite(file.fileno(), bytes(_SECTOR), at)


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@contextlib.contextmanager
def _full(stage: Stage) -> Iterator[None]:
    filler = stage.world.cache.parent / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        for size in (1 << 20, 4096, 1):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)):
                    pass
    yield
    filler.unlink()


@contextlib.contextmanager
def _read_only(stage: Stage) -> Iterator[None]:
    """Have ext4 do what it does when it meets an error. There is no way back but to unmount it."""
    tool("mount", "-o", "remount,abort", str(stage.world.cache.parent))
    yield


# -- the process ----------------------------------------------------------------------------------------------------------------------


class _Readers:
    """Eight readers, who read until there is an error, or they are told to stop."""

    def __init__(self, stage: Stage, *names: str) -> None:
        self._stage = stage
        self._names = names
        self._started = threading.Barrier(9)
        self._stopped = threading.Event()
        self.errors: list[OSError] = []
        self._threads = [threading.Thread(target=self._read, daemon=True) for _ in range(8)]
        for thread in self._threads:
            thread.start()
        before = stage.reads()
        self._started.wait(30)
        wait_until(lambda: stage.reads() > before, "the load to have read something")

    def _read(self) -> None:
        self._started.wait(30)
        try:
            while not self._stopped.is_set():
                for name in self._names:
                    self._stage.read(name)
        except OSError as error:
            self.errors.append(error)

    def stop(self) -> None:
        self._stopped.set()
        self.join()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(10)
        assert not any(thread.is_alive() for thread in self._threads), "a reader hangs after a process was killed"


def _status(stage: Stage) -> dict[str, Any]:
    found: dict[str, Any] = stage.world.run("daemon", "status", "--json").json
    return found


def _kill(stage: Stage) -> None:
    """Kill the supervisor while readers read, and see that each of them ends."""
    readers = _Readers(stage, content.SSD, content.RANDOM)
    os.kill(_status(stage)["pid"], signal.SIGKILL)
    readers.join()
    assert len(readers.errors) == 8


@contextlib.contextmanager
def _worker_killed(stage: Stage) -> Iterator[None]:
    # Nothing of which the next worker is asked where it has it.
    readers = _Readers(stage, content.RANDOM)
    os.kill(stage.pid, signal.SIGKILL)
    wait_until(lambda: _status(stage)["worker_pid"] not in {stage.pid, None}, "the next worker")
    stage.pid = _status(stage)["worker_pid"]
    stage.is_restarted = True
    readers.stop()
    assert readers.errors == []
    yield


@contextlib.contextmanager
def _killed(stage: Stage) -> Iterator[None]:
    _kill(stage)
    yield
    # What the table's second mount has mounted.
    stage.point = stage.world.root / "second"


@contextlib.contextmanager
def _mounted_again(stage: Stage) -> Iterator[None]:
    _kill(stage)
    stage.is_restarted = True
    stage.point = stage.mount(IMAGE, "again")
    stage.spare = stage.mount(IMAGE, "again-spare")
    stage.pid = _status(stage)["worker_pid"]
    yield


BRINGING: Final[Mapping[str, Bringing]] = {
    "refused": _link(refuse=True),
    "black-hole": _link(black_hole=True),
    "reset": _script(Fault(kind="reset", method="GET", key=_CONTENT)),
    "reset-at-times": _script(
        Fault(kind="reset", method="GET", key=_PACKS, count=8), Fault(kind="reset", method="GET", key=_INDEX, count=1)
    ),
    "stall": _script(Fault(kind="stall", method="GET", key=_CONTENT)),
    "slow-first-byte": _script(Fault(kind="wait", seconds=0.2)),
    "wrong-bytes": _script(Fault(kind="flip", method="GET", key=_CONTENT)),
    "wrong-bytes-at-times": _script(Fault(kind="flip", method="GET", key=_CONTENT, over=300 << 10)),
    "cut": _script(Fault(kind="cut", method="GET", key=_CONTENT)),
    "content-range": _script(Fault(kind="content-range", method="GET", key=_CONTENT)),
    "403": _answers(403),
    "404": _answers(404, _PACKS, "GET"),
    "416": _answers(416, _CONTENT, "GET"),
    "429": _answers(429, retry_after="1"),
    "500": _answers(500),
    "503-for-a-while": _script(
        Fault(kind="answer", status=503, method="GET", key=_PACKS, count=8),
        Fault(kind="answer", status=503, method="GET", key=_INDEX, count=1),
    ),
    "slow": _link(bandwidth=8e6),
    "full": _full,
    "flipped": _damaged(_flip),
    "zeroed": _damaged(_zero),
    "truncated": _damaged(_truncate),
    "read-only": _read_only,
    "worker-killed": _worker_killed,
    "killed": _killed,
    "killed-and-mounted-again": _mounted_again,
}
