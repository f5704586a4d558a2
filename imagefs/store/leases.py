"""Leases: who writes to a store, or has images of it mounted, says so there, for who deletes what nothing names.

Specified in ``docs/format/store.md``.

Guarantees:

- a lease has one key for all its life, written by compare-and-swap: a listing shows it whenever it is made;
- whatever cannot be read counts as one that uses everything, for as long as any lease may last without a renewal;
- a lease ends by being deleted, or by itself, so one whose process was killed keeps nothing for ever;
- a writer that has lost its lease is told so before it publishes, as what it has written may be gone.

Clocks differ from host to host. A lease lasts from when its writer says that it was renewed *and* from when the store got it, whichever
ends later, and :data:`MARGIN` longer; so only the reader's clock has to agree with the store's, and that but roughly.

All functions block. Who owns what: a :class:`Lease` belongs to one thread at a time; a :class:`Writing` has one thread, which renews.
What does not live here: collecting, and when a daemon says what it has mounted (``imagefs.daemon.leasing``).
"""

import datetime
import logging
import secrets
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Annotated, Final, Literal, Protocol, Self

import msgspec

from imagefs.errors import (
    AccessError,
    ConflictError,
    ImageFSError,
    IntegrityError,
    LimitError,
    NotFoundError,
    StoreError,
    UnsupportedError,
)
from imagefs.format.manifest import HexDigest
from imagefs.store.base import BlobSource, KeyInfo, ObjectStore

LEASE_FORMAT: Final = 1

COLLECTOR: Final = "gc"
"""The id of the one lease of who deletes, in any store: no writer goes on while it counts."""

WRITER_LIFE: Final = 1800.0
MOUNT_LIFE: Final = 86400.0
"""Seconds that a lease lasts from its last renewal: so long a store may be away before what a host has mounted is not known any more."""

LIFE_MAX: Final = 7 * 86400.0
"""Seconds that any lease lasts, of any version; and that one counts which nobody can read."""

MARGIN: Final = 600.0
"""Seconds that clocks may differ by, and that a writer may take from its last look at its lease to its ref."""

RENEWALS: Final = 3
"""How often a lease is renewed in its life: two may fail."""

_DOCUMENT_MAX: Final = 1 << 20
_PATIENCE: Final = 600.0
_LOOK: Final = 1.0

_log = logging.getLogger(__name__)

Clock = Callable[[], float]
"""Returns the seconds since the epoch."""

_Instant = Annotated[datetime.datetime, msgspec.Meta(tz=True)]


