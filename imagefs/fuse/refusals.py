"""The calls that would change something: EROFS, every one of them.

The kernel refuses nearly all of them itself, because the mount is read-only. What it lets through, or would after a remount, ends here.
"""

import errno
from typing import Any, NoReturn

import pyfuse3

from imagefs.fuse.guard import handler


class Refusals(pyfuse3.Operations):
    """Handlers of all writing calls."""

    def _refuse(self, *_: object) -> NoReturn:
        raise pyfuse3.FUSEError(errno.EROFS)

    @handler
    def setattr(self, *_: Any) -> Any:
        """Refuse."""
        self._refuse()

    @handler
    def mknod(self, *_: Any) -> Any:
        """Refuse."""
        self._refuse()

    @handler
    def mkdir(self, *_: Any) -> Any:
        """Refuse."""
        self._refuse()

    @handler
    def unlink(self, *_: Any) -> Any:
        """Refuse."""
        self._refuse()

    @handler
    def rmdir(self, *_: Any) -> Any:
        """Refuse."""
        self._refuse()

    @handler
    def symlink(self, *_: Any) -> Any:
        """Refuse."""
        self._refuse()

    @handler
    def rename(self, *_: Any) -> Any:
        """Refuse."""
        self._refuse()

    @handler
    def link(self, *_: Any) -> Any:
        """Refuse."""
        self._refuse()

    @handler
    def create(self, *_: Any) -> Any:
        """Refuse."""
        self._refuse()

    @handler
    def write(self, *_: Any) -> Any:
        """Refuse."""
        self._refuse()

    @handler
    def setxattr(self, *_: Any) -> Any:
        """Refuse."""
        self._refuse()

    @handler
    def removexattr(self, *_: Any) -> Any:
        """Refuse."""
        self._refuse()
