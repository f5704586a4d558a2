"""Kernel mode, as far as it is the daemon's: whether it can be, the trees that are mounted for it, and the images over them.

Invariants: the tree of an image is mounted once, in the instance's directory, for as long as the image is mounted somewhere in kernel mode;
what of it a process before this one has mounted is taken as it is; a mount that fails leaves nothing behind.

Blocking functions, for threads; one at a time. What does not live here: the mount calls (``imagefs.mount.kernel``), and the table.
"""

import contextlib
import os
from collections.abc import Container
from pathlib import Path

from imagefs.cache.disk_files import OBJECTS
from imagefs.cache.image import Image
from imagefs.cache.index import INDEX
from imagefs.fuse.forest import OBJECTS_NAME
from imagefs.mount.bind import unmount
from imagefs.mount.features import KernelMode, probe
from imagefs.mount.fscontext import explained
from imagefs.mount.kernel import keep_private, mount_image, mount_tree
from imagefs.mount.mountinfo import mount_at


class KernelMounts:
    """Those of one instance. ``trees`` is where it mounts trees, ``fuse`` where its FUSE mount is."""

    def __init__(self, trees: Path, fuse: Path, cache: Path) -> None:
        """Cheap: nothing is tried yet."""
        self._trees = trees
        self._lazy = fuse / os.fsdecode(OBJECTS_NAME)
        self._cache = cache
        self._mode: KernelMode | None = None

    def mode(self) -> KernelMode:
        """Return whether kernel mode can be, and why not; tried once."""
        if self._mode is None:
            self._mode = probe(self._cache)
        return self._mode

    def mount(self, image: Image, target: Path, *, upper: Path | None, dev: bool, suid: bool) -> None:
        """Mount an image at ``target``. ``MountError``, ``AccessError``, ``IntegrityError``."""
        tree = self._trees / image.name
        is_new = mount_at(tree) is None
        try:
            if is_new:
                with explained(f"cannot make {tree}"):
                    self._trees.mkdir(mode=0o700, exist_ok=True)
                    keep_private(self._trees)
                    tree.mkdir(mode=0o700, exist_ok=True)
                mount_tree(self._cache / INDEX / image.manifest.tree.digest, tree, backing=self.mode().backing)
            mount_image(target, tree, self._cache / OBJECTS, self._lazy, upper=upper, dev=dev, suid=suid)
        except BaseException:
            if is_new:
                self.release(image.name)
            raise

    def release(self, manifest: str) -> None:
        """Take an image's tree away, which nothing new will be mounted over. What is over it keeps what it needs."""
        tree = self._trees / manifest
        if mount_at(tree) is not None:
            unmount(tree, lazy=True)
        with contextlib.suppress(OSError):
            tree.rmdir()

    def keep(self, manifests: Container[str]) -> None:
        """Take away the trees of all images but these, and with the last of them what they were mounted in."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            names = [tree.name for tree in self._trees.iterdir()]
            for name in names:
                if name not in manifests:
                    self.release(name)
            if not any(name in manifests for name in names) and mount_at(self._trees) is not None:
                unmount(self._trees, lazy=True)
