"""What the host tiers count: plain integers, added to by the trio thread alone.

A lock or an ``observe()`` a request would cost more than the request. Threads hand their figures back with their results. What does not
live here: the shape in which figures are shown (``imagefs.daemon.metrics``).
"""

from dataclasses import dataclass


@dataclass(slots=True)
class Tally:
    """Bytes that some readers were answered, by tier."""

    ram: int = 0
    ssd: int = 0
    store: int = 0

    def add(self, other: "Tally") -> None:
        """Add what another one has."""
        self.ram += other.ram
        self.ssd += other.ssd
        self.store += other.store


@dataclass(slots=True)
class StartCounters:
    """``running`` Starts now, those ``recorded`` since the daemon started, and what became of profiles.

    ``published`` were sent or told nothing new, ``waiting`` wait for the store, as of when it was last tried.
    """

    running: int = 0
    recorded: int = 0
    published: int = 0
    waiting: int = 0


@dataclass(slots=True)
class ReadCounters:
    """Figures since the daemon started.

    ``ram_bytes``, ``ssd_bytes`` and ``fetched_bytes`` are bytes answered to readers: found in RAM, after a wait for the disk alone, or
    after one for the store; ``tree_bytes`` came out of the tree. ``verify_failures`` counts frames that could not be read or
    did not have their digest, in whichever tier they were found.
    ``prefetch_bytes`` is what came from the store before a reader waited for it, ``prefetch_used_bytes`` what of that was read;
    ``profile_bytes`` and ``profile_used_bytes`` are what of both came because a profile named it, ``completed_bytes`` what came to have
    images whole here. ``profiles_doubted`` counts the times that a profile turned out not to fit.
    """

    ram_bytes: int = 0
    ssd_bytes: int = 0
    fetched_bytes: int = 0
    tree_bytes: int = 0
    verify_failures: int = 0
    frames_fetched: int = 0
    prefetch_bytes: int = 0
    prefetch_used_bytes: int = 0
    profile_bytes: int = 0
    profile_used_bytes: int = 0
    profiles_doubted: int = 0
    completed_bytes: int = 0
