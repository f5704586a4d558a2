"""What a runner has mounted, each manifest once, below a directory of its own; and source over image for engines that take one root.

This is the one module here that asks the daemon. Invariants: snapshots are mounted in FUSE mode, because there each byte is verified;
:meth:`Mounts.close` leaves nothing mounted. It may be used by several threads.
"""

import contextlib
import os
import threading
from pathlib import Path
from typing import Final

from imagefs import syscalls
from imagefs.config import Config
from imagefs.daemon import mounting
from imagefs.errors import ImageFSError, MountError
from imagefs.mount.bind import unmount
from snapshotstore.checkpoint.criu_root import layers_of

_MS_RDONLY: Final = 1
_MS_NOSUID: Final = 2
_MS_NODEV: Final = 4


class Mounts:
    """See the module."""

    def __init__(self, config: Config, folder: Path) -> None:
        """``folder`` is there, and empty."""
        self._config = config
        self._folder = folder
        self._lock = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}
        self._mounted: dict[str, Path] = {}
        self._damage = 0

    def manifest(self, name: str, *, mode: str | None = None, label: str = "") -> Path:
        """Mount the manifest ``name``, in hex, unless it is; return where. ``mode``: that of the daemon's ``mount``."""
        with self._of(name):
            if (there := self._mounted.get(name)) is not None:
                return there
            place = self._folder / name[:32]
            place.mkdir(mode=0o700)
            try:
                mounting.mount(self._config, mountpoint=place, manifest=name, mode=mode, label=label)
            except BaseException:
                with contextlib.suppress(OSError):  # why it was not mounted says more
                    place.rmdir()
                raise
            self._mounted[name] = place
            return place

    def has(self, *names: str) -> bool:
        """Say whether all of these manifests, in hex, are mounted."""
        return self._mounted.keys() >= set(names)

    def stacked(self, top: str, root: str) -> Path:
        """Return where the tree ``top`` lies over the image ``root``, both manifests in hex and mounted already: read-only."""
        name = f"{top[:32]}-{root[:32]}"
        with self._of(name):
            if (there := self._mounted.get(name)) is not None:
                return there
            place = self._folder / name
            place.mkdir(mode=0o700)
            _mount_over(self._mounted[top], self._mounted[root], place)
            self._mounted[name] = place
            return place

    def has_met_damage(self) -> bool:
        """Say whether the daemon has found something damaged since this was asked last, or ever, the first time. ``DaemonError``."""
        from imagefs.daemon import client  # noqa: PLC0415 # asked when something went wrong, and not before

        found = int(client.stats(self._config)["verify_failures"])
        with self._lock:
            before, self._damage = self._damage, found
        return found > before

    def _of(self, name: str) -> threading.Lock:
        with self._lock:
            return self._locks.setdefault(name, threading.Lock())

    def close(self) -> list[str]:
        """Unmount everything; return what could not be, with the reason."""
        failed = []
        # What lies over others goes first.
        for name, place in reversed(self._mounted.items()):
            try:
                if "-" in name:
                    unmount(place, lazy=True)
                else:
                    mounting.umount(self._config, place, lazy=True)
                place.rmdir()
            except (ImageFSError, OSError) as error:
                failed.append(f"{place}: {error}")
        self._mounted.clear()
        return failed


def _mount_over(top: Path, root: Path, place: Path) -> None:
    """Mount ``top`` over ``root``, on its layers where that is an overlay: the kernel stacks two, and an image in kernel mode is two."""
    below = layers_of(root)
    opened = []
    try:
        for path in (top, *below.lower, *below.data):
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            opened.append(descriptor)  # one by one, so that those before a failure are closed
        names = [f"/proc/self/fd/{descriptor}" for descriptor in opened]
        count = 1 + len(below.lower)
        lower = "::".join((":".join(names[:count]), *names[count:]))
        extra = ",metacopy=on,redirect_dir=follow" if below.data else ""
        syscalls.mount_new("overlay", "imagefs", place, _MS_RDONLY | _MS_NOSUID | _MS_NODEV, f"lowerdir={lower}{extra}")
    except OSError as error:
        with contextlib.suppress(OSError):
            place.rmdir()
        raise MountError(f"cannot mount {top} over {root}: {error.strerror}") from error
    finally:
        for descriptor in opened:
            os.close(descriptor)
