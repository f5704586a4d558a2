"""What the daemon counts: one table, from which ``stats``, the Prometheus text and the table of ``docs/metrics.md`` are made.

Keys and names are part of the interface: they are added to, and neither renamed nor given another meaning. A figure of a tier or a way
that this daemon does not have is 0. All figures are plain numbers that the trio thread reads; no lock, and nothing that waits.

``python -m imagefs.daemon.metrics docs/metrics.md`` writes the page's table anew. What does not live here: the counting, and
the text for Prometheus (``imagefs.daemon.prometheus``).
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from imagefs.cache.counters import StartCounters, Tally

if TYPE_CHECKING:
    # Not when it runs: `imagefs stats --prometheus`, which a timer starts all day, needs the table and neither pyfuse3 nor LMDB.
    from imagefs.cache.counters import ReadCounters
    from imagefs.cache.disk import DiskTier
    from imagefs.cache.link import LinkCounters
    from imagefs.cache.prefetches import Prefetches
    from imagefs.cache.ram import RamCache
    from imagefs.fuse.forest import Forest
    from imagefs.fuse.guard import Requests
    from imagefs.fuse.readers import Readers
    from imagefs.mount.table import MountTable

COUNTER: Final = "counter"
"""Grows from 0 while the daemon runs."""

GAUGE: Final = "gauge"
"""What is so now."""

BEGIN: Final = "<!-- the table: made by `python -m imagefs.daemon.metrics docs/metrics.md` -->"
END: Final = "<!-- end of the table -->"

_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the figures are.

    ``link_state`` is ``Link.state``: what the link to the store does now. ``restarts`` counts the workers before this one.
    ``readers`` knows what was read of each image; ``prefetches`` what is fetched ahead of that.
    """

    counters: ReadCounters
    link: LinkCounters
    ram: RamCache
    disk: DiskTier | None
    requests: Requests
    forest: Forest
    table: MountTable
    link_state: Callable[[], Mapping[str, object]]
    restarts: int = 0
    readers: Readers | None = None
    prefetches: Prefetches | None = None
    starts: StartCounters = field(default_factory=StartCounters)


@dataclass(frozen=True, slots=True)
class _Now:
    """The sources, and what they say of one moment."""

    sources: Sources
    link: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Metric:
    """One row.

    ``key`` is what ``imagefs stats --json`` calls it, ``name`` what Prometheus does. ``read`` returns the number; a number for each value
    of ``label``, if there is one; or a list, of which Prometheus is told the length. ``unit`` is that of both.
    """

    key: str
    name: str
    kind: str
    unit: str
    meaning: str
    read: Callable[[_Now], object]
    label: str = ""


def memory() -> tuple[int, int]:
    """Return this process's resident bytes, and how many of them are mapped files."""
    fields = Path("/proc/self/statm").read_text(encoding="ascii").split()
    return int(fields[1]) * _PAGE, int(fields[2]) * _PAGE


def mounts(sources: Sources) -> list[dict[str, object]]:
    """Return what is mounted. ``bytes_read`` are the image's, whichever of its mounts they were read through."""
    listed = []
    read = {} if sources.readers is None else sources.readers.by_image()
    for record in sources.table:
        slot = sources.forest.slots.get(record.slot)
        listed.append(
            {
                "mountpoint": record.mountpoint,
                "ref": record.ref,
                "manifest": record.manifest,
                "mode": record.mode,
                "mounted_at": record.mounted_at,
                "files": slot.image.manifest.files if slot else 0,
                "bytes": slot.image.manifest.bytes if slot else 0,
                "open_files": slot.opens if slot else 0,
                "bytes_read": asdict(read.get(record.manifest, Tally())),
            }
        )
    return listed


def _tiers(now: _Now) -> dict[str, int]:
    read = now.sources.counters
    return {"ram": read.ram_bytes, "ssd": read.ssd_bytes, "store": read.fetched_bytes, "tree": read.tree_bytes}


def _disk(read: Callable[[DiskTier], float]) -> Callable[[_Now], float]:
    """Read something of the SSD tier; 0 where there is none."""

    def reading(now: _Now) -> float:
        disk = now.sources.disk
        return 0 if disk is None else read(disk)

    return reading


