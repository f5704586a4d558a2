"""Profiles: what a start touches first, by content, and how those of many starts become one. Specified in ``docs/format/profile.md``.

Invariants:

- there is one way to write a profile, and anything else is refused, so that equal profiles have equal digests; all counts are bounded by
  the size of what was given before anything is made of them;
- entries are by object, not by path: an image inherits what it shares with another;
- a merge is a function of the *set* of its samples, in integers: no order, no clock of a host and no machine changes it. It is bounded
  whatever the number of samples, which may come one at a time and need not be kept: only the newest ``MAX_STARTS`` starts count.

What does not live here: columns and sums (``imagefs.format.accesses``, ``accesses_sums``), and where profiles are kept
(``imagefs.store.profiles``, ``imagefs.cache.profile_files``).
"""

import math
import struct
import sys
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from imagefs.digest import DIGEST_SIZE, Buffer, digest_of, from_hex, is_hex_digest
from imagefs.errors import IntegrityError, LimitError, UnsupportedError
from imagefs.format.accesses import EVERY_START, GRAIN, MAX_ACCESSES, NO_ACCESSES, Access, Accesses
from imagefs.format.accesses_sums import MIN_SHARE, Touch, covered, first_touches, weighted

__all__ = [
    "EVERY_START",
    "GRAIN",
    "MAX_ACCESSES",
    "MIN_SHARE",
    "NO_ACCESSES",
    "Access",
    "Accesses",
    "Key",
    "Profile",
    "Sample",
    "Touch",
    "covered",
    "decode",
    "encode",
    "merge",
    "merge_encoded",
    "recorded",
    "select",
]

PROFILE_MAGIC: Final = b"IMFSPROF"
PROFILE_VERSION: Final = 1

MAX_STARTS: Final = 64
"""Starts that a merge is made of, at most: the newest."""

MAX_MERGED: Final = 1 << 20
"""Accesses that a merge looks at, at most: so many of the newest, where single starts have very many."""

MAX_ENTRY: Final = 512
MAX_LABEL: Final = 128
"""Bytes of the parts of a key, at most; a GPU's model likewise."""

_HEADER: Final = struct.Struct("<8sII32sIIIHHHHII")
MAX_PROFILE: Final = _HEADER.size + MAX_ENTRY + 2 * MAX_LABEL + MAX_ACCESSES * (DIGEST_SIZE + 18) + DIGEST_SIZE
"""Bytes of a profile, at most."""

# 2^31 / 2^(n / 16), rounded: what a start weighs that n newer ones follow. As numbers, because machines round powers in different ways.
_WEIGHTS: Final = (
    2147483648, 2056437387, 1969251188, 1885761398, 1805811301, 1729250827, 1655936265, 1585730000,
    1518500250, 1454120821, 1392470869, 1333434672, 1276901417, 1222764986, 1170923762, 1121280436,
)  # fmt: skip
_HALVED: Final = len(_WEIGHTS)


class Key(NamedTuple):
    """Whose starts these are: the arguments of the process that read first, joined by spaces; a label that somebody gave; the GPU's model.

    Each is ``""`` where there is none. All are printable, and at most ``MAX_ENTRY``, ``MAX_LABEL`` and ``MAX_LABEL`` bytes as UTF-8.
    """

    entry: str = ""
    label: str = ""
    gpu: str = ""

    @classmethod
    def of(cls, argv: Sequence[str] = (), label: str = "", gpu: str = "") -> "Key":
        """Make a key of anything: cut, lines as one, and with U+FFFD for what cannot be printed."""
        # What is cut may end between two words.
        entry = _clean(" ".join(" ".join(argv).split()), MAX_ENTRY).rstrip()
        return cls(entry, _clean(label, MAX_LABEL), _clean(gpu, MAX_LABEL))

    def matches(self, wanted: "Key") -> bool:
        """Say whether starts of this key are wanted: of exactly that label, and of that entry and GPU where those are given."""
        return self.label == wanted.label and wanted.entry in {"", self.entry} and wanted.gpu in {"", self.gpu}


@dataclass(frozen=True, slots=True)
class Profile:
    """What starts of one image touched first.

    ``manifest`` is the image's hex digest; ``starts`` is how many starts it speaks of, 1 to ``MAX_STARTS``. ``accesses`` may be given in
    any order, and are :class:`Accesses` afterwards, in the order of need. ``ValueError`` for what cannot be, ``LimitError`` for too much.
    """

    manifest: str
    key: Key
    starts: int
    accesses: Sequence[Access]

    def __post_init__(self) -> None:
        """Check, and take the accesses as columns."""
        if not is_hex_digest(self.manifest) or not 1 <= self.starts <= MAX_STARTS:
            raise ValueError(f"not a profile: of {self.manifest[:80]!r}, {self.starts} starts")
        for text, most in zip(self.key, (MAX_ENTRY, MAX_LABEL, MAX_LABEL), strict=True):
            if text != _clean(text, most):
                raise ValueError(f"not a part of a profile's key: {text[:80]!r}")
        object.__setattr__(self, "accesses", Accesses.of(self.accesses))

    @property
    def columns(self) -> Accesses:
        """The accesses, as what they are."""
        assert isinstance(self.accesses, Accesses)
        return self.accesses


