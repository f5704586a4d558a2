"""Loop devices: a file as the block device that EROFS wants before Linux 6.12, and where the file's own file system is stacked on another.

A device is set up read-only and with autoclear: it lets go of the file when its last user does, which is the mount once it is made. So
nothing has to be taken down, and a process that dies at any moment leaves no device behind.
"""

import errno
import fcntl
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

CONTROL: Final = Path("/dev/loop-control")

_LOOP_CTL_GET_FREE: Final = 0x4C82
_LOOP_CONFIGURE: Final = 0x4C0A
_READ_ONLY: Final = 1
_AUTOCLEAR: Final = 4

# struct loop_config (linux/loop.h): descriptor, block size, then struct loop_info64, of which only flags and file name are ours to fill
_CONFIG: Final = struct.Struct("=II 52xI 64s 112x 64x")

_TRIES_SECONDS: Final = 5.0


@contextmanager
def loop_device(backing: int, name: Path) -> Iterator[Path]:
    """Give a device that shows the open file ``backing``, read-only, as long as somebody uses it: this block, or a mount made in it.

    ``name`` is what ``losetup`` says of it. ``OSError``: ``ENOENT`` where there are no loop devices. Linux 5.8.
    """
    config = _CONFIG.pack(backing, 0, _READ_ONLY | _AUTOCLEAR, os.fsencode(name)[-63:])
    deadline = time.monotonic() + _TRIES_SECONDS
    while True:
        path = _free()
        try:
            device = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.ioctl(device, _LOOP_CONFIGURE, config)
            except BaseException:
                os.close(device)
                raise
        except OSError as error:
            # Somebody else was given the same device, or it is just being taken away.
            if error.errno not in {errno.EBUSY, errno.ENXIO} or time.monotonic() > deadline:
                raise
            continue
        break
    try:
        yield path
    finally:
        os.close(device)


def _free() -> Path:
    control = os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        return Path(f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}")
    finally:
        os.close(control)
