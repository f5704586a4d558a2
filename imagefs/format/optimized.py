"""What the manifest of an optimized image says of how it came to be: four annotations. ``docs/format/manifest.md`` specifies them.

An optimized image has the tree of the image that it was made from, and an object map of its own. Its annotations name that image, its
*origin*, and the profile; so who optimizes it again begins with the origin's map, and who explains a start can compare it with what was
expected.

Invariants: annotations are a pure function of what they say; those that are not ours, or are not whole, make an image that is not
optimized, never an error: a source's annotations are anybody's. Therefore nothing here is proof: that the origin is there and has the same
tree is for those to check who rely on it (:func:`imagefs.store.origins.origin_of`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

import msgspec

from imagefs.digest import is_hex_digest

LAYOUT: Final = 1
"""Which rules put frames into packs: counted up when they change, so that the same profile gives another image then."""

PREFIX: Final = "imagefs.optimized."
FROM: Final = PREFIX + "from"
PROFILE: Final = PREFIX + "profile"
RULES: Final = PREFIX + "layout"
EXPECTED: Final = PREFIX + "expected"

_TEXT_MAX: Final = 1024


class Start(NamedTuple):
    """What a start fetches that touches what the profile says: ``gets`` ranged GETs, ``stored`` bytes in them."""

    gets: int
    stored: int


class _Expected(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    gets_before: int
    gets_after: int
    bytes_before: int
    bytes_after: int


@dataclass(frozen=True, slots=True)
class Optimized:
    """``origin`` is the manifest that it was made from, ``profile`` the digest of the encoded profile, both in hex; ``layout`` the rules.

    ``before`` and ``after`` are a start from the origin and from the optimized image.
    """

    origin: str
    profile: str
    layout: int
    before: Start
    after: Start


def read(annotations: Mapping[str, str]) -> Optimized | None:
    """Return what a manifest's annotations say; None if that image is not optimized."""
    origin, profile, rules = (annotations.get(name, "") for name in (FROM, PROFILE, RULES))
    expected = annotations.get(EXPECTED, "")
    # isdecimal takes the digits of other scripts too.
    if not (is_hex_digest(origin) and is_hex_digest(profile) and rules.isascii() and rules.isdecimal() and len(rules) < 10):
        return None
    try:
        found = msgspec.json.decode(expected.encode() if len(expected) <= _TEXT_MAX else b"", type=_Expected)
    except (msgspec.MsgspecError, UnicodeEncodeError):
        return None
    return Optimized(origin, profile, int(rules), Start(found.gets_before, found.bytes_before), Start(found.gets_after, found.bytes_after))


def annotated(annotations: Mapping[str, str], optimized: Optimized) -> dict[str, str]:
    """Return the origin's ``annotations`` with those that say ``optimized``."""
    before, after = optimized.before, optimized.after
    expected = msgspec.json.encode(_Expected(before.gets, after.gets, before.stored, after.stored), order="sorted").decode()
    own = {FROM: optimized.origin, PROFILE: optimized.profile, RULES: str(optimized.layout), EXPECTED: expected}
    return {name: text for name, text in annotations.items() if not name.startswith(PREFIX)} | own
