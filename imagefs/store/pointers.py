"""Pointers: the JSON documents by which a store knows the profiles of an image. Specified in ``docs/format/profile.md``.

Invariants: what is read is checked before it is believed (size, fields, id against digest), and a blob is compared with its pointer, so a
pointer or a blob that somebody damaged or forged is an error of ours and nothing else. Reading is bounded: in keys that are listed, in
bytes, and in threads.

A :class:`Shelf` is one look at the profiles of one image; it belongs to who made it. What does not live here: which profiles are wanted,
what is made of them, and what is deleted (``imagefs.store.profiles``).
"""

import re
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Final, NamedTuple, Protocol, TypeVar

import msgspec

from imagefs.digest import digest_of, is_hex_digest
from imagefs.errors import ImageFSError, IntegrityError, LimitError, NotFoundError, UnsupportedError, UsageError
from imagefs.format.manifest import BlobName
from imagefs.format.profile import MAX_PROFILE, MAX_STARTS, Key, Profile, decode
from imagefs.store.base import BlobSource, KeyInfo, profile_key
from imagefs.store.images import get_blob

POINTER_FORMAT: Final = 1
MERGED: Final = "merged-"
"""What the id of a merge begins with."""

MAX_LISTED: Final = 8192
"""Keys of an image that are looked at, at most: there are about 520, unless somebody fills the store."""

_POINTER_MAX: Final = 16 * 1024
_ID_DIGITS: Final = 32
_ID: Final = re.compile(rf"(?:{MERGED})?[0-9a-f]{{{_ID_DIGITS}}}")
_THREADS: Final = 8
_PASSED_OVER: Final = (IntegrityError, LimitError, NotFoundError, UnsupportedError, UsageError)

_Given = TypeVar("_Given")
_Result = TypeVar("_Result")


class ProfileSource(BlobSource, Protocol):
    """What reading profiles takes of an :class:`~imagefs.store.base.ObjectStore`."""

    def list(self, prefix: str) -> Iterator[KeyInfo]:
        """See :class:`~imagefs.store.base.ObjectStore`."""


