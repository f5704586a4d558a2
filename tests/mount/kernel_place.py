"""A tree, an SSD directory and one that stands in for FUSE, for tests of kernel mode: written by this project, mounted by the kernel.

What an object holds can be made to differ between the two directories, at equal size, so that a read tells which one it came from.
"""

import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from imagefs.digest import digest_of
from imagefs.errors import MountError
from imagefs.format.erofs_writer import write_tree
from imagefs.format.tree import Inode
from imagefs.mount.bind import unmount
from imagefs.mount.kernel import Backing, mount_image, mount_tree
from imagefs.mount.layers import STYLES, Style
from tests.system.world import detach, missing, mounts_below, require

MTIME: Final = 1_600_000_000_123_456_789
SSD: Final = b"from SSD, as the kernel reads it".ljust(5000, b"s")
LAZY: Final = b"from what stands in for FUSE".ljust(5000, b"l")
"""Two contents of one size."""


def directory(**children: Inode) -> Inode:
    """Return a directory of the usual kind."""
    return Inode(stat.S_IFDIR | 0o755, mtime_ns=MTIME, children={os.fsencode(name): child for name, child in children.items()})


@dataclass
class Place:
    """The directories of one test, below ``folder``."""

    folder: Path
    root: Inode = field(default_factory=directory)

    def __post_init__(self) -> None:
        """Make the directories."""
        for path in (self.objects, self.lazy, self.tree_mount, self.image):
            path.mkdir(parents=True)

    @property
    def tree(self) -> Path:
        """The EROFS image."""
        return self.folder / "tree"

    @property
    def objects(self) -> Path:
        """The SSD tier's directory."""
        return self.folder / "objects"

    @property
    def lazy(self) -> Path:
        """What stands in for FUSE: has all objects."""
        return self.folder / "lazy"

    @property
    def tree_mount(self) -> Path:
        """Where the tree is mounted."""
        return self.folder / "tree-mount"

    @property
    def image(self) -> Path:
        """Where the image is mounted."""
        return self.folder / "image"

    def put(self, path: str | bytes, inode: Inode) -> Inode:
        """Place an inode in the tree, with directories above it as needed."""
        *parents, name = os.fsencode(path).split(b"/")
        folder = self.root
        for parent in parents:
            assert folder.children is not None
            folder = folder.children.setdefault(parent, directory())
        assert folder.children is not None
        folder.children[name] = inode
        return inode

    def file(self, path: str | bytes, data: bytes, *, ssd: bool = False, mode: int = 0o644, uid: int = 0) -> Inode:
        """Place a file whose object ``lazy`` has, and ``objects`` too if asked for."""
        digest = digest_of(data)
        self.keep(self.lazy, digest, data)
        if ssd:
            self.keep(self.objects, digest, data)
        return self.put(path, Inode(stat.S_IFREG | mode, uid=uid, object=digest, size=len(data), mtime_ns=MTIME))

    def told_apart(self, path: str, *, ssd: bool = False) -> bytes:
        """Place a file that reads as ``LAZY`` or ``SSD``, by where it comes from; return its object's name."""
        digest = digest_of(path.encode())
        self.keep(self.lazy, digest, LAZY)
        self.put(path, Inode(stat.S_IFREG | 0o644, object=digest, size=len(LAZY), mtime_ns=MTIME))
        if ssd:
            self.promote(digest)
        return digest

    def promote(self, digest: bytes, data: bytes = SSD) -> None:
        """Bring an object to the SSD directory as the cache does: whole, by a rename."""
        self.keep(self.objects, digest, data)

    def evict(self, digest: bytes) -> None:
        """Unlink an object from the SSD directory."""
        object_path(self.objects, digest).unlink()

    @staticmethod
    def keep(folder: Path, digest: bytes, data: bytes) -> None:
        """Write an object."""
        path = object_path(folder, digest)
        path.parent.mkdir(exist_ok=True)
        new = path.with_name("new")
        new.write_bytes(data)
        new.chmod(0o444)
        new.rename(path)

    def write(self) -> Path:
        """Write the tree."""
        self.tree.write_bytes(write_tree(self.root))
        return self.tree

    def mount(
        self,
        *,
        backing: Backing | None = None,
        upper: Path | None = None,
        dev: bool = False,
        suid: bool = False,
        styles: Sequence[Style] = STYLES,
    ) -> Path:
        """Write and mount the tree, and the image over it; return where."""
        mount_tree(self.write(), self.tree_mount, backing=backing)
        self.mount_image(upper=upper, dev=dev, suid=suid, styles=styles)
        return self.image

    def mount_image(self, *, upper: Path | None = None, dev: bool = False, suid: bool = False, styles: Sequence[Style] = STYLES) -> None:
        """Mount the image over the tree that is mounted."""
        mount_image(self.image, self.tree_mount, self.objects, self.lazy, upper=upper, dev=dev, suid=suid, styles=styles)

    def close(self) -> None:
        """Unmount all that is mounted below, the last first."""
        for point in mounts_below(self.folder):
            with suppress(MountError):
                unmount(Path(os.fsdecode(point)))
            detach(point)
        assert mounts_below(self.folder) == []


def object_path(folder: Path, digest: bytes) -> Path:
    """Return where an object lies."""
    return folder / digest.hex()[:2] / digest.hex()[2:]


def kernel_or_skip() -> None:
    """Go on if this user may mount, and the kernel has both file systems."""
    require("root", "mounts")
    require("erofs")
    if "\toverlay\n" not in Path("/proc/filesystems").read_text():
        missing("no overlayfs here")


def names(folder: Path) -> list[str]:
    """Return what a directory holds, in order."""
    return sorted(entry.name for entry in folder.iterdir())


def loop_devices(folder: Path) -> list[str]:
    """Return what files below ``folder`` loop devices have."""
    found = []
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            found.append(backing.read_text(errors="surrogateescape"))
        except OSError:  # It went meanwhile.
            continue
    return [name for name in sorted(found) if str(folder) in name]


def descriptors() -> int:
    """Count what this process has open."""
    return len(names(Path("/proc/self/fd")))


def mount_lines(part: Path | str) -> list[str]:
    """Return the lines of ``/proc/self/mountinfo`` that have ``part`` in them."""
    return [line for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines() if str(part) in line]
