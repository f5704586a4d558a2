"""What the daemon counts, as ``stats`` shows it. The names are part of the interface."""

import os
from dataclasses import dataclass
from pathlib import Path

from imagefs.cache.counters import ReadCounters
from imagefs.cache.disk import DiskCounters, DiskTier
from imagefs.cache.link import LinkCounters
from imagefs.cache.ram import RamCache
from imagefs.fuse.forest import Forest
from imagefs.fuse.guard import Requests
from imagefs.mount.table import MountTable

_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the figures are."""

    counters: ReadCounters
    link: LinkCounters
    ram: RamCache
    disk: DiskTier | None
    requests: Requests
    forest: Forest
    table: MountTable


def memory() -> tuple[int, int]:
    """Return this process's resident bytes, and how many of them are mapped files."""
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * _PAGE, int(fields[2]) * _PAGE


def stats(sources: Sources) -> dict[str, object]:
    """Return all figures; those of tiers and ways that this version does not have are 0."""
    counters, requests, link, disk = sources.counters, sources.requests, sources.link, sources.disk
    landed = disk.counters if disk is not None else DiskCounters()
    return {
        "fuse_requests": dict(sorted(requests.counts.items())),
        "bytes_read": {"ram": counters.ram_bytes, "ssd": counters.ssd_bytes, "store": counters.fetched_bytes, "tree": counters.tree_bytes},
        "store_gets": link.store_gets,
        "store_bytes": link.store_bytes,
        "retried_gets": link.retried_gets,
        "failed_gets": link.failed_gets,
        "frames_fetched": counters.frames_fetched,
        "prefetch_bytes": 0,
        "prefetch_used_bytes": 0,
        "verify_failures": counters.verify_failures,
        "failed_requests": requests.failed,
        "internal_errors": requests.internal_errors,
        "hedged_gets": link.hedged_gets,
        "breaker_opens": link.breaker_opens,
        "objects_complete": disk.complete if disk is not None else 0,
        "ssd_bytes": disk.held if disk is not None else 0,
        "ssd_landed_bytes": landed.landed_bytes,
        "ssd_not_landed_bytes": landed.not_landed_bytes,
        "ssd_evicted_bytes": landed.evicted_bytes,
        "ssd_write_errors": landed.write_errors,
        "ssd_damaged_files": landed.damaged_files,
        "ram_bytes": sources.ram.used,
        "ram_evicted_bytes": sources.ram.evicted,
        "worker_restarts": 0,
        "rss_bytes": memory()[0],
        "index_bytes": sum(slot.image.index_bytes for slot in sources.forest.slots.values()),
        "mounts": mounts(sources),
    }


def mounts(sources: Sources) -> list[dict[str, object]]:
    """Return what is mounted."""
    listed = []
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
            }
        )
    return listed
