"""Which files of the SSD tier go when room is needed: a clock hand over the index, with second chances.

The hand goes through the names in their order, which is random in every other respect, as they are digests. What was used since the
hand was here before is passed over once; what a mounted image has goes after what none has; what is pinned stays. So nearly the least
recently used go first, at a cost that does not depend on how much there is.

Reads the index and nothing else; safe in a thread.
"""

from collections.abc import Callable
from typing import Final, Protocol

from imagefs.cache.disk_index import DiskIndex, Row

_STEP: Final = 256
_NONE: Final = bytes(32)


class Protection(Protocol):
    """Which files are worth more than others. Called in a thread."""

    def pinned(self, name: bytes) -> bool:
        """Say whether a pinned image has this object."""

    def mounted(self, name: bytes) -> bool:
        """Say whether a mounted image has this object."""


class Evictor:
    """Chooses. ``choose`` is called by one at a time."""

    def __init__(self, index: DiskIndex, protection: Protection) -> None:
        """Start without knowing when the hand was where."""
        self._index = index
        self._protection = protection
        # When the present round of the hand began: what was used since gets its second chance.
        self._round_at: int | None = None

    def choose(
        self, need: int, now: int, hand: bytes, wanted: Callable[[bytes], bool] | None = None, pinned: bool = False
    ) -> tuple[list[bytes], bytes]:
        """Return names of files of together at least ``need`` bytes, fewer if no more may go, and where the hand is then.

        ``wanted`` restricts the choice; ``pinned``: what is pinned may go too.
        """
        chosen: dict[bytes, int] = {}
        freed = 0
        cutoff = now - 60 if self._round_at is None else self._round_at
        for level in range(3):
            start, position, wrapped = hand, hand, False
            while freed < need:
                rows = self._index.after(position, _STEP)
                if not rows:
                    if wrapped:
                        break
                    wrapped, position = True, _NONE
                    self._round_at = now
                    continue
                for name, row in rows:
                    position = name
                    if wrapped and name > start:
                        break
                    if name in chosen or (wanted is not None and not wanted(name)):
                        continue
                    if not self._may_go(level, name, row, cutoff, pinned=pinned):
                        continue
                    chosen[name] = row.held
                    freed += row.held
                    if freed >= need:
                        break
                if wrapped and position > start:
                    break
            hand = position
            if freed >= need:
                break
        return list(chosen), hand

    def _may_go(self, level: int, name: bytes, row: Row, cutoff: int, *, pinned: bool) -> bool:
        """Say whether a file may go: on level 0 the old of no mounted image, on 1 the old, on 2 all but the pinned."""
        if level < 2 and row.used_at >= cutoff:
            return False
        if not pinned and self._protection.pinned(name):
            return False
        return level > 0 or not self._protection.mounted(name)
