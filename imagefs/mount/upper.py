"""The writable layer of a mount: a directory of the user's, in which overlayfs keeps what is changed.

``DIR/upper`` holds the changes, ``DIR/work`` is overlayfs's own. What would make overlayfs fail without a word, or go on with less than
what a mount of ours needs, is found before and said: it drops ``metacopy`` where attributes cannot be kept, and lets two mounts have one
upper directory, which damages it.
"""

import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from imagefs import syscalls
from imagefs.errors import MountError
from imagefs.mount.bind import BusyError
from imagefs.mount.fscontext import setting_up
from imagefs.mount.layers import STYLES, Layer, Style, give_layers, opened

_OVERLAY: Final = "trusted.overlay."
_PROBE: Final = "trusted.overlay.imagefs"
_KEEPS: Final = "ext4, XFS, btrfs and tmpfs keep them; overlayfs, NFS and FUSE do not"


@contextmanager
def writable_layers(
    folder: Path, tree: Layer, mountpoint: Path, others: Sequence[Path], styles: Sequence[Style] = STYLES
) -> Iterator[tuple[Layer, Layer]]:
    """Give ``folder``'s upper and work directory, made if they are not there, and checked.

    A new upper directory gets the attributes of the root of ``tree``, because its own are what the mount shows. ``others`` are the other
    layers. ``MountError`` for what cannot be an upper layer, ``BusyError`` for one that a mount uses, in whatever namespace, or that
    another call of this holds; ``OSError``.
    """
    folder = Path(os.path.realpath(folder))
    upper, work = folder / "upper", folder / "work"
    _check_places(folder, (upper, work), mountpoint, others)
    folder.mkdir(exist_ok=True)
    work.mkdir(mode=0o700, exist_ok=True)
    if not upper.exists():
        _make_like(upper, tree)
    for path in (upper, work):
        if path.is_symlink():
            raise MountError(f"{path} is a symbolic link", hint="name another directory: in this one is something else")
    with opened(upper) as first, opened(work) as second:
        _check_file_system(first, second)
        _lock(second)
        _check_unused(first, tree, styles)
        yield first, second


def _check_places(folder: Path, parts: Sequence[Path], mountpoint: Path, others: Sequence[Path]) -> None:
    place = Path(os.path.realpath(mountpoint.parent)) / mountpoint.name
    if folder.is_relative_to(place):
        raise MountError(f"the upper directory {folder} is inside of the mount {mountpoint}", hint="name a directory outside of it")
    for path in (place, *(Path(os.path.realpath(other)) for other in others)):
        for part in parts:
            if path.is_relative_to(part) or part.is_relative_to(path):
                raise MountError(f"{part} and {path} lie one in the other", hint="name another upper directory")


def _make_like(path: Path, tree: Layer) -> None:
    """Make a directory with owner, mode, time and attributes of the tree's root. It is there whole, or not."""
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    new.mkdir(mode=0o700)
    try:
        like = os.fstat(tree.descriptor)
        os.chown(new, like.st_uid, like.st_gid)
        new.chmod(stat.S_IMODE(like.st_mode))
        for name in os.listxattr(tree.descriptor):
            if not name.startswith(_OVERLAY) or name.startswith(_OVERLAY + "overlay."):
                _set_attribute(new, name, os.getxattr(tree.descriptor, name))
        os.utime(new, ns=(like.st_mtime_ns, like.st_mtime_ns))
        new.rename(path)
    except BaseException:
        new.rmdir()
        raise


def _set_attribute(path: Path, name: str, value: bytes) -> None:
    try:
        os.setxattr(path, name, value)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:  # tmpfs before Linux 6.6 has none of user.*
            raise


def _check_file_system(upper: Layer, work: Layer) -> None:
    if _mount_of(upper) != _mount_of(work):
        raise MountError(f"{upper.path} and {work.path} are on different file systems", hint="name a directory with no mounts in it")
    try:
        os.setxattr(work.descriptor, _PROBE, b"")
        os.removexattr(work.descriptor, _PROBE)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            raise MountError(f"the file system of {upper.path} does not keep attributes of trusted.overlay", hint=_KEEPS) from error
        raise


def _mount_of(layer: Layer) -> tuple[int, int]:
    """Return device and mount of a directory: overlayfs wants both the same."""
    lines = Path(f"/proc/self/fdinfo/{layer.descriptor}").read_text(encoding="ascii").splitlines()
    return os.fstat(layer.descriptor).st_dev, next(int(line.split()[1]) for line in lines if line.startswith("mnt_id:"))


def _lock(work: Layer) -> None:
    """Keep others that run this code away until the mount is made: from then on the kernel tells them."""
    try:
        fcntl.flock(work.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise BusyError(f"the upper directory {work.path.parent} is just being mounted") from error


def _check_unused(upper: Layer, tree: Layer, styles: Sequence[Style]) -> None:
    """Raise ``BusyError`` if a mount has that upper directory, in whatever namespace, or out of sight and still in use.

    With ``index=on`` overlayfs refuses one that is used, and looks at that before it sees that the work directory is none. So nothing is
    made here in any case. It leaves one line in the kernel's log: "workdir and upperdir must be separate subtrees".
    """
    try:
        with setting_up("overlay") as context:
            syscalls.fsconfig_string(context, "index", b"on")
            give_layers(context, tree, (), (upper, upper), styles)
            syscalls.fsconfig_create(context)
    except OSError as error:
        if error.errno == errno.EBUSY:
            hint = "unmount that first: two that write into one directory damage it"
            raise BusyError(f"the upper directory {upper.path} is in use by another mount", hint=hint) from error
        if error.errno != errno.EINVAL:
            raise