class LeaseDocument(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a lease says: whose it is, for people; ``manifests`` in use; and whether it is ``writing`` what nothing names yet."""

    kind: Annotated[str, msgspec.Meta(pattern=r"\A[a-z]{1,32}\Z")]
    host: Annotated[str, msgspec.Meta(max_length=255)]
    started: _Instant
    renewed: _Instant
    expires: _Instant
    manifests: list[HexDigest] = []
    writing: bool = False
    format: int = LEASE_FORMAT


class _Head(msgspec.Struct):
    format: int


def lease_key(name: str) -> str:
    """Key of a lease; with an empty name, what the keys of all of them begin with."""
    return f"leases/{name}"


# -- reading ------------------------------------------------------------------------------------------------------------------------------


class LeaseSource(BlobSource, Protocol):
    """What reading leases takes of an :class:`~imagefs.store.base.ObjectStore`."""

    def list(self, prefix: str) -> Iterator[KeyInfo]:
        """See :class:`~imagefs.store.base.ObjectStore`."""


@dataclass(frozen=True, slots=True)
class LeaseInfo:
    """A lease as the store has it. It counts until ``until``, in seconds since the epoch; without ``document``, ``problem`` says why."""

    name: str
    until: float
    document: LeaseDocument | None
    problem: str = ""

    @property
    def uses_all(self) -> bool:
        """Whether nothing at all may be deleted while it counts: somebody writes, or it cannot be read."""
        return self.document is None or self.document.writing


def leases(store: LeaseSource, *, clock: Clock = time.time) -> list[LeaseInfo]:
    """Return the leases that count now. Raises the store's errors; one that is deleted meanwhile does not count."""
    found = [_look(store, info) for info in store.list(lease_key(""))]
    return [lease for lease in found if lease is not None and clock() < lease.until]


def collecting(store: BlobSource, *, clock: Clock = time.time) -> LeaseInfo | None:
    """Return the lease of who deletes what nothing names, if somebody does now. One request where nobody does."""
    try:
        lease = _look(store, store.head(lease_key(COLLECTOR)))
    except NotFoundError:
        return None
    return lease if lease is not None and clock() < lease.until else None


def _look(store: BlobSource, info: KeyInfo) -> LeaseInfo | None:
    """Read a lease; None if it is gone."""
    name = info.key.removeprefix(lease_key(""))
    try:
        document = _read(store, info, name)
    except NotFoundError:
        return None
    except (IntegrityError, UnsupportedError, LimitError) as error:
        return LeaseInfo(name, info.mtime + LIFE_MAX + MARGIN, None, error.message)
    life = (document.expires - document.renewed).total_seconds()
    return LeaseInfo(name, max(document.expires.timestamp(), info.mtime + life) + MARGIN, document)


def _read(store: BlobSource, info: KeyInfo, name: str) -> LeaseDocument:
    if info.size > _DOCUMENT_MAX:
        raise LimitError(f"lease {name[:80]} is longer than {_DOCUMENT_MAX} bytes")
    return decode_lease(name, store.get(info.key))


def decode_lease(name: str, data: bytes) -> LeaseDocument:
    """Read the document of the lease ``name``. ``UnsupportedError`` for another format, ``IntegrityError`` for what is none."""
    try:
        if (found := msgspec.json.decode(data, type=_Head).format) != LEASE_FORMAT:
            raise UnsupportedError(f"lease {name[:80]} has format {found}: this version reads {LEASE_FORMAT}")
        document = msgspec.json.decode(data, type=LeaseDocument)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise IntegrityError(f"lease {name[:80]} is damaged: {error}") from None
    if not 0 < (document.expires - document.renewed).total_seconds() <= LIFE_MAX:
        raise IntegrityError(f"lease {name[:80]} is damaged: it does not say for how long it lasts")
    return document


# -- holding ------------------------------------------------------------------------------------------------------------------------------


class Lease:
    """One lease of this process's, written when :meth:`write` is called. ``expires``: seconds since the epoch, 0 before that.

    ``lapsed``: it was renewed too late once, so that for a while it did not count.
    """

    def __init__(
        self, store: ObjectStore, kind: str, *, life: float, writing: bool = False, name: str | None = None, clock: Clock = time.time
    ) -> None:
        """Nothing is written. ``name`` is that of a lease of a process before this one, which is gone on with."""
        self.name = name or secrets.token_hex(16)
        self.life = life
        self.expires = 0.0
        self.lapsed = False
        self._store = store
        self._kind = kind
        self._writing = writing
        self._clock = clock
        self._started = clock()
        self._version: str | None = None

    def write(self, manifests: Collection[str] = ()) -> None:
        """Make or renew it, naming ``manifests``. Raises the store's errors; then it is as it was, or renewed."""
        # As of before the request: when that arrives is not known.
        now = float(int(self._clock()))
        document = LeaseDocument(
            self._kind,
            socket.gethostname()[:255],
            _instant(self._started),
            _instant(now),
            _instant(now + self.life),
            sorted(manifests),
            self._writing,
        )
        data = msgspec.json.encode(document, order="sorted") + b"\n"
        key = lease_key(self.name)
        try:
            self._version = self._store.replace(key, data, version=self._version)
        except ConflictError:
            # Of a write that failed that may have been the answer alone; or a process before this one has written it; or it was deleted.
            self._version = self._found(key)
            self._version = self._store.replace(key, data, version=self._version)
        self.lapsed |= self.has_expired()
        self.expires = now + self.life

    def _found(self, key: str) -> str | None:
        try:
            return self._store.get_versioned(key)[1]
        except NotFoundError:
            return None

    def has_expired(self) -> bool:
        """Whether it was written, and for too long was not renewed."""
        return 0 < self.expires <= self._clock()

    def drop(self) -> None:
        """Delete it. Raises the store's errors."""
        self._store.delete(lease_key(self.name))
        self._version = None
        self.expires = 0.0


def _instant(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(int(seconds), datetime.UTC)


class Writing:
    """The lease of a writer, from before it looks at what the store has until after its ref is written: a context manager.

    To enter it raises the store's errors, and ``ConflictError`` if somebody who deletes what nothing names does not come to an end. A store
    that takes no leases from this user (``AccessError``) is written to without one: its policy may know packs and refs alone, and one that
    takes nothing says so to the first pack. That is told by a warning, at the end and if something was published.
    """

    def __init__(
        self,
        store: ObjectStore,
        kind: Literal["convert", "optimize", "push"],
        *,
        life: float = WRITER_LIFE,
        patience: float = _PATIENCE,
        look: float = _LOOK,
        clock: Clock = time.time,
    ) -> None:
        """``patience``: seconds that a collector is waited for, looked at every ``look`` seconds."""
        self._store = store
        self._lease = Lease(store, kind, life=life, writing=True, clock=clock)
        self._patience = patience
        self._look = look
        self._clock = clock
        self._refused: AccessError | None = None
        self._published = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def __enter__(self) -> Self:
        """Take the lease."""
        try:
            self._take()
            if self._refused is None:
                self._thread.start()
        except BaseException:
            self._end()
            raise
        return self

    def _take(self) -> None:
        until = time.monotonic() + self._patience
        while True:
            try:
                self._lease.write()
            except AccessError as error:
                self._refused = error
            # After that: of a writer and a collector that come together at least one sees the other, and the writer steps back.
            collector = self._collector()
            if collector is None:
                return
            self._drop()
            while collector is not None:
                if time.monotonic() >= until:
                    who = collector.document.host if collector.document is not None else "somebody"
                    raise ConflictError(
                        f"{who} is deleting what nothing names from the store, and nothing can be written to it meanwhile",
                        hint=f"try again later; if nobody is, delete the key {lease_key(COLLECTOR)} from the store",
                    )
                time.sleep(self._look)
                collector = self._collector()

    def _collector(self) -> LeaseInfo | None:
        try:
            return collecting(self._store, clock=self._clock)
        except AccessError as error:
            self._refused = error
            return None

    def _renew(self) -> None:
        pause = usual = self._lease.life / RENEWALS
        while not self._over.wait(pause):
            try:
                self._lease.write()
                pause = usual
            except ImageFSError:
                # The store may be away for a while; if it is for too long, ``publishing`` says so.
                pause = usual / 10

    def publishing(self) -> None:
        """Say that all content is written and will be named now. ``StoreError`` if the lease has lapsed: content may be gone."""
        if self._lease.lapsed or self._lease.has_expired():
            raise StoreError(
                f"the store did not take word of this for {self._lease.life / 60:g} minutes: what was written may be deleted by now",
                hint="run it again; what the store still has is used",
            )
        self._published = True

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Give the lease up. One that cannot be deleted ends by itself."""
        self._end()
        if self._refused is not None and self._published and kind is None:
            _log.warning(
                "the store takes no leases from this user (%s): do not collect garbage while this user writes", self._refused.message
            )

    def _end(self) -> None:
        self._over.set()
        if self._thread.ident is not None:
            # A renewal that came after the end would be there for nothing.
            self._thread.join()
        self._drop()

    def _drop(self) -> None:
        if self._refused is None:
            with suppress(ImageFSError):
                self._lease.drop()
