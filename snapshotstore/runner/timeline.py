"""How replicas started: one small file for each, beside its log, by which ``imagefs explain`` and ``imagefs stats`` tell of restores.

Bounded by who prunes the logs. A file that cannot be read is one that is not there.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

SUFFIX: Final = ".json"
CALL: Final = "call"
"""The stage that is the method's own."""

_FILE_MAX: Final = 1 << 20


class Timeline(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One start, and its call: when it ``began`` (seconds since the epoch), how it ``started``, why not otherwise, seconds by stage.

    ``snapshot`` is the manifest that was restored, in hex, or None; ``failed`` says why a restore failed, if one did.
    """

    began: float
    target: str
    started: str
    reason: str
    engine: str
    snapshot: str | None
    stages: dict[str, float]
    failed: str = ""


_decoder: Final = msgspec.json.Decoder(Timeline)


def keep(log: Path, timeline: Timeline) -> None:
    """Write it down beside a log. That it cannot be is no reason for a call to fail."""
    path = log.with_suffix(SUFFIX)
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.encode(timeline))


def kept(logs: Path) -> Iterator[Timeline]:
    """Give all that is kept in a directory of logs, the newest first."""
    found = []
    with contextlib.suppress(OSError):
        found = [(path.stat().st_mtime, path) for path in logs.glob(f"*{SUFFIX}")]
    for _, path in sorted(found, reverse=True):
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            if path.stat().st_size <= _FILE_MAX:
                yield _decoder.decode(path.read_bytes())


def restore_of(logs: Path, manifest: str, began: float, seconds: float) -> Timeline | None:
    """Return the restore of the snapshot ``manifest``, in hex, that began nearest to ``began``, and at most ``seconds`` from it."""
    restores = [one for one in kept(logs) if one.snapshot == manifest and abs(one.began - began) <= seconds]
    return min(restores, key=lambda one: abs(one.began - began), default=None)


def measured(logs: Path, manifest: str) -> tuple[int, float | None]:
    """Return how many restores of the snapshot ``manifest``, in hex, are kept, and the median of what they took; None without any.

    In seconds, from a call to a replica that is ready for it. It is in no record: those are immutable, and each host has its own figures.
    """
    import statistics  # noqa: PLC0415 # which takes longer to load than a call takes to be kept

    ready = [sum(one.stages.values()) - one.stages.get(CALL, 0.0) for one in kept(logs) if one.snapshot == manifest]
    return len(ready), round(statistics.median(ready), 4) if ready else None
