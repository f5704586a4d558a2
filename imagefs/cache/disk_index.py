"""What the SSD tier holds, in LMDB: one row a file, and a few figures about all of them. The bytes are files (``imagefs.cache.disk``).

Invariants:

- a commit is atomic and durable when it returns; rows and figures change in the same one;
- rows are read in place and nothing is held a row: two million of them cost no memory and no time at the start;
- a database that is damaged, or of another version, is set aside by :func:`open_index`, never half read.

Reading is safe from any thread; commits come from one thread at a time.
"""

import contextlib
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import lmdb

from imagefs.errors import StoreError, StoreFullError

MAP_BYTES: Final = 16 << 30
"""Address space for the database: the file is sparse and takes what its rows take."""

_ROW: Final = struct.Struct("<BQQI")
_FIGURES: Final = struct.Struct("<QQ32s")
_FIGURES_KEY: Final = b"figures"
_SCRUB: Final = struct.Struct("<d32s")
_SCRUB_KEY: Final = b"scrub"
_NAME: Final = 32


class Row(NamedTuple):
    """One file. ``held`` are its bytes on disk, ``used_at`` is in seconds since the epoch.

    ``ranges`` is the encoded set of what an incomplete file has, holes included.
    """

    complete: bool
    size: int
    held: int
    used_at: int
    ranges: bytes = b""


class Figures(NamedTuple):
    """Sums over all rows: bytes on disk, complete files; and the row before which eviction goes on."""

    held: int = 0
    complete: int = 0
    hand: bytes = bytes(_NAME)


class Scrub(NamedTuple):
    """Where the scrubber is: when its round began, in seconds since the epoch, and the last name that it has looked at."""

    begun: float
    name: bytes


class DiskIndex:
    """The open database. ``scrub`` is where the scrubber was when it was opened, None if it never began."""

    def __init__(self, path: Path, *, map_bytes: int = MAP_BYTES) -> None:
        """Open or make it. ``StoreError`` if it is damaged."""
        try:
            path.mkdir(mode=0o700, exist_ok=True)
            self._environment = lmdb.open(str(path), map_size=map_bytes, max_dbs=4, metasync=True, sync=True, readahead=False, mode=0o600)
            # LMDB reads what it has mapped: a file that was cut short would end the process.
            pages = self._environment.info()["last_pgno"] + 1
            if pages * self._environment.stat()["psize"] > (path / "data.mdb").stat().st_size:
                raise StoreError(f"the index of the cache at {path} is cut short")
            self._rows = self._environment.open_db(b"rows")
            self._pins = self._environment.open_db(b"pins")
            self._meta = self._environment.open_db(b"meta")
            with self._environment.begin() as transaction:
                figures = transaction.get(_FIGURES_KEY, db=self._meta)
                scrub = transaction.get(_SCRUB_KEY, db=self._meta)
            self.figures = Figures() if figures is None else Figures._make(_FIGURES.unpack(figures))
            self.scrub = None if scrub is None else Scrub._make(_SCRUB.unpack(scrub))
        except (lmdb.Error, struct.error, OSError) as error:
            raise StoreError(f"the index of the cache at {path} cannot be used: {error}") from error

    def close(self) -> None:
        """Close it."""
        self._environment.close()

    def __len__(self) -> int:
        """Count the rows."""
        with self._environment.begin() as transaction:
            return int(transaction.stat(self._rows)["entries"])

    def get(self, name: bytes) -> Row | None:
        """Return a file's row. ``StoreError`` where the database turns out to be damaged."""
        try:
            with self._environment.begin() as transaction:
                return _decode(transaction.get(name, db=self._rows))
        except lmdb.Error as error:
            raise StoreError(f"the index of the cache cannot be read: {error}") from error

    def after(self, name: bytes, count: int) -> list[tuple[bytes, Row]]:
        """Return up to ``count`` rows behind ``name``, in the order of names; fewer only at the end. ``StoreError`` for damage."""
        try:
            return [item for item, _ in zip(self._walk(name), range(count), strict=False)]
        except lmdb.Error as error:
            raise StoreError(f"the index of the cache cannot be read: {error}") from error

    def _walk(self, name: bytes) -> Iterator[tuple[bytes, Row]]:
        with self._environment.begin() as transaction, transaction.cursor(self._rows) as cursor:
            if not cursor.set_range(name):
                return
            for key, value in cursor:
                row = _decode(value)
                if key != name and row is not None:
                    yield bytes(key), row

    def commit(self, puts: Iterable[tuple[bytes, Row]], deletes: Iterable[bytes], figures: Figures) -> None:
        """Write rows, delete others, and write the figures, in one. ``StoreFullError`` where there is no room: nothing changed then."""
        try:
            with self._environment.begin(write=True) as transaction:
                for name in deletes:
                    transaction.delete(name, db=self._rows)
                for name, row in puts:
                    transaction.put(name, _ROW.pack(*row[:4]) + row.ranges, db=self._rows)
                transaction.put(_FIGURES_KEY, _FIGURES.pack(*figures), db=self._meta)
        except lmdb.Error as error:
            raise StoreFullError(f"the index of the cache cannot be written: {error}") from error
        self.figures = figures

    def keep_scrub(self, scrub: Scrub) -> None:
        """Remember where the scrubber is. ``StoreFullError`` where there is no room."""
        try:
            with self._environment.begin(write=True) as transaction:
                transaction.put(_SCRUB_KEY, _SCRUB.pack(*scrub), db=self._meta)
        except lmdb.Error as error:
            raise StoreFullError(f"the index of the cache cannot be written: {error}") from error

    def pins(self) -> dict[str, str]:
        """Return the pinned images: manifest (hex) -> the name by which it was pinned."""
        with self._environment.begin() as transaction, transaction.cursor(self._pins) as cursor:
            return {bytes(key).decode(): bytes(value).decode(errors="replace") for key, value in cursor}

    def pin(self, manifest: str, shown: str) -> bool:
        """Remember a pin; False if it was there."""
        with self._environment.begin(write=True) as transaction:
            return bool(transaction.put(manifest.encode(), shown.encode(), db=self._pins, overwrite=False))

    def unpin(self, manifest: str) -> bool:
        """Forget a pin; False if there was none."""
        with self._environment.begin(write=True) as transaction:
            return bool(transaction.delete(manifest.encode(), db=self._pins))


def _decode(value: bytes | None) -> Row | None:
    # A row of another shape can only come from another version, and those do not get here: it counts as absent.
    if value is None or len(value) < _ROW.size:
        return None
    complete, size, held, used_at = _ROW.unpack_from(value)
    return Row(bool(complete), size, held, used_at, bytes(value[_ROW.size :]))


def open_index(path: Path) -> tuple[DiskIndex, bool]:
    """Open the database at ``path``; one that is damaged is put aside as ``<path>.damaged`` and a new one made: then True comes with it."""
    with contextlib.suppress(StoreError):
        return DiskIndex(path), False
    aside = path.with_name(path.name + ".damaged")
    _remove(aside)
    path.rename(aside)
    return DiskIndex(path), True


def _remove(folder: Path) -> None:
    if folder.is_dir():
        for child in folder.iterdir():
            child.unlink()
        folder.rmdir()
