"""What the host tiers count: plain integers, added to by the trio thread alone.

A lock or an ``observe()`` a request would cost more than the request. Threads hand their figures back with their results. What does not
live here: the shape in which figures are shown (``imagefs.daemon.metrics``).
"""

from dataclasses import dataclass


@dataclass(slots=True)
class ReadCounters:
    """Figures since the daemon started.

    ``ram_bytes`` and ``fetched_bytes`` are bytes answered to readers: found in RAM, or after a wait for the store. ``store_gets`` and
    ``store_bytes`` are the ranged GETs that brought frames and the bytes they moved; ``verify_failures`` counts frames whose bytes did not
    have their digest, ``failed_reads`` reads answered with EIO.
    """

    ram_bytes: int = 0
    fetched_bytes: int = 0
    tree_bytes: int = 0
    store_gets: int = 0
    store_bytes: int = 0
    verify_failures: int = 0
    failed_reads: int = 0
    frames_fetched: int = 0
    evicted_bytes: int = 0
