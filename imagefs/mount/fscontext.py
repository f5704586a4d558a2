"""A file system that is being set up with ``fsopen(2)`` and its kin, and what the kernel said when it could not be.

An ``OSError`` that leaves ``setting_up`` or ``changing`` carries, as its notes, what the kernel said: the messages of the context
(``e overlay: …``), or else what came into the kernel's log meanwhile, because most reasons of overlayfs and EROFS are told only there.
``explained`` makes an error of ours of it. Between the two a caller may look at the errno and try another way.

What does not live here: which options a mount of ours has.
"""

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from imagefs import syscalls
from imagefs.errors import AccessError, ImageFSError, IntegrityError, MountError
from imagefs.mount.bind import BusyError

MOUNT_ATTR_RDONLY: Final = 1
MOUNT_ATTR_NOSUID: Final = 2
MOUNT_ATTR_NODEV: Final = 4

VALUE_MAX: Final = 255
"""Bytes that a string given to ``fsconfig(2)`` may have."""

_LOG: Final = Path("/dev/kmsg")
_LOG_LINES: Final = 64
_WARNING: Final = 4
_SPEAKERS: Final = ("overlayfs: ", "erofs")
_ADMIN: Final = "mounting takes root in this mount namespace (CAP_SYS_ADMIN), and a container's seccomp profile must let it"
_HINTS: Final[Mapping[int, str]] = {
    errno.ENOSYS: "Linux 5.2 or newer has the call; a container's seccomp profile may hide it",
    errno.ENOMEM: "the kernel has no memory for it",
    errno.ENOSPC: "too many mounts in this namespace (fs.mount-max)",
}


@contextmanager
def setting_up(kind: str) -> Iterator[int]:
    """Give a descriptor from ``fsopen(2)`` to set up a file system of type ``kind`` with. ``OSError``, with notes."""
    with _telling(_Log()) as contexts:
        contexts.append(syscalls.fsopen(kind))
        yield contexts[0]


@contextmanager
def changing(target: Path) -> Iterator[int]:
    """Give a descriptor from ``fspick(2)`` to change the file system with that is mounted at ``target``. ``OSError``, with notes."""
    with _telling(_Log()) as contexts:
        contexts.append(syscalls.fspick(target))
        yield contexts[0]


@contextmanager
def explained(what: str, hints: Mapping[int, str] | None = None) -> Iterator[None]:
    """Turn an ``OSError`` into an error of ours: "``what``: the errno's text: what the kernel said".

    ``hints`` says by errno what can be done about it. ``AccessError`` for what this user may not do, ``BusyError`` for ``EBUSY``,
    ``IntegrityError`` for what the kernel found damaged, else ``MountError``.
    """
    try:
        yield
    except OSError as error:
        said = getattr(error, "__notes__", [])
        message = ": ".join([what, error.strerror or str(error), *(["; ".join(said)] if said else [])])
        hint = (hints or {}).get(error.errno or 0) or (_ADMIN if _is_access(error) else None)
        raise _class_for(error)(message, hint=hint or (None if said else _HINTS.get(error.errno or 0))) from error


def attach(mount: int, target: Path) -> None:
    """Attach what ``fsmount`` gave at the directory ``target``. Errors of ours."""
    hints = {errno.ENOENT: f"mkdir -p {target}", errno.EINVAL: "a mountpoint is a directory, and no link to one"}
    with explained(f"cannot mount at {target}", hints):
        syscalls.move_mount(mount, target)


def messages(context: int) -> list[str]:
    """Take what the context has to say, without its level ("e ") and the file system's name."""
    lines = []
    with suppress(OSError):  # ENODATA: that was all
        while True:
            text = os.read(context, 4096).decode(errors="replace").strip()
            lines.append(text.partition(": ")[2] or text)
    return lines


def _class_for(error: OSError) -> type[ImageFSError]:
    if error.errno == errno.EBUSY:
        return BusyError
    if error.errno in {errno.EBADMSG, errno.EUCLEAN}:
        return IntegrityError
    return AccessError if _is_access(error) else MountError


def _is_access(error: OSError) -> bool:
    return error.errno in {errno.EPERM, errno.EACCES}


@contextmanager
def _telling(log: "_Log") -> Iterator[list[int]]:
    contexts: list[int] = []
    try:
        yield contexts
    except OSError as error:
        for line in [line for context in contexts for line in messages(context)] or log.lines():
            error.add_note(line)
        raise
    finally:
        for context in contexts:
            os.close(context)
        log.close()


class _Log:
    """The kernel's log from now on; empty for who may not read it. Others write into it too: only warnings of file systems count."""

    def __init__(self) -> None:
        self._descriptor = -1
        with suppress(OSError):
            self._descriptor = os.open(_LOG, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.lseek(self._descriptor, 0, os.SEEK_END)

    def lines(self) -> list[str]:
        """Return what overlayfs and EROFS wrote into it, without their names."""
        found = []
        with suppress(OSError):  # EAGAIN: that was all
            for _ in range(_LOG_LINES):
                head, _, body = os.read(self._descriptor, 8192).decode(errors="replace").partition(";")
                text = body.split("\n")[0]
                if text.startswith(_SPEAKERS) and int(head.split(",")[0]) & 7 <= _WARNING:
                    found.append(text.partition(": ")[2])
        return found

    def close(self) -> None:
        """Close it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
