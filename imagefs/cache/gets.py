"""GETs of packs as they are noted while a Start runs: when each was queued, sent, there and decoded, and why it was made.

A :class:`Get` is filled in where these things happen: the queue (``gate``), the link, and what decodes (``store_reads``). What does not
live here: which of them belong to which Start (``starts``).
"""

import time
from enum import IntEnum
from typing import Final

NEVER: Final = -1.0
"""A time that has not come."""


class Kind(IntEnum):
    """Why a GET is made: a reader waits, the profile says so, it lies beside what a reader waits for, or a reader reads in order."""

    DEMAND = 0
    PROFILE = 1
    ALONG = 2
    AHEAD = 3


class Get:
    """One GET. Times are in seconds of ``time.monotonic``, ``NEVER`` as long as they have not come; CPU times in nanoseconds.

    ``start`` and ``end`` (exclusive) are bytes of the pack, ``content`` the bytes of content in it. ``promoted``: when a reader came to
    wait for what had been prefetch. ``attempts``: how often it was sent.
    """

    __slots__ = (
        "arrived", "attempts", "content", "decode_ns", "decoded", "end", "first", "kind", "pack", "promoted", "queued", "sent", "start",
        "verify_ns",
    )  # fmt: skip

    def __init__(self, pack: str, start: int, end: int, content: int, kind: Kind) -> None:
        """``pack`` is the pack's hex digest. It is queued now."""
        self.pack = pack
        self.start = start
        self.end = end
        self.content = content
        self.kind = kind
        self.queued = time.monotonic()
        self.sent = self.first = self.arrived = self.decoded = self.promoted = NEVER
        self.decode_ns = self.verify_ns = 0
        self.attempts = 0

    def is_sent(self) -> None:
        """Note that it is sent, or sent once more."""
        self.attempts += 1
        if self.sent == NEVER:
            self.sent = time.monotonic()

    def has_begun(self, moment: float | None) -> None:
        """Note when the first byte was there of the attempt that brought all of it, if that is known."""
        if moment is not None and self.first == NEVER:
            self.first = moment

    def has_arrived(self) -> None:
        """Note that all its bytes are there."""
        self.arrived = time.monotonic()
        if self.first == NEVER:
            self.first = self.arrived

    def is_decoded(self) -> None:
        """Note that all of it is decoded and shown."""
        self.decoded = time.monotonic()

    def took(self, decode_ns: int, verify_ns: int) -> None:
        """Add the CPU time of a thread that decoded some of it."""
        self.decode_ns += decode_ns
        self.verify_ns += verify_ns

    def is_promoted(self) -> None:
        """Note that a reader waits for it from now on."""
        if self.promoted == NEVER:
            self.promoted = time.monotonic()
