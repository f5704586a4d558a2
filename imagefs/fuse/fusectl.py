"""The kernel's settings of FUSE connections, also where nobody has mounted them.

``fusectl`` is usually mounted at ``/sys/fs/fuse/connections``, but not in every container. A mount of our own that is attached nowhere
shows the same and changes nothing that others see.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from imagefs.syscalls import fsconfig_create, fsmount, fsopen

_USUAL: Final = Path("/sys/fs/fuse/connections")


@contextmanager
def connections() -> Iterator[int]:
    """Give a descriptor of the directory with one folder a connection, to open what is below.

    ``OSError`` where this user may not, or the kernel cannot (before Linux 5.2).
    """
    if any(_USUAL.iterdir()):
        descriptor = os.open(_USUAL, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    else:
        context = fsopen("fusectl")
        try:
            fsconfig_create(context)
            descriptor = fsmount(context)
        finally:
            os.close(context)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