class Sample(NamedTuple):
    """A profile, and when it was recorded: seconds, by the store's clock, so that those of hosts do not matter."""

    profile: Profile
    recorded: float


def recorded(manifest: str, key: Key, touches: Iterable[Touch]) -> Profile:
    """Return the profile of one start that was seen to touch this. Overlaps, odd ends and the like are put right."""
    return Profile(manifest, key, 1, first_touches(touches))


def _clean(text: str, most: int) -> str:
    """Return ``text`` without control characters and half surrogates, and with at most ``most`` bytes as UTF-8."""
    if len(text) <= most and text.isascii() and text.isprintable():
        return text
    whole = "".join("\ufffd" if _is_unfit(character) else character for character in text[:most])
    return whole.encode()[:most].decode(errors="ignore")


def _is_unfit(character: str) -> bool:
    return character < " " or "\x7f" <= character <= "\x9f" or "\ud800" <= character <= "\udfff"


# -- bytes --------------------------------------------------------------------------------------------------------------------------------


def encode(profile: Profile) -> bytes:
    """Return the one spelling of ``profile``."""
    texts = [text.encode() for text in profile.key]
    held = profile.columns
    parts = [held.table, *(_bytes_of(column) for column in (held.counts, held.starts, held.lengths, held.ats, held.shares))]
    size = _HEADER.size + sum(map(len, texts)) + sum(map(len, parts)) + DIGEST_SIZE
    lengths = (len(text) for text in texts)
    counts = profile.starts, held.object_count, len(held)
    header = _HEADER.pack(PROFILE_MAGIC, PROFILE_VERSION, 0, from_hex(profile.manifest), *counts, *lengths, 0, size, 0)
    data = b"".join((header, *texts, *parts))
    return data + digest_of(data)


def decode(data: Buffer) -> Profile:
    """Read a profile.

    ``LimitError`` past ``MAX_PROFILE``, ``UnsupportedError`` for another version or a flag, ``IntegrityError`` for anything that is not a
    profile in its one spelling.
    """
    head = _head(data)
    view = memoryview(data)
    if digest_of(view[:-DIGEST_SIZE]) != view[-DIGEST_SIZE:]:
        raise IntegrityError("profile: its bytes do not have the digest at their end")
    cut = _Cutter(view, _HEADER.size)
    try:
        key = Key(*(str(cut.take(length), "utf-8") for length in head.texts))
        columns = Accesses(
            bytes(cut.take(head.objects * DIGEST_SIZE)),
            counts=cut.column("I", head.objects),
            starts=cut.column("I", head.accesses),
            lengths=cut.column("I", head.accesses),
            ats=cut.column("I", head.accesses),
            shares=cut.column("H", head.accesses),
        )
        return Profile(head.manifest.hex(), key, head.starts, columns)
    except ValueError as error:
        raise IntegrityError(f"profile: {error}") from None


class _Head(NamedTuple):
    """What a header says: ``texts`` has the bytes of the key's parts."""

    manifest: bytes
    starts: int
    objects: int
    accesses: int
    texts: tuple[int, int, int]


def _head(data: Buffer) -> _Head:
    """Read a header, and check that what it speaks of fills the profile. Errors as of :func:`decode`."""
    if len(data) > MAX_PROFILE:
        raise LimitError(f"a profile of {len(data)} bytes: at most {MAX_PROFILE} are allowed")
    if len(data) < _HEADER.size + DIGEST_SIZE:
        raise IntegrityError("profile: shorter than its header")
    magic, version, flags, manifest, starts, objects, accesses, entry, label, gpu, unused, size, reserved = _HEADER.unpack_from(data, 0)
    if magic != PROFILE_MAGIC:
        raise IntegrityError("not a profile")
    if version != PROFILE_VERSION or flags or unused or reserved:
        raise UnsupportedError(f"profile version {version}, flags {flags:#x}: not known", hint="a newer version of ImageFS wrote it")
    texts = (entry, label, gpu)
    expected = _HEADER.size + sum(texts) + objects * (DIGEST_SIZE + 4) + accesses * 14 + DIGEST_SIZE
    if size != len(data) or size != expected or accesses > MAX_ACCESSES or not 1 <= starts <= MAX_STARTS:
        raise IntegrityError(f"profile: {accesses} accesses of {objects} objects in {starts} starts do not fill its {len(data)} bytes")
    return _Head(manifest, starts, objects, accesses, texts)