class _KeyFields(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    entry: str
    label: str
    gpu: str


class _Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    profile: BlobName
    key: _KeyFields
    starts: int
    inputs: list[str] = []
    format: int = POINTER_FORMAT


class _Head(msgspec.Struct):
    format: int


class Pointer(NamedTuple):
    """A profile in a store: its blob, and what it says of it. ``inputs``: the ids of the recordings that a merge is made of."""

    id: str
    digest: str
    size: int
    key: Key
    starts: int
    inputs: frozenset[str] = frozenset()

    @property
    def is_merge(self) -> bool:
        """Whether it was made of recordings."""
        return self.id.startswith(MERGED)


@dataclass(frozen=True, slots=True)
class PointerInfo:
    """A pointer as a list shows it: ``recorded`` is when the store got it; ``pointer`` is None where ``problem`` says why."""

    id: str
    recorded: float
    pointer: Pointer | None
    problem: str = ""


def pointer_to(profile: Profile, digest: str, size: int, inputs: Collection[str] = ()) -> Pointer:
    """Return the pointer to a blob that holds ``profile``: of a merge, if there are ``inputs``.

    Starts that are as the ones before merge to the same blob: so a merge has its name from its pointer, which names them.
    """
    pointer = Pointer(digest[:_ID_DIGITS], digest, size, profile.key, profile.starts, frozenset(inputs))
    return pointer._replace(id=_merge_id(encode_pointer(pointer))) if inputs else pointer


def _merge_id(document: bytes) -> str:
    return f"{MERGED}{digest_of(document).hex()[:_ID_DIGITS]}"


def encode_pointer(pointer: Pointer) -> bytes:
    """Return a pointer's document."""
    document = _Document(BlobName(pointer.digest, pointer.size), _KeyFields(*pointer.key), pointer.starts, inputs=sorted(pointer.inputs))
    return msgspec.json.encode(document, order="sorted") + b"\n"


def decode_pointer(name: str, data: bytes) -> Pointer:
    """Read the document of the pointer ``name``. ``UnsupportedError`` for another format, ``IntegrityError`` for what is none."""
    try:
        if (found := msgspec.json.decode(data, type=_Head).format) != POINTER_FORMAT:
            raise UnsupportedError(f"profile {name} has a pointer of format {found}: this version reads {POINTER_FORMAT}")
        document = msgspec.json.decode(data, type=_Document)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise IntegrityError(f"the pointer to profile {name} is damaged: {error}") from None
    inputs = frozenset(document.inputs)
    pointer = Pointer(
        name, document.profile.digest, document.profile.size, Key(*msgspec.structs.astuple(document.key)), document.starts, inputs
    )
    is_sound = (
        name == (_merge_id(data) if inputs else pointer.digest[:_ID_DIGITS])
        and pointer.size <= MAX_PROFILE
        and 1 <= pointer.starts <= MAX_STARTS
        and len(inputs) == len(document.inputs) <= MAX_STARTS
        and all(_ID.fullmatch(one) and not one.startswith(MERGED) for one in inputs)
    )
    if not is_sound:
        raise IntegrityError(f"the pointer to profile {name} does not hold together")
    return pointer


def in_threads(function: Callable[[_Given], _Result], given: Collection[_Given]) -> list[_Result]:
    """Do something that waits for the store for each one, several at once; return what comes of it in the same order."""
    if len(given) < 2:
        return [function(one) for one in given]
    with ThreadPoolExecutor(min(_THREADS, len(given)), thread_name_prefix="profiles") as pool:
        return list(pool.map(function, given))


class Shelf:
    """The profiles of one image, as the store listed them once. What cannot be used is told to ``ignored`` with its id, and passed over.

    Errors that are the store's, and no single profile's, are raised: ``StoreError``, ``DeadlineError``, ``AccessError``. ``has_moved`` says
    that something which was listed is gone: somebody publishes meanwhile, and another look may see more.
    """

    def __init__(self, source: ProfileSource, manifest: str, ignored: Callable[[str, ImageFSError], None]) -> None:
        """List what there is."""
        if not is_hex_digest(manifest):
            raise UsageError(f"not a manifest's digest: {manifest[:80]!r}")
        self._source = source
        self._manifest = manifest
        self._ignored = ignored
        self.has_moved = False
        prefix = profile_key(manifest, "")
        listed = list(islice(source.list(prefix), MAX_LISTED + 1))
        if len(listed) > MAX_LISTED:
            ignored("", LimitError(f"the image has more than {MAX_LISTED} profiles: the others are not looked at"))
        self._pointers: dict[str, Pointer | ImageFSError] = {}
        self.infos: dict[str, KeyInfo] = {}
        """By id."""
        for info in listed[:MAX_LISTED]:
            name = info.key.removeprefix(prefix)
            if _ID.fullmatch(name):
                self.infos[name] = info

    def recordings(self) -> list[str]:
        """Return the ids of the recordings, the newest first."""
        return self._newest(name for name in self.infos if not name.startswith(MERGED))

    def merges(self) -> list[str]:
        """Return the ids of the merges, the newest first."""
        return self._newest(name for name in self.infos if name.startswith(MERGED))

    def _newest(self, names: Iterator[str]) -> list[str]:
        return sorted(names, key=lambda name: (-self.infos[name].mtime, name))

    def pointers(self, names: Collection[str]) -> list[Pointer]:
        """Read pointers that were not read yet; return those that are sound, in the order of ``names``."""
        missing = [name for name in dict.fromkeys(names) if name in self.infos and name not in self._pointers]
        for name, found in zip(missing, in_threads(self._pointer, missing), strict=True):
            self._pointers[name] = found
            if isinstance(found, ImageFSError):
                self.tell(name, found)
        return [known for name in names if isinstance(known := self._pointers.get(name), Pointer)]

    def tell(self, name: str, error: ImageFSError) -> None:
        """Say that something is passed over, and why."""
        self.has_moved |= isinstance(error, NotFoundError)
        self._ignored(name, error)

    def leads_elsewhere(self, leaving: Collection[str]) -> set[str]:
        """Return the digests that pointers lead to, as far as they were read, those in ``leaving`` apart."""
        return {known.digest for name, known in self._pointers.items() if isinstance(known, Pointer) and name not in leaving}

    def problem(self, name: str) -> str:
        """Return what is wrong with a pointer that was read, ``""`` for nothing."""
        found = self._pointers.get(name)
        return found.message if isinstance(found, ImageFSError) else ""

    def _pointer(self, name: str) -> Pointer | ImageFSError:
        try:
            if self.infos[name].size > _POINTER_MAX:
                return IntegrityError(f"the pointer to profile {name} is longer than {_POINTER_MAX} bytes")
            return decode_pointer(name, bytes(self._source.get(profile_key(self._manifest, name))))
        except _PASSED_OVER as error:
            return error

    def profiles(self, pointers: Collection[Pointer]) -> dict[str, Profile]:
        """Read the profiles that pointers lead to; return those that are sound, by id."""
        found: dict[str, Profile] = {}
        for pointer, profile in zip(pointers, in_threads(self._profile, pointers), strict=True):
            if isinstance(profile, ImageFSError):
                self.tell(pointer.id, profile)
            else:
                found[pointer.id] = profile
        return found

    def _profile(self, pointer: Pointer) -> Profile | ImageFSError:
        try:
            profile = decode(get_blob(self._source, pointer.digest, pointer.size))
        except _PASSED_OVER as error:
            return error
        if (profile.manifest, profile.key, profile.starts) != (self._manifest, pointer.key, pointer.starts):
            return IntegrityError(f"profile {pointer.id} is not what its pointer says")
        return profile
