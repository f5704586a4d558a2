"""The mounts of kernel mode: a tree as EROFS, and over it an image as an overlay with data-only layers.

Invariants:

- nothing is mounted that is not whole: each file system is made attached nowhere, and attached as the last step;
- a file whose object neither the SSD tier nor FUSE has fails to open: it never shows the hole that the tree has in its place;
- no external program is run, and no state is kept: what is mounted, the kernel knows.

Plain functions that block: for as long as the kernel takes, and where a FUSE directory is a layer, until its daemon answers. Call them from
a thread. All of them need ``CAP_SYS_ADMIN``. ``docs/design/kernel-mode.md`` says what pins what. What does not live here: unmounting
(``bind``), what is mounted where (``table``), and whether all this works on a host (``features``).
"""

import errno
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Final

from imagefs import syscalls
from imagefs.errors import IntegrityError, MountError
from imagefs.format.erofs import BLOCK_SIZE, SUPER, SUPER_MAGIC, SUPER_OFFSET
from imagefs.mount.bind import unmount
from imagefs.mount.fscontext import (
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    VALUE_MAX,
    attach,
    changing,
    explained,
    setting_up,
)
from imagefs.mount.layers import STYLES, Layer, Style, give_layers, opened
from imagefs.mount.loop import CONTROL, loop_device
from imagefs.mount.mountinfo import OVERLAY_TYPE, SOURCE, mount_at
from imagefs.mount.upper import writable_layers

_AGAIN: Final = "remove it, to have it fetched again"
_MS_BIND: Final = 4096
_MS_PRIVATE: Final = 1 << 18

_TREE_HINTS: Final[Mapping[int, str]] = {
    errno.ENODEV: "the kernel has no EROFS: modprobe erofs",
    errno.ENOTBLK: "Linux 6.12 or newer mounts EROFS from a file, if that is not on overlayfs; a loop device does it otherwise",
    errno.EBADMSG: _AGAIN,
    errno.EUCLEAN: _AGAIN,
}
_LOOP_HINTS: Final[Mapping[int, str]] = {
    errno.ENOENT: f"modprobe loop; a container has to be given {CONTROL} and the devices; Linux 6.12 or newer needs none",
    errno.EBUSY: "all loop devices are in use: losetup --all lists them",
}
_IMAGE_HINTS: Final[Mapping[int, str]] = {
    errno.ENODEV: "the kernel has no overlayfs: modprobe overlay",
    errno.EINVAL: "Linux 6.5 or newer has data-only layers; imagefs doctor tries what this kernel has",
    errno.ELOOP: "one of the layers lies inside of another",
    errno.ESTALE: "the upper directory was used with another image: name an empty one",
}


class Backing(StrEnum):
    """What EROFS reads a tree from."""

    FILE = "file"
    LOOP = "loop"


