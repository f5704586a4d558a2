"""What is said of a Start beside what happened: which image and host it is of, by which label, and what was known of it before.

What does not live here: what is in a document (``imagefs.cache.starts``), and when one is written (``recording``).
"""

import os
from pathlib import Path
from typing import Final

from imagefs.cache.image import Image
from imagefs.cache.starts import Facts, Start
from imagefs.daemon.prefetching import Followed
from imagefs.format import optimized
from imagefs.format.profile import Profile
from imagefs.mount.table import MountRecord

_GPUS: Final = Path("/proc/driver/nvidia/gpus")


def facts_of(image: Image, record: MountRecord, label: str, *, watched: bool) -> Facts:
    """Return what holds of a mount from its beginning. Reads a few small files."""
    manifest = image.manifest
    return Facts(
        image.name,
        record.ref,
        record.mountpoint,
        record.mode,
        label,
        gpu=_gpu(),
        watched=watched,
        host={"kernel": os.uname().release, "cpus": os.cpu_count() or 1},
        image={"files": manifest.files, "bytes": manifest.bytes},
    )


def add_known(start: Start, image: Image, followed: Followed | None) -> None:
    """Add what the image is like, and what was prefetched for it. Takes a while where much was touched: for a thread."""
    start.facts.image["stored"] = _stored(image)
    start.facts.optimized = _optimized(image)
    if followed is not None:
        profile = followed.profile
        start.facts.profile = {
            "starts": profile.starts,
            "accesses": len(profile.accesses),
            "bytes": followed.content,
            "stored": followed.stored,
            "key": profile.key._asdict(),
        }
        start.profiled = _shares(profile, start)


def _stored(image: Image) -> int:
    """Return the bytes of the packs that an image's map names."""
    return sum(image.objects.pack(number).size for number in range(image.objects.pack_count))


def _gpu() -> str:
    """Return the model of the first GPU that NVIDIA's driver knows; "" if there is none."""
    try:
        for folder in sorted(_GPUS.iterdir()):
            for line in (folder / "information").read_text(errors="replace").splitlines():
                name, _, value = line.partition(":")
                if name.strip() == "Model":
                    return value.strip()
    except OSError:
        pass
    return ""


def _optimized(image: Image) -> dict[str, object] | None:
    """Return what an optimized image was made from, and what was expected of that."""
    found = optimized.read(image.manifest.annotations)
    if found is None:
        return None
    before, after = found.before, found.after
    gain = {"gets_before": before.gets, "gets_after": after.gets, "bytes_before": before.stored, "bytes_after": after.stored}
    return {"from": found.origin, "expected_gain": gain}


def _shares(profile: Profile, start: Start) -> dict[bytes, int]:
    """Return in what share of starts each object is touched, at most, of those that a Start has touched."""
    touched = {key for key, _, _ in start.files if isinstance(key, bytes)}
    columns, shares, at = profile.columns, dict[bytes, int](), 0
    for name, count in zip(columns.names(), columns.counts, strict=True):
        if name in touched:
            shares[name] = max(columns.shares[at : at + count])
        at += count
    return shares
