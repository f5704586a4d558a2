"""A Start becomes a profile: what of it is known to be touched, and what must have been although it was not seen.

Pure. What the daemon answered is known to the grain. Of a file that was opened, and of which the kernel had content, it is not: then what
the page cache has of it in the end counts; where that cannot be asked, or says all of it, what the profile of earlier starts has for it;
and where there is none, all of it, if it is small. So a profile does not forget what it once helped with. What does not live here: asking
the page cache (``residency``).
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from imagefs.cache.starts import Start
from imagefs.format.profile import Key, Profile, Touch, recorded

WHOLE_MAX: Final = 1024 * 1024
"""Bytes of a file that counts as touched as a whole if it was opened and nothing more is known."""

Ranges = Sequence[tuple[int, int]]
"""Bytes from the first (inclusive) to the second (exclusive)."""


def profile_of(start: Start, cached: Mapping[int, Ranges], previous: Profile | None) -> Profile | None:
    """Return the profile of a Start that is over; None if no object was accessed.

    ``cached``: what the page cache has of files, by their index in the Start, as far as it could be asked. ``previous`` is what earlier
    starts of the image touched.
    """
    touches = [*_seen(start), *_unseen(start, cached, previous)]
    if not touches:
        return None
    facts = start.facts
    return recorded(start.manifest, Key.of(facts.entry, facts.label, facts.gpu), touches)


def needed(start: Start) -> dict[int, tuple[bytes, int]]:
    """Return digest and size of the files of which the page cache should be asked: large ones, not all of whose accesses were seen."""
    found = {}
    for file in start.unseen:
        key, size, _ = start.files[file]
        if isinstance(key, bytes) and size > WHOLE_MAX:
            found[file] = key, size
    return found


def _seen(start: Start) -> Iterator[Touch]:
    for at, file, begin, end in start.touched:
        key = start.files[file].key
        if isinstance(key, bytes):
            yield Touch(key, begin, min(end, start.files[file].size), at // 1000)


def _unseen(start: Start, cached: Mapping[int, Ranges], previous: Profile | None) -> Iterator[Touch]:
    earlier = _by_object(previous)
    for file, opened in start.unseen.items():
        key, size, _ = start.files[file]
        if not isinstance(key, bytes) or not size:
            continue
        at = opened // 1000
        there = cached.get(file)
        is_told = there is not None and list(there) != [(0, size)]
        if not is_told and key in earlier:
            first = min(when for when, _, _ in earlier[key])
            yield from (Touch(key, begin, min(end, size), at + when - first) for when, begin, end in earlier[key])
        elif there is not None:
            yield from (Touch(key, begin, end, at) for begin, end in there)
        elif size <= WHOLE_MAX:
            yield Touch(key, 0, size, at)


def _by_object(profile: Profile | None) -> dict[bytes, list[tuple[int, int, int]]]:
    """Return when which ranges of an object are touched, by object."""
    found: dict[bytes, list[tuple[int, int, int]]] = {}
    for name, begin, end, at, _ in profile.accesses if profile is not None else ():
        found.setdefault(name, []).append((at, begin, end))
    return found
