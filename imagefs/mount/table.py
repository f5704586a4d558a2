"""What is mounted where, kept as JSON beside the control socket, so that the next daemon process knows it.

Invariants: the file is replaced as a whole; a slot belongs to one image as long as that image is mounted anywhere or lingers, and slots are
not reused until ``SLOT_MAX`` has been given, so the kernel cannot take one image's cached nodeids for another's. A file that cannot be read
counts as empty: what it would say can be seen in ``/proc/self/mountinfo`` too.

An image *lingers* when a mount of it went while files of it may be open: it is shown on, also by the next process.

All of it belongs to one thread. What does not live here: mounting.
"""

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from imagefs.errors import LimitError, StoreFullError

SLOT_MAX: Final = (1 << 23) - 1
FUSE: Final = "fuse"
KERNEL: Final = "kernel"
"""The modes in which an image is mounted."""

_FORMAT: Final = 1


class MountRecord(msgspec.Struct, frozen=True):
    """One mount: where, which image (its manifest's hex digest), by which name it was asked for, since when (seconds since the epoch).

    ``prefetch``: what a profile of starts with ``label`` names is fetched ahead.
    """

    mountpoint: str
    manifest: str
    ref: str
    slot: int
    mode: str
    mounted_at: float
    prefetch: bool = False
    label: str = ""


class _Document(msgspec.Struct):
    format: int
    last_slot: int
    mounts: list[MountRecord]
    lingering: dict[str, int] = {}
    """The slots of images that linger, by manifest."""
    opens: dict[int, int] = {}
    """Open files by slot, as far as a process that has ended has counted all of them."""
    counted_by: int = -1
    """Which of the daemon's processes that was."""


class MountTable:
    """The mounts of one daemon."""

    def __init__(self, path: Path) -> None:
        """Read what an earlier process left at ``path``, if anything."""
        self._path = path
        document = _load(path)
        self._last_slot = document.last_slot
        self._mounts = {record.mountpoint: record for record in document.mounts}
        self._lingering = document.lingering
        self._opens = document.opens
        self._counted_by = document.counted_by

    def __iter__(self) -> Iterator[MountRecord]:
        """Iterate over the records."""
        return iter(list(self._mounts.values()))

    def __len__(self) -> int:
        """Count the mounts."""
        return len(self._mounts)

    def get(self, mountpoint: str) -> MountRecord | None:
        """Return the record of a mountpoint."""
        return self._mounts.get(mountpoint)

    def of_image(self, manifest: str) -> list[MountRecord]:
        """Return the mounts of an image."""
        return [record for record in self._mounts.values() if record.manifest == manifest]

    def images(self) -> dict[int, str]:
        """Return the images that have a slot, by slot: those that are mounted, and those that linger."""
        mounted = {record.slot: record.manifest for record in self._mounts.values()}
        return mounted | {slot: manifest for manifest, slot in self._lingering.items()}

    def slot_for(self, manifest: str) -> int:
        """Return the slot of an image: the one it has, or a new one. It is kept once a mount with it is added."""
        taken = self.images()
        for slot, name in taken.items():
            if name == manifest:
                return slot
        for _ in range(SLOT_MAX):
            self._last_slot = self._last_slot % SLOT_MAX + 1
            if self._last_slot not in taken:
                return self._last_slot
        raise LimitError("no more images can be mounted")

    def add(self, record: MountRecord) -> None:
        """Keep a mount. ``StoreFullError`` if that cannot be written; then it is not kept."""
        self._mounts[record.mountpoint] = record
        try:
            self._save()
        except BaseException:
            del self._mounts[record.mountpoint]
            raise

    def remove(self, mountpoint: str, *, lingers: bool = False) -> MountRecord | None:
        """Forget a mount, whose image ``lingers`` if files of it may be open still; return what it was."""
        record = self._mounts.pop(mountpoint, None)
        if record is not None:
            if lingers:
                self._lingering[record.manifest] = record.slot
            self._save()
        return record

    def lingers(self, manifest: str) -> bool:
        """Say whether an image lingers."""
        return manifest in self._lingering

    def settle(self, manifest: str) -> None:
        """Let an image linger no longer."""
        if self._lingering.pop(manifest, None) is not None:
            self._save()

    def clear(self) -> None:
        """Forget everything but the slots that were given."""
        self._mounts.clear()
        self._lingering.clear()
        self._opens = {}
        self._counted_by = -1
        self._save()

    def hand_on(self, opens: dict[int, int], process: int) -> None:
        """Leave to the next process how many files of each slot are open, for those slots where this one, the ``process``-th, knows."""
        self._opens = opens
        self._counted_by = process
        self._save()

    def handed_on(self, process: int) -> dict[int, int]:
        """Return what the ``process``-th process left by :meth:`hand_on`; nothing if that was another."""
        return self._opens if process == self._counted_by else {}

    def _save(self) -> None:
        temporary = self._path.with_name(f".{self._path.name}.{secrets.token_hex(4)}")
        try:
            document = _Document(_FORMAT, self._last_slot, list(self._mounts.values()), self._lingering, self._opens, self._counted_by)
            temporary.write_bytes(msgspec.json.encode(document) + b"\n")
            temporary.replace(self._path)
        except OSError as error:
            raise StoreFullError(f"cannot keep the mount table {self._path}: {error.strerror}") from error
        finally:
            temporary.unlink(missing_ok=True)


def _load(path: Path) -> _Document:
    try:
        document = msgspec.json.decode(path.read_bytes(), type=_Document)
    except (OSError, msgspec.MsgspecError):
        return _Document(_FORMAT, 0, [])
    return document if document.format == _FORMAT else _Document(_FORMAT, 0, [])