# fmt: off
# The formatter would give each of these a dozen lines, and nobody would see the table.
METRICS: Final = (
    Metric("fuse_requests", "imagefs_fuse_requests_total", COUNTER, "requests",
           "what the kernel has asked, by operation", lambda now: dict(sorted(now.sources.requests.counts.items())), "op"),
    Metric("failed_requests", "imagefs_fuse_failed_requests_total", COUNTER, "requests",
           "answered EIO for a reason that the log names: bytes that could not be had in time or verified",
           lambda now: now.sources.requests.failed),
    Metric("internal_errors", "imagefs_fuse_internal_errors_total", COUNTER, "requests",
           "answered EIO because of a bug; the log has the traceback", lambda now: now.sources.requests.internal_errors),
    Metric("bytes_read", "imagefs_read_bytes_total", COUNTER, "bytes",
           "answered to readers, by the slowest tier that the request waited for; `tree`: tiny files that the index holds", _tiers, "tier"),
    Metric("frames_fetched", "imagefs_fetched_frames_total", COUNTER, "frames",
           "came from the store and were verified", lambda now: now.sources.counters.frames_fetched),
    Metric("verify_failures", "imagefs_verify_failures_total", COUNTER, "frames",
           "were not what their digest says, from SSD or the store, or could not be read back from SSD; none was shown to a reader",
           lambda now: now.sources.counters.verify_failures),
    Metric("store_gets", "imagefs_store_gets_total", COUNTER, "GETs",
           "sent for packs, each attempt and each hedge counted", lambda now: now.sources.link.store_gets),
    Metric("store_bytes", "imagefs_store_bytes_total", COUNTER, "bytes",
           "of packs that GETs brought, as stored: what a hedge or an attempt given up brings is not in it",
           lambda now: now.sources.link.store_bytes),
    Metric("retried_gets", "imagefs_store_retried_gets_total", COUNTER, "GETs",
           "sent after an attempt that failed", lambda now: now.sources.link.retried_gets),
    Metric("timed_out_gets", "imagefs_store_timed_out_gets_total", COUNTER, "GETs",
           "attempts given up because they took too long", lambda now: now.sources.link.timed_out_gets),
    Metric("failed_gets", "imagefs_store_failed_gets_total", COUNTER, "GETs",
           "that ended in an error, after all their attempts", lambda now: now.sources.link.failed_gets),
    Metric("hedged_gets", "imagefs_store_hedged_gets_total", COUNTER, "GETs",
           "sent a second time because the first was slow", lambda now: now.sources.link.hedged_gets),
    Metric("hedge_wins", "imagefs_store_hedge_wins_total", COUNTER, "GETs",
           "of which the second answered first", lambda now: now.sources.link.hedge_wins),
    Metric("demand_wait_seconds", "imagefs_store_demand_wait_seconds_total", COUNTER, "seconds",
           "that GETs for waiting readers waited for their turn, all together", lambda now: now.sources.link.demand_wait_ms / 1000),
    Metric("breaker_opens", "imagefs_store_breaker_opens_total", COUNTER, "times",
           "the store was found unreachable", lambda now: now.sources.link.breaker_opens),
    Metric("breaker_open", "imagefs_store_breaker_open", GAUGE, "0 or 1",
           "1 while the store counts as unreachable: reads that come now and are not cached fail at once",
           lambda now: int(now.link["breaker"] == "open")),
    Metric("get_concurrency", "imagefs_store_get_concurrency", GAUGE, "GETs",
           "that may be in flight; found by trying what the link gives", lambda now: now.link["concurrency"]),
    Metric("gets_in_flight", "imagefs_store_gets_in_flight", GAUGE, "GETs", "in flight", lambda now: now.link["in_flight"]),
    Metric("prefetch_gets_in_flight", "imagefs_store_prefetch_gets_in_flight", GAUGE, "GETs",
           "of those in flight, the ones that no reader waits for", lambda now: now.link["prefetch_in_flight"]),
    Metric("gets_waiting", "imagefs_store_gets_waiting", GAUGE, "GETs", "that wait for their turn", lambda now: now.link["waiting"]),
    Metric("demand_gets_waiting", "imagefs_store_demand_gets_waiting", GAUGE, "GETs",
           "of those that wait, the ones that readers wait for", lambda now: now.link["demand_waiting"]),
    Metric("abandoned_threads", "imagefs_store_abandoned_threads", GAUGE, "threads",
           "that hang in GETs which were given up", lambda now: now.link["abandoned_threads"]),
    Metric("free_threads", "imagefs_store_free_threads", GAUGE, "threads",
           "that are left for GETs; with none, and none in flight, every fetch fails at once", lambda now: now.link["free_threads"]),
    Metric("prefetch_bytes", "imagefs_prefetch_bytes_total", COUNTER, "bytes",
           "of content that came from the store before a reader waited for them: named by a profile, read ahead, or near what was missed",
           lambda now: now.sources.counters.prefetch_bytes),
    Metric("prefetch_used_bytes", "imagefs_prefetch_used_bytes_total", COUNTER, "bytes",
           "of those, what was read later", lambda now: now.sources.counters.prefetch_used_bytes),
    Metric("profile_bytes", "imagefs_profile_bytes_total", COUNTER, "bytes",
           "of content that came because a profile names it", lambda now: now.sources.counters.profile_bytes),
    Metric("profile_used_bytes", "imagefs_profile_used_bytes_total", COUNTER, "bytes",
           "of those, what was read later through the daemon; what the kernel reads by itself is not seen",
           lambda now: now.sources.counters.profile_used_bytes),
    Metric("profiles_doubted", "imagefs_profiles_doubted_total", COUNTER, "times",
           "a profile was not followed any further, because readers wanted other things than it names",
           lambda now: now.sources.counters.profiles_doubted),
    Metric("prefetches", "imagefs_prefetches", GAUGE, "images",
           "that are being prefetched", lambda now: now.sources.prefetches.running if now.sources.prefetches is not None else 0),
    Metric("completed_bytes", "imagefs_completed_bytes_total", COUNTER, "bytes",
           "of content that came in the background to have images whole on this host",
           lambda now: now.sources.counters.completed_bytes),
    Metric("starts_recording", "imagefs_starts_recording", GAUGE, "mounts",
           "of which it is recorded now what is accessed at first", lambda now: now.sources.starts.running),
    Metric("starts_recorded", "imagefs_starts_recorded_total", COUNTER, "mounts",
           "of which the start was recorded to its end", lambda now: now.sources.starts.recorded),
    Metric("profiles_published", "imagefs_profiles_published_total", COUNTER, "profiles",
           "of starts that the store was given, or that told it nothing new", lambda now: now.sources.starts.published),
    Metric("profiles_waiting", "imagefs_profiles_waiting", GAUGE, "profiles",
           "that wait for the store to take them", lambda now: now.sources.starts.waiting),
    Metric("ram_bytes", "imagefs_ram_bytes", GAUGE, "bytes", "in the RAM tier", lambda now: now.sources.ram.used),
    Metric("ram_limit_bytes", "imagefs_ram_limit_bytes", GAUGE, "bytes",
           "that the RAM tier may have now: what is configured, or less while the host is short of memory",
           lambda now: now.sources.ram.limit),
    Metric("ram_slabs", "imagefs_ram_slabs", GAUGE, "slabs", "in the RAM tier", lambda now: len(now.sources.ram)),
    Metric("ram_evicted_bytes", "imagefs_ram_evicted_bytes_total", COUNTER, "bytes",
           "pushed out of the RAM tier", lambda now: now.sources.ram.evicted),
    Metric("ssd_present", "imagefs_ssd_present", GAUGE, "0 or 1",
           "1 where this daemon has an SSD tier; the log says why one has none", _disk(lambda _: 1)),
    Metric("objects_complete", "imagefs_ssd_complete_files", GAUGE, "files",
           "of the SSD tier that are complete: objects, and frames that small objects share", _disk(lambda disk: disk.complete)),
    Metric("ssd_bytes", "imagefs_ssd_bytes", GAUGE, "bytes", "in the SSD tier", _disk(lambda disk: disk.held)),
    Metric("ssd_limit_bytes", "imagefs_ssd_limit_bytes", GAUGE, "bytes",
           "that the SSD tier may have; 0: as much as there is room", _disk(lambda disk: disk.limit)),
    Metric("ssd_floor_bytes", "imagefs_ssd_floor_bytes", GAUGE, "bytes",
           "that the SSD tier leaves free on its file system", _disk(lambda disk: disk.floor)),
    Metric("ssd_landed_bytes", "imagefs_ssd_landed_bytes_total", COUNTER, "bytes",
           "written to the SSD tier", _disk(lambda disk: disk.counters.landed_bytes)),
    Metric("ssd_not_landed_bytes", "imagefs_ssd_not_landed_bytes_total", COUNTER, "bytes",
           "not kept on SSD because it is slower than the link, full, or fails", _disk(lambda disk: disk.counters.not_landed_bytes)),
    Metric("ssd_completed_files", "imagefs_ssd_completed_files_total", COUNTER, "files",
           "of the SSD tier that became complete", _disk(lambda disk: disk.counters.completed_files)),
    Metric("ssd_evicted_bytes", "imagefs_ssd_evicted_bytes_total", COUNTER, "bytes",
           "that had to go from the SSD tier, or were told to", _disk(lambda disk: disk.counters.evicted_bytes)),
    Metric("ssd_evicted_files", "imagefs_ssd_evicted_files_total", COUNTER, "files",
           "that had to go from the SSD tier, or were told to", _disk(lambda disk: disk.counters.evicted_files)),
    Metric("ssd_write_errors", "imagefs_ssd_write_errors_total", COUNTER, "times",
           "the disk of the SSD tier refused a write", _disk(lambda disk: disk.counters.write_errors)),
    Metric("ssd_damaged_files", "imagefs_ssd_damaged_files_total", COUNTER, "files",
           "that were complete and not what their name says, found when they were sealed, by the scrubber or by `imagefs cache verify`",
           _disk(lambda disk: disk.counters.damaged_files)),
    Metric("ssd_withdrawn_files", "imagefs_ssd_withdrawn_files_total", COUNTER, "files",
           "that were complete, were found damaged by whatever looked, a read too, and were unlinked",
           _disk(lambda disk: disk.counters.withdrawn_files)),
    Metric("ssd_scrubbed_files", "imagefs_ssd_scrubbed_files_total", COUNTER, "files",
           "read back and compared with their names: by the scrubber, by `imagefs cache verify`, and after the machine stopped uncleanly",
           _disk(lambda disk: disk.counters.scrubbed_files)),
    Metric("ssd_scrubbed_bytes", "imagefs_ssd_scrubbed_bytes_total", COUNTER, "bytes",
           "read back for that", _disk(lambda disk: disk.counters.scrubbed_bytes)),
    Metric("ssd_scrub_late_seconds", "imagefs_ssd_scrub_late_seconds", GAUGE, "seconds",
           "that the scrubber is behind: a byte that goes bad on the disk can be served for `scrub_days` and this long",
           _disk(lambda disk: max(0, round(time.time() - disk.scrub_due, 1)))),
    Metric("ssd_suspect", "imagefs_ssd_suspect", GAUGE, "0 or 1",
           "1 while not all is verified of what was there when the machine stopped uncleanly: the kernel is not served the rest natively",
           _disk(lambda disk: int(disk.is_suspect))),
    Metric("ssd_cleared_files", "imagefs_ssd_cleared_files_total", COUNTER, "files",
           "of those, the ones that were found sound", _disk(lambda disk: disk.counters.cleared_files)),
    Metric("worker_restarts", "imagefs_worker_restarts_total", COUNTER, "times",
           "the process that serves was replaced under its mounts, because it died or by `imagefs daemon reload`; what else is counted "
           "begins at 0 then", lambda now: now.sources.restarts),
    Metric("rss_bytes", "imagefs_resident_memory_bytes", GAUGE, "bytes", "of the daemon in memory", lambda _: memory()[0]),
    Metric("index_bytes", "imagefs_index_bytes", GAUGE, "bytes", "of the mounted images' trees and object maps",
           lambda now: sum(slot.image.index_bytes for slot in now.sources.forest.slots.values())),
    Metric("mounts", "imagefs_mounts", GAUGE, "mounts", "there are; in JSON, a list of them", lambda now: mounts(now.sources)),
)
# fmt: on


def stats(sources: Sources) -> dict[str, object]:
    """Return all figures by their keys."""
    now = _Now(sources, sources.link_state())
    return {metric.key: metric.read(now) for metric in METRICS}


def page_table() -> str:
    """Return the table of ``docs/metrics.md``, in Markdown."""
    lines = ["| `stats --json` | Prometheus | type | unit | |", "|---|---|---|---|---|"]
    for metric in METRICS:
        label = "{" + metric.label + "}" if metric.label else ""
        lines.append(f"| `{metric.key}` | `{metric.name}{label}` | {metric.kind} | {metric.unit} | {metric.meaning} |")
    return "\n".join(lines) + "\n"


def renew(page: str) -> str:
    """Return the page with its table as it is now. ``ValueError`` if it does not say where that is."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError("the page does not say where its table begins and ends")
    return f"{before}{begin}\n\n{page_table()}\n{end}{after}"


if __name__ == "__main__":
    _path = Path(sys.argv[1])
    _path.write_text(renew(_path.read_text(encoding="utf-8")), encoding="utf-8")
