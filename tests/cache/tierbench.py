"""An SSD tier on a real directory, for the tests of its parts."""

import os
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio

from imagefs.cache.disk import DiskTier
from imagefs.cache.disk_open import OpenedTier
from imagefs.cache.disk_place import CachePlace
from imagefs.cache.disk_queue import Place
from imagefs.digest import digest_of

MIB = 1 << 20


@dataclass
class Log:
    events: list[str] = field(default_factory=list)

    def warning(self, event: str, /, **_: object) -> None:
        self.events.append(event)

    exception = warning


@dataclass
class Bench:
    """A tier in a directory, started as often as ``run`` is called."""

    root: Path
    limit: int = 0
    floor: int = 0
    log: Log = field(default_factory=Log)

    def run(self, body: Callable[[DiskTier], Awaitable[None]], *, clean: bool = True) -> None:
        self.run_all(lambda opened: body(opened.tier), clean=clean)

    def run_all(self, body: Callable[[OpenedTier], Awaitable[None]], *, clean: bool = True, lives_on: bool = False) -> None:
        opened = OpenedTier(CachePlace(self.root), self.log, limit=self.limit, floor=self.floor, lives_on=lives_on)

        async def main() -> None:
            with trio.fail_after(60):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(opened.run)
                    await body(opened)
                    nursery.cancel_scope.cancel()

        try:
            trio.run(main)
        finally:
            opened.close(clean=clean)

    def files(self, folder: str) -> dict[str, bytes]:
        return {path.parent.name + path.name: path.read_bytes() for path in (self.root / folder).glob("*/*")}

    def path(self, name: bytes, folder: str = "objects") -> Path:
        return self.root / folder / name.hex()[:2] / name.hex()[2:]

    def rot(self, name: bytes, offset: int = 50, folder: str = "objects") -> None:
        """Flip a bit at rest, as a disk does."""
        flip(self.path(name, folder), offset)


def flip(path: Path, offset: int) -> None:
    try:
        descriptor = os.open(path, os.O_RDWR)
    except PermissionError:
        pytest.skip("the file system has fs-verity: whose bytes are to be flipped has to write to the disk below it")
    try:
        os.pwrite(descriptor, bytes([os.pread(descriptor, 1, offset)[0] ^ 1]), offset)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def noise(size: int, seed: int = 0) -> bytes:
    return (digest_of(b"%d" % seed) * (size // 32 + 1))[:size]


def place(data: bytes, holes: Iterable[tuple[int, int]] = ()) -> Place:
    return Place(digest_of(data), len(data), lambda: holes)


def read(tier: DiskTier, name: bytes, start: int, end: int) -> bytes | None:
    file = tier.open(name)
    target = bytearray(end - start)
    return bytes(target) if file is not None and file.read_into(memoryview(target), start) else None


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what the tier's own tasks do; the bench's deadline ends it."""
    while not condition():  # noqa: ASYNC110 # there is no event for it outside
        await trio.sleep(0.01)


async def land(tier: DiskTier, data: bytes, step: int = 256 << 10) -> bytes:
    where = place(data)
    for offset in range(0, len(data), step):
        assert tier.land(where, offset, memoryview(data)[offset : offset + step])
    await tier.settled()
    return where.name
