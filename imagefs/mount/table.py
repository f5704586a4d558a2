"""What is mounted where, kept as JSON beside the control socket, so that the next daemon process knows it.

Invariants: the file is replaced as a whole; a slot belongs to one image as long as that image is mounted anywhere, and slots are not reused
until ``SLOT_MAX`` has been given, so the kernel cannot take one image's cached nodeids for another's. A file that cannot be read counts as
empty: what it would say can be seen in ``/proc/self/mountinfo`` too.

All of it belongs to one thread. What does not live here: mounting.
"""

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from imagefs.errors import LimitError, StoreFullError

SLOT_MAX: Final = (1 << 23) - 1
_FORMAT: Final = 1


class MountRecord(msgspec.Struct, frozen=True):
    """One mount: where, which image (its manifest's hex digest), by which name it was asked for, since when (seconds since the epoch)."""

    mountpoint: str
    manifest: str
    ref: str
    slot: int
    mode: str
    mounted_at: float


class _Document(msgspec.Struct):
    format: int
    last_slot: int
    mounts: list[MountRecord]


class MountTable:
    """The mounts of one daemon."""

    def __init__(self, path: Path) -> None:
        """Read what an earlier process left at ``path``, if anything."""
        self._path = path
        document = _load(path)
        self._last_slot = document.last_slot
        self._mounts = {record.mountpoint: record for record in document.mounts}

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

    def slot_for(self, manifest: str) -> int:
        """Return the slot of an image: the one it has, or a new one. It is kept once a mount with it is added."""
        for record in self._mounts.values():
            if record.manifest == manifest:
                return record.slot
        taken = {record.slot for record in self._mounts.values()}
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

    def remove(self, mountpoint: str) -> MountRecord | None:
        """Forget a mount; return what it was."""
        record = self._mounts.pop(mountpoint, None)
        if record is not None:
            self._save()
        return record

    def clear(self) -> None:
        """Forget all mounts."""
        self._mounts.clear()
        self._save()

    def _save(self) -> None:
        temporary = self._path.with_name(f".{self._path.name}.{secrets.token_hex(4)}")
        try:
            temporary.write_bytes(msgspec.json.encode(_Document(_FORMAT, self._last_slot, list(self._mounts.values()))) + b"\n")
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
