"""Accesses: which bytes of which objects, when, and in how many starts. What a profile consists of.

Tens of thousands of them are read, kept and added up at once, so they are held as columns, and become :class:`Access` one at a time, when
somebody looks at them.

Invariants:

- objects ascend by digest, and the ranges of an object ascend and do not overlap: equal accesses are equal columns;
- ranges are whole grains, at least one, and end below 2^32 grains; there are at most ``MAX_ACCESSES`` of them;
- what is looked at from outside comes in the order of need: when, then object, then start.

Nothing changes once made: any number of threads may read. What does not live here: how columns become bytes (``imagefs.format.profile``),
and adding up (``imagefs.format.accesses_sums``).
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, chain, compress, count, islice, repeat
from operator import add, gt, lt
from typing import Final, NamedTuple, overload

from imagefs.digest import DIGEST_SIZE
from imagefs.errors import LimitError

GRAIN: Final = 65536
"""Bytes of which ranges are multiples."""

MAX_ACCESSES: Final = 65536
"""Accesses of a profile, at most."""

EVERY_START: Final = 65535
"""The ``share`` of what every start touches."""

MAX_AT: Final = (1 << 32) - 1
"""Milliseconds since a mount, at most: 49 days."""

_MAX_GRAIN: Final = (1 << 32) - 1


class Access(NamedTuple):
    """Bytes ``start`` to ``end`` (exclusive) of the object with this raw digest, both multiples of ``GRAIN``.

    ``end`` may lie beyond the object's end: who uses it cuts it off. ``at``: milliseconds after the mount. ``share``: in how many of the
    starts, of ``EVERY_START``.
    """

    object: bytes
    start: int
    end: int
    at: int
    share: int


class Accesses(Sequence[Access]):
    """Accesses in the order of need.

    The columns go by object and start: ``table`` has the objects' digests back to back, ``counts`` how many ranges each has, and then a
    number for each range: where it starts and how long it is, in grains, when, and its share.
    """

    __slots__ = ("_order", "ats", "counts", "lengths", "shares", "starts", "table")

    def __init__(
        self,
        table: bytes,
        *,
        counts: "array[int]",
        starts: "array[int]",
        lengths: "array[int]",
        ats: "array[int]",
        shares: "array[int]",
    ) -> None:
        """Take columns, which nobody changes afterwards: arrays of ``I``, shares of ``H``. ``ValueError`` if they break an invariant."""
        self.table = table
        self.counts = counts
        self.starts = starts
        self.lengths = lengths
        self.ats = ats
        self.shares = shares
        self._order: array[int] | None = None
        # Each step is one pass in C: a merge looks at ten million accesses of a thousand hosts.
        total = len(starts)
        if len(table) != len(counts) * DIGEST_SIZE or not len(lengths) == len(ats) == len(shares) == total:
            raise ValueError("the columns are not of one length")
        if sum(counts) != total or (counts and min(counts) < 1):
            raise ValueError("the objects do not have the ranges")
        names = self.names()
        if not all(map(lt, names, islice(names, 1, None))):
            raise ValueError("the objects are not in order")
        ends = list(map(add, starts, lengths))
        if total and (min(lengths) < 1 or min(shares) < 1 or max(ends) > _MAX_GRAIN):
            raise ValueError("a range is empty, too far out, or in no start")
        # Where a range begins before the one before it ends, another object must begin.
        if not set(compress(count(1), map(gt, ends, islice(starts, 1, None)))).issubset(accumulate(counts)):
            raise ValueError("the ranges of an object overlap, or are not in order")

    @classmethod
    def of(cls, accesses: Iterable[Access]) -> "Accesses":
        """Take accesses in any order.

        ``ValueError`` for one that cannot be: no grains, overlapping another; ``LimitError`` for more than ``MAX_ACCESSES``.
        """
        if isinstance(accesses, Accesses):
            return accesses
        rows = sorted(accesses)
        if len(rows) > MAX_ACCESSES:
            raise LimitError(f"{len(rows)} accesses: a profile holds {MAX_ACCESSES}")
        counts: dict[bytes, int] = {}
        for name, start, end, at, share in rows:
            if len(name) != DIGEST_SIZE or start % GRAIN or end % GRAIN or not 0 <= start < end <= _MAX_GRAIN * GRAIN:
                raise ValueError(f"object {name.hex()}: bytes {start} to {end} are no grains of it")
            if not 0 <= at <= MAX_AT or not 0 < share <= EVERY_START:
                raise ValueError(f"object {name.hex()}: time {at} or share {share} is out of range")
            counts[name] = counts.get(name, 0) + 1
        return cls(
            b"".join(counts),
            counts=array("I", counts.values()),
            starts=array("I", [row.start // GRAIN for row in rows]),
            lengths=array("I", [(row.end - row.start) // GRAIN for row in rows]),
            ats=array("I", [row.at for row in rows]),
            shares=array("H", [row.share for row in rows]),
        )

    @property
    def object_count(self) -> int:
        """How many objects they are of."""
        return len(self.counts)

    @property
    def total_bytes(self) -> int:
        """How many bytes they are of, as grains."""
        return sum(self.lengths) * GRAIN

    def names(self) -> list[bytes]:
        """Return the objects' digests, ascending."""
        table = self.table
        return [table[at : at + DIGEST_SIZE] for at in range(0, len(table), DIGEST_SIZE)]

    def __len__(self) -> int:
        """Count them."""
        return len(self.starts)

    def __iter__(self) -> Iterator[Access]:
        """Yield them in the order of need."""
        owners = list(chain.from_iterable(map(repeat, self.names(), self.counts)))
        starts, lengths, ats, shares = self.starts, self.lengths, self.ats, self.shares
        for index in self._in_order():
            start = starts[index] * GRAIN
            yield Access(owners[index], start, start + lengths[index] * GRAIN, ats[index], shares[index])

    @overload
    def __getitem__(self, index: int) -> Access: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Access]: ...

    def __getitem__(self, index: int | slice) -> Access | Sequence[Access]:
        """Return the access that is needed as number ``index``, or some of them. To look at all of them, iterate."""
        if isinstance(index, slice):
            return tuple(self)[index]
        return next(islice(self, range(len(self))[index], None))

    def _in_order(self) -> "array[int]":
        """Return the ranges' numbers in the order of need. Ranges of one moment stay as they are: by object and start."""
        if self._order is None:
            self._order = array("I", sorted(range(len(self.ats)), key=self.ats.__getitem__))
        return self._order

    def __eq__(self, other: object) -> bool:
        """Equal to any sequence of the same accesses in the order of need."""
        if isinstance(other, Accesses):
            return (
                self.table == other.table
                and self.counts == other.counts
                and self.starts == other.starts
                and self.lengths == other.lengths
                and self.ats == other.ats
                and self.shares == other.shares
            )
        if isinstance(other, tuple):
            return len(self) == len(other) and tuple(self) == other
        return NotImplemented

    def __hash__(self) -> int:
        """As the tuple of them."""
        return hash(tuple(self))

    def __repr__(self) -> str:
        return f"<{len(self)} accesses of {self.object_count} objects>"


NO_ACCESSES: Final = Accesses.of(())
"""Those of a start that read nothing."""