class _Cutter:
    """Takes one thing after the other from bytes whose size was checked."""

    __slots__ = ("_at", "_view")

    def __init__(self, view: memoryview, at: int) -> None:
        self._view = view
        self._at = at

    def take(self, size: int) -> memoryview:
        self._at += size
        return self._view[self._at - size : self._at]

    def column(self, code: str, count: int) -> "array[int]":
        column = array(code)
        column.frombytes(self.take(count * column.itemsize))
        if sys.byteorder == "big":
            column.byteswap()
        return column


def _bytes_of(column: "array[int]") -> bytes:
    if sys.byteorder == "big":
        column = column[:]
        column.byteswap()
    return column.tobytes()


# -- merging ------------------------------------------------------------------------------------------------------------------------------


class _Ranked(NamedTuple):
    """A sample where it belongs: the newest first, and those of one moment by their digests, so that no order of coming matters."""

    age: float
    digest: bytes
    starts: int
    accesses: int
    what: Profile | Buffer


def merge(samples: Iterable[Sample]) -> Profile:
    """Return what the newest starts of ``samples`` touch, in one profile. ``ValueError`` for no samples.

    A start weighs half of the one that came 16 starts later. An access has the share of the starts that touch it, and the average of when
    they do; less than ``MIN_SHARE`` is forgotten. The manifest is that of the newest sample, the key has what the keys of all have in
    common. A sample may be a merge itself: it counts as so many starts, all of its moment.
    """
    return _merged(_ranked(profile, encode(profile)[-DIGEST_SIZE:], when) for profile, when in samples)


def merge_encoded(samples: Iterable[tuple[Buffer, float]]) -> Profile:
    """Return what :func:`merge` makes of profiles as :func:`encode` writes them, each with when it was recorded.

    Only those that count are read beyond their headers: so many hosts cost little more than few. Errors as of :func:`decode`.
    """
    return _merged(_ranked(data, bytes(memoryview(data)[-DIGEST_SIZE:]), when) for data, when in samples)


def _ranked(what: Profile | Buffer, digest: bytes, when: float) -> _Ranked:
    if isinstance(what, Profile):
        starts, accesses = what.starts, len(what.accesses)
    else:
        head = _head(what)
        starts, accesses = head.starts, head.accesses
    # What is no number, as a forged time may be, is older than all.
    return _Ranked(math.inf if math.isnan(when) else -when, digest, starts, accesses, what)


def _merged(samples: Iterable[_Ranked]) -> Profile:
    newest: list[_Ranked] = []
    for sample in samples:
        newest.append(sample)
        if len(newest) >= 2 * MAX_STARTS:
            newest = _counting(newest)
    profiles = [one.what if isinstance(one.what, Profile) else decode(one.what) for one in _counting(newest)]
    if not profiles:
        raise ValueError("a merge of nothing")
    parts: list[tuple[int, Accesses]] = []
    rank = 0
    for profile in profiles:
        count = min(profile.starts, MAX_STARTS - rank)
        weight = sum(_WEIGHTS[number % _HALVED] >> (number // _HALVED) for number in range(rank, rank + count))
        parts.append((weight, profile.columns))
        rank += count
    return Profile(profiles[0].manifest, _common([profile.key for profile in profiles]), rank, weighted(parts))


def _counting(ranked: list[_Ranked]) -> list[_Ranked]:
    """Return those that count, the newest first: until there are ``MAX_STARTS`` starts, or ``MAX_MERGED`` accesses."""
    ranked.sort(key=lambda one: (one.age, one.digest))
    starts = accesses = 0
    for number, one in enumerate(ranked):
        accesses += one.accesses
        if starts >= MAX_STARTS or (number and accesses > MAX_MERGED):
            return ranked[:number]
        starts += one.starts
    return ranked


def _common(keys: list[Key]) -> Key:
    first = keys[0]
    return Key(*(part if all(key[index] == part for key in keys) else "" for index, part in enumerate(first)))


def select(samples: Iterable[Sample], key: Key | None) -> Profile | None:
    """Return one profile of those that match ``key``, of all for None; None if there are none.

    Each key's samples are merged first. Where several keys are left, each counts for its part of ``MAX_STARTS`` at most: a program that is
    started all day does not make the other one of its image forgotten.
    """
    keyed: dict[Key, list[Sample]] = {}
    for sample in samples:
        if key is None or sample.profile.key.matches(key):
            keyed.setdefault(sample.profile.key, []).append(sample)
    if not keyed:
        return None
    merged = [Sample(merge(group), max(sample.recorded for sample in group)) for group in keyed.values()]
    if len(merged) == 1:
        return merged[0].profile
    most = max(MAX_STARTS // len(merged), 1)
    return merge(Sample(replace(profile, starts=min(profile.starts, most)), when) for profile, when in merged)
