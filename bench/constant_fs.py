"""The yardsticks for reads: pyfuse3 file systems with one file, mounted with the same read-ahead as an image.

Each read returns a slice of one constant buffer: no Python file system on pyfuse3 can be faster. Or it passes a file of the disk through,
read in a thread: what the same bytes on that disk give through FUSE.
"""

import contextlib
import errno
import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

_SERVER = Path(__file__)


@contextlib.contextmanager
def mounted(point: Path, size: int, file: Path | None = None) -> Iterator[Path]:
    """Serve ``large`` of ``size`` bytes at ``point`` for the length of the block: constant bytes, or those of ``file``."""
    point.mkdir()
    process = subprocess.Popen([sys.executable, _SERVER, point, str(size), *([file] if file else [])])
    try:
        deadline = time.monotonic() + 10
        while not (device := _device(point)):
            if time.monotonic() > deadline or process.poll() is not None:
                raise RuntimeError("the constant file system did not mount")
            time.sleep(0.02)
        Path(f"/sys/class/bdi/{device}/read_ahead_kb").write_text("4096")
        yield point
    finally:
        subprocess.run(["umount", point], check=True)
        process.wait(10)


def _device(point: Path) -> str | None:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[4] == str(point):
            return fields[2]
    return None


def _serve(point: str, size: int, file: str | None) -> None:
    import pyfuse3  # noqa: PLC0415 - the benches import this module and want neither
    import trio  # noqa: PLC0415 - as above

    buffer = memoryview(os.urandom(1 << 20))
    descriptor = None if file is None else os.open(file, os.O_RDONLY)

    class Constant(pyfuse3.Operations):
        async def getattr(self, inode: int, ctx: object = None) -> pyfuse3.EntryAttributes:
            attributes = pyfuse3.EntryAttributes()
            attributes.st_ino = inode
            attributes.st_mode = stat.S_IFDIR | 0o755 if inode == pyfuse3.ROOT_INODE else stat.S_IFREG | 0o644
            attributes.st_size = size
            attributes.entry_timeout = attributes.attr_timeout = 3600
            return attributes

        async def lookup(self, parent: int, name: bytes, ctx: object = None) -> pyfuse3.EntryAttributes:
            if name != b"large":
                raise pyfuse3.FUSEError(errno.ENOENT)
            return await self.getattr(2)

        async def open(self, inode: int, flags: int, ctx: object = None) -> pyfuse3.FileInfo:
            return pyfuse3.FileInfo(fh=inode, keep_cache=True)

        async def read(self, fh: int, offset: int, length: int) -> memoryview | bytes:
            if descriptor is not None:
                return await trio.to_thread.run_sync(os.pread, descriptor, length, offset)
            return buffer[: min(length, size - offset)]

    pyfuse3.init(Constant(), point, {"fsname=constant", "ro"})
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close(unmount=False)


if __name__ == "__main__":
    _serve(sys.argv[1], int(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else None)
