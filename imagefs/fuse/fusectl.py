"""The kernel's settings of FUSE connections, also where nobody has mounted them.

``fusectl`` is usually mounted at ``/sys/fs/fuse/connections``, but not in every container. A mount of our own that is attached nowhere
shows the same and changes nothing that others see.
"""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_USUAL: Final = Path("/sys/fs/fuse/connections")
_FSOPEN: Final = 430
_FSCONFIG: Final = 431
_FSMOUNT: Final = 432
_CREATE: Final = 6
_CLOEXEC: Final = 1

_libc: Final = ctypes.CDLL(None, use_errno=True)


@contextmanager
def connections() -> Iterator[int]:
    """Give a descriptor of the directory with one folder a connection, to open what is below.

    ``OSError`` where this user may not, or the kernel cannot (before Linux 5.2).
    """
    if any(_USUAL.iterdir()):
        descriptor = os.open(_USUAL, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    else:
        context = _call(_FSOPEN, b"fusectl", _CLOEXEC)
        try:
            _call(_FSCONFIG, context, _CREATE, None, None, 0)
            descriptor = _call(_FSMOUNT, context, _CLOEXEC, 0)
        finally:
            os.close(context)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _call(number: int, *arguments: object) -> int:
    result = int(_libc.syscall(number, *arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
