"""How far a profile is to be trusted, by what readers do, and how much of the link it may have: pure, no I/O.

Two things can be wrong with a profile. It may be of a program that this start is not: then what is fetched because of it takes the link
from what readers wait for. And it may be right for a while and wrong then. So it is not judged once:

- **how much may be under way** follows at once. It begins with ``START`` bytes as stored and grows by what arrives, until what is sent
  takes ``SLACK`` seconds longer than the link's latency: more of it would only be a longer queue, for readers too. It halves with each
  frame that a reader misses and the profile does not know: under a profile of another program a reader has most of the link for itself
  after a few of them;
- **whether anything is asked for** follows what readers have wanted of late: while less than a quarter of that was known, and it is
  enough to tell (``ENOUGH`` frames, and an ``UNSEEN``th of all that were fetched), nothing is. What readers go on to want is still
  compared, and when half of it was known, ``ENOUGH`` frames at least, it goes on.

The bound by all that was fetched is there for kernel mode: what has landed is read without anybody here seeing it, and a few misses that
are seen are no reason to doubt the rest. Where the kernel tells of opens, an open of what has landed counts as a frame that was wanted.

Of who runs it may be known that no start of it is in the profile. That is a reason for doubt before there is any other, unless what readers
have wanted says that it helps nevertheless: the same program may be started with other arguments.
"""

from typing import Final

MIB: Final = 1024 * 1024
START: Final = 2 * MIB
LEAST: Final = 1 * MIB
MOST: Final = 64 * MIB
"""Bytes as stored that are under way at once, at first, at least, and at most: the last is 1 GB/s for 64 ms."""

GET_COST: Final = 128 * 1024
"""What a GET counts beside its bytes: a hundred small ones keep a store and two cores as busy as a large one."""

SLACK: Final = 0.1
"""Seconds that what is sent may take longer than a small GET."""

ENOUGH: Final = 4
"""Frames that readers must have missed, of which the profile knew nothing, before it is doubted."""

UNSEEN: Final = 64
_LATE: Final = 128
"""Frames that readers have wanted after which what they wanted before counts half."""

_LATENCY: Final = 0.05  # as long as it is not known


class Trust:
    """What is known of one profile."""

    __slots__ = ("_cut", "_doubted", "_fetched", "_known", "_unknown", "window")

    def __init__(self) -> None:
        """Begin with some trust."""
        self.window = START
        """Bytes as stored that may be under way."""
        # When it was cut last because of the link.
        self._cut = float("-inf")
        # In frames, the latter two those of late.
        self._fetched = 0
        self._known = 0
        self._unknown = 0
        self._doubted = False

    @property
    def is_doubted(self) -> bool:
        """Whether nothing more is to be fetched as things are."""
        return self._doubted

    def fetched(self, frames: int) -> None:
        """Note that so many frames were fetched because the profile names them."""
        self._fetched += frames

    def arrived(self, stored: int, sent: float, now: float, latency: float | None) -> None:
        """Note that a GET of so many bytes, which was sent at ``sent``, is there at ``now``; both in seconds.

        ``latency`` is the link's, in seconds; None if it is not known.
        """
        if sent < self._cut:
            # It was sent when more was under way than now, and says nothing of how that is.
            return
        good = (_LATENCY if latency is None else latency) + SLACK
        if now - sent <= good:
            self.window = min(MOST, self.window + stored)
        else:
            self.window = max(LEAST, int(self.window * max(0.5, good / (now - sent))))
            self._cut = now

    def known(self, frames: int) -> None:
        """Note that a reader wanted frames that the profile knows: that were fetched because of it, or would have been."""
        self._known += frames
        self._judge()

    def unknown(self, frames: int) -> None:
        """Note that a reader had to wait for frames that the profile does not know."""
        self._unknown += frames
        self.window = max(LEAST, self.window >> min(frames, 6))
        self._judge()

    def strange(self, frames: int) -> None:
        """Note that frames are wanted that the profile does not know, and that nobody waits for."""
        self._unknown += frames
        self._judge()

    def doubt(self) -> None:
        """Take the profile for that of another program, unless it has proved to help."""
        self._doubted = self._doubted or not self._is_good()

    def renew(self) -> None:
        """Begin anew with another profile: what may be under way is the link's matter, and stays."""
        self._fetched = self._known = self._unknown = 0
        self._doubted = False

    def _is_good(self) -> bool:
        return self._known >= max(ENOUGH, self._unknown)

    def _judge(self) -> None:
        known, unknown = self._known, self._unknown
        if self._doubted:
            self._doubted = not self._is_good()
        else:
            self._doubted = unknown >= max(ENOUGH, self._fetched // UNSEEN) and 3 * known < unknown
        if known + unknown > _LATE:
            self._known //= 2
            self._unknown //= 2
