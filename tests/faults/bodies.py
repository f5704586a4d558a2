"""What faults make of an answer's body: where it stops, and which of its bytes are wrong.

Guarantees: a change of bytes keeps their number, works in place, and says truthfully whether any byte is another one now. No I/O.
"""

from dataclasses import dataclass, field
from typing import Protocol

from tests.faults.heads import Body
from tests.faults.script import Hit


class Change(Protocol):
    """Makes bytes of one body wrong; sees them all, in order."""

    def apply(self, piece: memoryview, offset: int) -> bool:
        """Change ``piece``, which begins ``offset`` bytes into the body; say whether any byte differs now."""


@dataclass(slots=True)
class Flip:
    """Turns one bit over: ``masks`` by offset."""

    masks: dict[int, int]

    def apply(self, piece: memoryview, offset: int) -> bool:
        here = [at for at in self.masks if offset <= at < offset + len(piece)]
        for at in here:
            piece[at - offset] ^= self.masks[at]
        return bool(here)


@dataclass(slots=True)
class Zero:
    """Blanks the bytes from ``start`` to ``end`` (exclusive)."""

    start: int
    end: int

    def apply(self, piece: memoryview, offset: int) -> bool:
        part = piece[max(self.start - offset, 0) : max(self.end - offset, 0)]
        differs = any(part)
        part[:] = bytes(len(part))
        return differs


@dataclass(slots=True)
class Duplicate:
    """Repeats the bytes from ``start`` to ``end`` (exclusive); what follows comes later, and the last of it never."""

    start: int
    end: int
    _held: bytes = field(default=b"")

    def apply(self, piece: memoryview, offset: int) -> bool:
        split = min(max(self.end - offset, 0), len(piece))
        self._held += piece[max(self.start - offset, 0) : split]
        after = piece[split:]
        if not after:
            return False
        moved = self._held + bytes(after)
        differs = after != moved[: len(after)]
        after[:] = moved[: len(after)]
        self._held = moved[len(after) :]
        return differs


@dataclass(slots=True)
class Padded:
    """A range of a body, with zeros where the rest of it belongs: ``before`` and ``after`` so many."""

    inner: Body
    before: int
    after: int
    left: int = 0

    def __post_init__(self) -> None:
        assert self.inner.left is not None
        self.left = self.before + self.inner.left + self.after

    def read(self, view: memoryview) -> int:
        inner = self.inner.left or 0
        if self.left <= self.after or self.left > self.after + inner:
            rest = self.left if self.left <= self.after else self.left - self.after - inner
            count = min(len(view), rest)
            view[:count] = bytes(count)
        else:
            count = self.inner.read(view)
        self.left -= count
        return count


@dataclass(slots=True)
class Plan:
    """What happens to one body: ``size`` is what is declared and carried (None: unknown), ``stops`` what happens at which offset."""

    size: int | None
    stops: list[tuple[int, Hit]] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    shift: int = 0

    @classmethod
    def of(cls, hits: list[Hit], size: int | None) -> "Plan":
        """Lay out what ``hits`` do to a body of ``size`` bytes (None: unknown)."""
        plan = cls(size)
        for hit in hits:
            fault = hit.fault
            middle = (size or 0) // 2 if fault.at is None else fault.at
            match fault.kind:
                case "reset" | "close" | "stall":
                    plan.stops.append((middle, hit))
                case "cut":
                    plan.size = min(middle, plan.size or 0)
                case "content-range":
                    plan.shift += fault.shift
                case "duplicate":
                    plan.changes.append(Duplicate(middle, middle + fault.length))
                case "flip" if size:
                    plan.changes.append(_flip(hit, size))
                case "zero" if size:
                    plan.changes.append(_zero(hit, size))
                case _:
                    raise AssertionError(f"{fault.kind} is no fault of a body, or not of this one")
        plan.stops.sort(key=lambda stop: stop[0])
        return plan

    def change(self, piece: memoryview, offset: int) -> bool:
        """Make every change to ``piece``; say whether any made a difference."""
        return sum(change.apply(piece, offset) for change in self.changes) > 0


def _flip(hit: Hit, size: int) -> Flip:
    fault, chance = hit.fault, hit.random
    count = min(fault.bits, size)
    places = chance.sample(range(size), count) if fault.at is None else range(fault.at, min(fault.at + count, size))
    return Flip({at: 1 << chance.randrange(8) for at in places})


def _zero(hit: Hit, size: int) -> Zero:
    at = hit.fault.at
    start = 512 * hit.random.randrange((size + 511) // 512) if at is None else at
    return Zero(start, min(start + hit.fault.length, size))
