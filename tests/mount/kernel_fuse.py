"""A FUSE file system that shows a directory of objects and writes down each open: ``kernel_fuse.py SOURCE MOUNTPOINT LOG``."""

import errno
import os
import stat
import sys
from pathlib import Path

import pyfuse3
import trio


class Objects(pyfuse3.Operations):
    """Shows ``source``; the attributes never change, and neither the names."""

    def __init__(self, source: Path, log: Path) -> None:
        """Number the root."""
        super().__init__()
        self._source = source
        self._log = log.open("a", buffering=1)
        self._paths: dict[int, Path] = {pyfuse3.ROOT_INODE: Path()}
        self._numbers: dict[Path, int] = {}

    def _attributes(self, number: int) -> pyfuse3.EntryAttributes:
        try:
            info = (self._source / self._paths[number]).stat()
        except FileNotFoundError:
            raise pyfuse3.FUSEError(errno.ENOENT) from None
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = pyfuse3.InodeT(number)
        entry.st_mode = pyfuse3.ModeT(info.st_mode)
        entry.st_nlink = 1
        entry.st_size = info.st_size
        entry.entry_timeout = entry.attr_timeout = 3600
        return entry

    async def lookup(self, parent_inode: int, name: bytes, ctx: object) -> pyfuse3.EntryAttributes:
        """Find an object or a directory of them."""
        path = self._paths[parent_inode] / os.fsdecode(name)
        number = self._numbers.setdefault(path, len(self._numbers) + 2)
        self._paths[number] = path
        return self._attributes(number)

    async def getattr(self, inode: int, ctx: object) -> pyfuse3.EntryAttributes:
        """Tell what it is."""
        return self._attributes(inode)

    async def statfs(self, ctx: object) -> pyfuse3.StatvfsData:
        """Overlayfs asks each layer for this when it is mounted, and takes no for an answer to all of it."""
        answer = pyfuse3.StatvfsData()
        answer.f_bsize = answer.f_frsize = 4096
        answer.f_namemax = 255
        return answer

    async def opendir(self, inode: int, ctx: object) -> int:
        """Open a directory, which nobody lists."""
        return inode

    async def open(self, inode: int, flags: int, ctx: object) -> pyfuse3.FileInfo:
        """Write it down."""
        self._log.write(f"{self._paths[inode]}\n")
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(inode), keep_cache=True)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        """Read what the source has."""
        return (self._source / self._paths[fh]).read_bytes()[off : off + size]


async def _serve() -> None:
    source, mountpoint, log = (Path(name) for name in sys.argv[1:])
    assert stat.S_ISDIR(source.stat().st_mode)
    pyfuse3.init(Objects(source, log), str(mountpoint), {*pyfuse3.default_options, "fsname=objects"})
    print("ready", flush=True)
    try:
        await pyfuse3.main()
    finally:
        pyfuse3.close(unmount=False)


if __name__ == "__main__":
    trio.run(_serve)
