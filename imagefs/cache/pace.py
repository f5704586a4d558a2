"""How many GETs at once: what the link gives decides. Pure: the time is an argument.

The limit is found by trying. An *epoch* is one GET a place, 16 at least, measured while more wanted to enter than could: its score is the
bytes that arrived a second, each GET counted as ``GET_COST`` bytes more so that small GETs do not look like a slow link. After an epoch,
the limit is raised (or lowered) for another one, and the two scores are compared:

- more GETs must pay: one half more that brings less than 5 % more is taken back. They are not tried at all where each might then take
  longer than ``slow`` seconds: on a slow link that would only make GETs run into their time;
- fewer GETs must cost nothing: one third less that loses more than 2 % is taken back.

A step that holds is followed by another one the same way; after one that does not, the limit rests for ``HOLD`` seconds and then goes the
other way. The first steps double. A store that asks for less (429, 503) or a link on which everything stalls halves the limit at once, but
not twice for GETs that were under way together.

Invariants: the limit is between ``LEAST`` and ``most``; it grows only while it is what holds GETs back; it changes by a trial, a
halving, or a restart, and by nothing else.
"""

from typing import Final

START: Final = 8
LEAST: Final = 2

HOLD: Final = 3.0
"""Seconds for which the limit rests after a step that did not hold, or a halving."""

GET_COST: Final = 256 * 1024
"""What a GET costs beside its bytes, in bytes."""

_GAIN: Final = 0.10  # of what a raise could bring at most, so much must come
_LOSS: Final = 0.06  # of what a cut could lose at most, so much may go
_EPOCH_MIN: Final = 16


class Pace:
    """The limit, and what was measured to find it. Belongs to the trio thread."""

    __slots__ = (
        "_base",
        "_count",
        "_delivered",
        "_factor",
        "_halved",
        "_hold",
        "_most",
        "_seconds",
        "_settle",
        "_since",
        "_slow",
        "_up",
        "_work",
        "limit",
    )

    def __init__(self, most: int, *, slow: float) -> None:
        """``most``, at least ``LEAST``, bounds the limit; ``slow`` is how many seconds a GET may take for more of them to be tried."""
        self._most = most
        self._slow = slow
        self.limit = min(START, most)
        # The trial under way: the limit before it, and what that scored.
        self._base: tuple[int, float] | None = None
        self._up = True
        self._factor = 2.0
        self._hold = self._delivered = self._halved = float("-inf")
        # The epoch under way: GETs that do not count yet; of those that do the number, work and seconds; and since when.
        self._settle = self.limit
        self._count = self._work = 0
        self._seconds = self._since = 0.0

    def delivered(self, size: int, began: float, now: float, *, full: bool) -> None:
        """Take in a GET begun at ``began`` that brought ``size`` bytes. ``full``: others wait to enter."""
        self._delivered = now
        if not full:
            # The limit held nobody back, so this epoch says nothing. What was tried stays: it is not used.
            if self._base is not None:
                self._up = not self._up
            self._base = None
            self._measure(now, settle=0)
        elif self._settle:
            # These began when the limit was another one.
            self._settle -= 1
            self._since = now
        else:
            self._work += size + GET_COST
            self._seconds += now - began
            self._count += 1
            if self._count >= max(_EPOCH_MIN, self.limit) and now > self._since:
                self._judge(self._work / (now - self._since), now)

    def throttled(self, began: float, now: float) -> bool:
        """Halve, because a GET begun at ``began`` was told that it is too much; return whether the limit changed."""
        return self._halve(now) if began >= self._halved else False

    def stalled(self, began: float, now: float) -> bool:
        """Halve, because a GET begun at ``began`` took too long, unless others arrived meanwhile: then it was one connection."""
        alone = self._delivered <= (began + now) / 2
        return self._halve(now) if alone and began >= self._halved else False

    def restart(self) -> None:
        """Begin anew, because what was measured before an outage says little."""
        self.limit = min(START, self.limit)
        self._begin(factor=2.0, hold=float("-inf"))

    # -- what was measured ----------------------------------------------------------------------------------------------------------

    def _begin(self, *, factor: float, hold: float) -> None:
        self._base = None
        self._up = True
        self._factor = factor
        self._hold = hold
        self._measure(0.0, settle=self.limit)

    def _measure(self, now: float, *, settle: int) -> None:
        self._count = 0
        self._work = 0
        self._seconds = 0.0
        self._since = now
        self._settle = settle

    def _judge(self, score: float, now: float) -> None:
        """End an epoch."""
        before = self.limit
        if self._base is not None and not self._holds(score):
            self.limit = self._base[0]
            self._turn(now)
        elif self._base is not None or now >= self._hold:
            self._try(score, now)
        self._measure(now, settle=before if self.limit != before else 0)

    def _holds(self, score: float) -> bool:
        assert self._base is not None
        limit, base = self._base
        change = self.limit / limit - 1
        return score >= base * (1 + (_GAIN if change > 0 else _LOSS) * change)

    def _try(self, score: float, now: float) -> None:
        """Take the next step from a limit that scored so."""
        limit = self.limit
        aim = int(limit * self._factor) if self._up else int(limit / self._factor)
        if self._up:
            raised = min(self._most, max(limit + 1, aim))
            seconds = self._seconds / self._count * raised / limit
            self.limit = raised if seconds <= self._slow else limit
        else:
            self.limit = max(LEAST, min(limit - 1, aim))
        if self.limit == limit:
            self._turn(now)
        else:
            self._base = (limit, score)

    def _turn(self, now: float) -> None:
        self._base = None
        self._up = not self._up
        self._factor = 1.5
        self._hold = now + HOLD

    def _halve(self, now: float) -> bool:
        before = self.limit
        self._halved = now
        self.limit = max(LEAST, before // 2)
        self._begin(factor=1.5, hold=now + HOLD)
        self._settle = before
        return self.limit != before