def mount_tree(tree: Path, target: Path, *, backing: Backing | None = None) -> Backing:
    """Mount the file ``tree``, an EROFS image, at ``target``: read-only, without devices and set-user-id, and private to this namespace.

    From the file itself, or where the kernel cannot do that (``ENOTBLK``) from a loop device; ``backing`` allows one of them only. Returns
    which it was. The file may be unlinked or renamed then, but must never change. ``IntegrityError`` if it is no EROFS image, is shorter
    than it says, or fails its checksum; ``MountError``, ``AccessError``.
    """
    with explained(f"cannot mount the tree {tree}", _TREE_HINTS):
        descriptor = os.open(tree, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _check_tree(tree, descriptor)
            mount, backed = _make_tree(tree, descriptor, backing)
        finally:
            os.close(descriptor)
    _attach(mount, target)
    try:
        with explained(f"cannot make {target} private"):
            syscalls.mount(None, target, _MS_PRIVATE)
    except BaseException:
        unmount(target, lazy=True)
        raise
    return backed


def mount_image(
    target: Path,
    tree_mount: Path,
    objects: Path,
    lazy: Path,
    *,
    upper: Path | None = None,
    dev: bool = False,
    suid: bool = False,
    styles: Sequence[Style] = STYLES,
) -> None:
    """Mount an image at ``target``: names and metadata from ``tree_mount``, content from ``objects``, and what that lacks from ``lazy``.

    ``objects`` is the SSD tier's directory, ``lazy`` FUSE's, with ``ab/cdef…`` below each; both may gain and lose files later. Read-only,
    or with an ``upper`` directory writable, in which ``upper`` and ``work`` are made. Devices and set-user-id are off unless asked for.
    Other namespaces see the mount as they see what else is mounted in that place. ``styles`` is there for tests. Nothing stays mounted if
    this fails: ``MountError``, ``AccessError``.
    """
    attributes = (0 if upper else MOUNT_ATTR_RDONLY) | (0 if dev else MOUNT_ATTR_NODEV) | (0 if suid else MOUNT_ATTR_NOSUID)
    with ExitStack() as stack:
        stack.enter_context(explained(f"cannot mount the image at {target}", _IMAGE_HINTS))
        tree, *data = (stack.enter_context(_layer(path)) for path in (tree_mount, objects, lazy))
        writable: tuple[Layer, ...] = ()
        if upper:
            with explained(f"cannot use the upper directory {upper}"):
                writable = stack.enter_context(writable_layers(upper, tree, target, (tree_mount, objects, lazy), styles))
        with setting_up(OVERLAY_TYPE) as context:
            syscalls.fsconfig_string(context, "source", SOURCE.encode())
            syscalls.fsconfig_string(context, "metacopy", b"on")
            syscalls.fsconfig_string(context, "redirect_dir", b"on" if writable else b"follow")
            if writable:
                # Whatever the module's defaults are. An index ties the upper directory to this one tree, and wants of FUSE what it has not.
                syscalls.fsconfig_string(context, "index", b"off")
                # Or files that were not copied up have another st_dev than their directory: find -xdev and tar pass them over.
                syscalls.fsconfig_string(context, "xino", b"auto")
            else:
                syscalls.fsconfig_flag(context, "ro")
            give_layers(context, tree, data, writable, styles)
            syscalls.fsconfig_create(context)
            mount = syscalls.fsmount(context, attributes)
    _attach(mount, target)


def settle(target: Path) -> None:
    """Make the overlay at ``target`` forget in which layer it found the files that nobody has open: their next open looks anew.

    So what was promoted meanwhile is served from SSD, and what was unlinked there gives its space back. Nobody notices: bind mounts,
    working directories, open files and mappings stay as they are, and their files stay where they were found. An overlay on top of this
    one keeps files in use: settle that first.

    It is a remount that changes nothing: the kernel drops a file system's unused directory entries then, whatever is asked. ``MountError``
    if there is no overlay at ``target``; ``AccessError``.
    """
    mounted = mount_at(target)
    if mounted is None or mounted.fstype != OVERLAY_TYPE:
        raise MountError(f"no image is mounted in kernel mode at {target}")
    with explained(f"cannot settle {target}"):
        try:
            _remount(target, ())
        except OSError as error:
            # An overlay without an upper layer wants to hear that it stays read-only, and one with it must not.
            if error.errno != errno.EROFS:
                raise
            _remount(target, ("ro",))


def keep_private(folder: Path) -> None:
    """Make ``folder`` a mount of its own that shares nothing with other namespaces: what is mounted below it is seen in this one alone.

    ``mount_tree`` makes its own mount private, but one that is made in a shared mount has copies elsewhere by then. Once is enough, twice
    does no harm. ``MountError``, ``AccessError``.
    """
    with explained(f"cannot make {folder} private"):
        if mount_at(folder) is None:
            syscalls.mount(folder, folder, _MS_BIND)
        syscalls.mount(None, folder, _MS_PRIVATE)


def _remount(target: Path, flags: Sequence[str]) -> None:
    with changing(target) as context:
        for flag in flags:
            syscalls.fsconfig_flag(context, flag)
        syscalls.fsconfig_reconfigure(context)


def _check_tree(tree: Path, descriptor: int) -> None:
    """Look at what the kernel would say of with an ``EINVAL``, or not before a read."""
    info = os.fstat(descriptor)
    if not stat.S_ISREG(info.st_mode):
        raise MountError(f"the tree {tree} is not a file")
    head = os.pread(descriptor, SUPER.size, SUPER_OFFSET)
    if len(head) < SUPER.size or SUPER.unpack(head)[0] != SUPER_MAGIC:
        raise IntegrityError(f"the tree {tree} is not an EROFS image", hint=_AGAIN)
    wanted = SUPER.unpack(head)[9] * BLOCK_SIZE
    if info.st_size < wanted:
        raise IntegrityError(f"the tree {tree} has {info.st_size} of {wanted} bytes", hint=_AGAIN)


def _make_tree(tree: Path, descriptor: int, backing: Backing | None) -> tuple[int, Backing]:
    if backing is not Backing.LOOP:
        name = os.fsencode(tree.absolute())
        try:
            return _make_erofs(name if len(name) <= VALUE_MAX else b"/proc/self/fd/%d" % descriptor), Backing.FILE
        except OSError as error:
            if backing or error.errno != errno.ENOTBLK:
                raise
    with ExitStack() as stack:
        with explained(f"cannot have a loop device for the tree {tree}", _LOOP_HINTS):
            device = stack.enter_context(loop_device(descriptor, tree))
        return _make_erofs(os.fsencode(device)), Backing.LOOP


def _make_erofs(source: bytes) -> int:
    with setting_up("erofs") as context:
        syscalls.fsconfig_flag(context, "ro")
        syscalls.fsconfig_string(context, "source", source)
        syscalls.fsconfig_create(context)
        return syscalls.fsmount(context, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOSUID)


@contextmanager
def _layer(path: Path) -> Iterator[Layer]:
    with ExitStack() as stack:
        with explained(f"cannot use the layer {path}"):
            layer = stack.enter_context(opened(path))
        yield layer


def _attach(mount: int, target: Path) -> None:
    try:
        attach(mount, target)
    finally:
        os.close(mount)
