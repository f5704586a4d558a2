"""Which programs are starting on which images, as far as is known: a profile that is followed is narrowed to their starts.

At a mount nobody knows what will run there, so what all programs of the image touched is followed. Who reads first is known a moment later.
A mount is *expected* until then, and *settled* when its program will not change any more (``exec``). Pure. Belongs to the trio thread. What
does not live here: who finds it out (``recording``), and what becomes of it (``prefetching``).
"""

from collections.abc import Collection, Iterable
from typing import NamedTuple

from imagefs.format.profile import Key


class Running(NamedTuple):
    """A mount's program; None while it is not known. ``settled``: it is the one that stays."""

    key: Key | None
    settled: bool


class Programs:
    """By image, by mountpoint."""

    __slots__ = ("_of",)

    def __init__(self) -> None:
        """None is starting."""
        self._of: dict[str, dict[str, Running]] = {}

    def expect(self, manifest: str, mountpoint: str) -> None:
        """Note that something is about to start."""
        self._of.setdefault(manifest, {})[mountpoint] = Running(None, settled=False)

    def found(self, manifest: str, mountpoint: str, key: Key, *, settled: bool) -> bool:
        """Note what it is; return whether that is news. One that is not expected is nothing."""
        mounts = self._of.get(manifest, {})
        now = Running(key, settled)
        if mountpoint not in mounts or mounts[mountpoint] == now:
            return False
        mounts[mountpoint] = now
        return True

    def gone(self, manifest: str, mountpoint: str) -> None:
        """Note that it is not starting any more."""
        mounts = self._of.get(manifest, {})
        mounts.pop(mountpoint, None)
        if not mounts:
            self._of.pop(manifest, None)

    def of(self, manifest: str) -> list[Running]:
        """Return what is starting on an image."""
        return list(self._of.get(manifest, {}).values())


class Choice(NamedTuple):
    """Which of the keys that an image's profiles have are of the programs that run: none, if that cannot be said of all of these.

    ``stranger``: it can be said, and there are none.
    """

    keys: frozenset[Key]
    stranger: bool


_NO_CHOICE = Choice(frozenset(), stranger=False)


def choose(keys: Collection[Key], running: Iterable[Running]) -> Choice:
    """Choose among keys. A label that somebody gave says more than the arguments: of starts that have it, none is a stranger's."""
    chosen: set[Key] = set()
    programs = list(running)
    for key, settled in programs:
        found = closest(keys, key) if key is not None else frozenset()
        if not found and (key is None or not settled or key.label):
            return _NO_CHOICE
        chosen |= found
    return Choice(frozenset(chosen), stranger=bool(programs and keys and not chosen))


def closest(keys: Collection[Key], wanted: Key) -> frozenset[Key]:
    """Return the keys of the same program: with the same label and GPU if there are such, else with that label, else with any."""
    same = [key for key in keys if key.entry == wanted.entry and wanted.entry and (not wanted.label or key.label == wanted.label)]
    for likes in (lambda key: key == wanted, lambda key: key.label == wanted.label, lambda _: True):
        if found := frozenset(filter(likes, same)):
            return found
    return frozenset()
