"""The error tree: every failure that a caller is expected to handle.

::

    ImageFSError                exit  1  EIO
      UsageError                exit  2  EINVAL     the command line or the configuration is wrong
      SourceError               exit  3  EINVAL     the image to convert is malformed, truncated or lies about a digest
      UnsupportedError          exit  4  ENOTSUP    well-formed, but not for this version: media type, encryption, format version
      IntegrityError            exit  5  EIO        stored bytes do not have the digest or the structure that their name promises
      NotFoundError             exit  6  ENOENT     no such ref, manifest, blob, pack or platform
      StoreError                exit  7  EIO        the store cannot be used: missing, not a store, not reachable (retryable)
        StoreFullError          exit  8  ENOSPC     the store has no room
      ConflictError             exit  9  EEXIST     a conditional write lost against another writer
      MountError                exit 10  EBUSY      the mountpoint cannot be used, or the kernel refused
      DaemonError               exit 11  ENOTCONN   the daemon cannot be reached, or refused
      AccessError               exit 12  EACCES     this user may not do that, or the store is read-only
      DeadlineError             exit 13  ETIMEDOUT  a wait ran into its deadline (retryable)
      LimitError                exit 14  EFBIG      the input goes past a stated bound (a bomb, or a bound to raise)
      EngineError               exit 15  EIO        what freezes and restores processes failed, or refused the program
      ProgramError              exit 16  EIO        a program in a sandbox raised, died, or does not answer

What this module promises: each class has an ``errno`` (what a FUSE reader gets), a process ``exit_code``
unique in the tree, and ``retryable``. The message says what is wrong and ``hint`` what to do about it.
It imports nothing of ours, so every layer may raise these.
"""

import errno as _errno


class ImageFSError(Exception):
    """Base of all expected failures.

    ``message`` is one line without a final stop; ``hint``, if given, says what the user can do.
    """

    errno: int = _errno.EIO
    exit_code: int = 1
    retryable: bool = False

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        """Keep the message and the hint apart, so that a caller may print one without the other."""
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(ImageFSError):
    """The command line or the configuration is wrong."""

    errno = _errno.EINVAL
    exit_code = 2


class SourceError(ImageFSError):
    """The image to convert is malformed, truncated, or lies about a digest."""

    errno = _errno.EINVAL
    exit_code = 3


class UnsupportedError(ImageFSError):
    """Well-formed, but not for this version: a media type, an encrypted layer, a format version or flag."""

    errno = _errno.ENOTSUP
    exit_code = 4


class IntegrityError(ImageFSError):
    """Stored bytes do not have the digest or the structure that their name promises."""

    errno = _errno.EIO
    exit_code = 5


class NotFoundError(ImageFSError):
    """No such ref, manifest, blob, pack or platform."""

    errno = _errno.ENOENT
    exit_code = 6


class StoreError(ImageFSError):
    """The store cannot be used: missing, not a store, not reachable, too busy.

    ``retry_after``: seconds after which the store wants to be asked again, where it said so.
    """

    errno = _errno.EIO
    exit_code = 7
    retryable = True

    def __init__(self, message: str, *, hint: str | None = None, retry_after: float | None = None) -> None:
        """Keep what the store said."""
        super().__init__(message, hint=hint)
        self.retry_after = retry_after


class StoreFullError(StoreError):
    """The store has no room for what is to be written."""

    errno = _errno.ENOSPC
    exit_code = 8
    retryable = False


class ConflictError(ImageFSError):
    """A conditional write lost against another writer."""

    errno = _errno.EEXIST
    exit_code = 9


class MountError(ImageFSError):
    """The mountpoint cannot be used, or the kernel refused the mount."""

    errno = _errno.EBUSY
    exit_code = 10


class DaemonError(ImageFSError):
    """The daemon cannot be reached, or refused the request."""

    errno = _errno.ENOTCONN
    exit_code = 11


class AccessError(ImageFSError):
    """This user may not do that, or nobody may: the store is read-only."""

    errno = _errno.EACCES
    exit_code = 12


class DeadlineError(ImageFSError):
    """A wait ran into its deadline."""

    errno = _errno.ETIMEDOUT
    exit_code = 13
    retryable = True


class LimitError(ImageFSError):
    """The input goes past a stated bound: a decompression bomb, or a bound to raise."""

    errno = _errno.EFBIG
    exit_code = 14


class EngineError(ImageFSError):
    """What freezes and restores processes failed, or refused what the program has open."""

    errno = _errno.EIO
    exit_code = 15


class ProgramError(ImageFSError):
    """A program in a sandbox raised an exception, or ended when an answer was expected."""

    errno = _errno.EIO
    exit_code = 16

    def __init__(self, message: str, *, hint: str | None = None, traceback: str = "") -> None:
        """``traceback`` is the program's own, where it has one."""
        super().__init__(message, hint=hint)
        self.traceback = traceback
