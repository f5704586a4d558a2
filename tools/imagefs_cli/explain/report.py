"""What ``imagefs explain --json`` prints: an analysis as one document. Names that are here stay. Pure."""

from dataclasses import asdict
from typing import Any

from imagefs.format.start import KINDS, SHARE_ALL, STORE, TIERS
from imagefs_cli.explain import waits
from imagefs_cli.explain.analysis import STEPS, Analysis, FileUse, Step, Sum, outcome


def document(found: Analysis) -> dict[str, Any]:
    """Return the analysis of a start. Times are in microseconds since the mount, or for so long; bytes of content unless ``stored``."""
    start = found.start
    return {
        "manifest": start.manifest,
        "ref": start.ref,
        "mountpoint": start.mountpoint,
        "mode": start.mode,
        "label": start.label,
        "entry": start.entry,
        "began": start.began,
        "ended": start.ended,
        "watched": start.watched,
        "lost": {"opens": start.lost.opens, "reads": start.lost.reads, "gets": start.lost.gets},
        "advice": {"code": found.verdict.code, "sentence": found.verdict.sentence, "gain": found.verdict.gain},
        "before_us": found.before_us,
        "length_us": found.length_us,
        "critical_path": {
            "program_us": found.program_us,
            "waits": dict(zip(waits.KINDS, found.path, strict=True)),
            "count": len(found.steps),
            "for_the_store": sum(start.reads[step.read].tier == STORE for step in found.steps),
            "longest": [_step(found, step) for step in longest(found)],
        },
        "total": found.total.as_dict(),
        "tiers": {name: total.as_dict() for name, total in zip(TIERS, found.tiers, strict=True)},
        "native_opens": found.native_opens,
        "profile": {
            "used": None if start.profile is None else {"starts": start.profile.starts, "bytes": start.profile.bytes},
            "reads": {name: total.as_dict() for name, total in zip(waits.HELP, found.help, strict=True)},
        },
        "bytes": asdict(found.bytes),
        "link": asdict(found.link),
        "processes": [
            {"pid": process.pid, "command": process.command, "parent": process.parent, **total.as_dict()}
            for process, total in zip(start.processes, found.processes, strict=False)
        ],
        "directories": [{"path": path, **total.as_dict()} for path, total in sorted(found.directories.items(), key=_heaviest)],
        "files": [_file(found, use) for use in found.files],
        "gets": [_get(found, index) for index in range(len(start.gets))],
    }


def longest(found: Analysis, most: int = STEPS) -> list[Step]:
    """Return the longest waits of the critical path, in the order of the longest first."""
    return sorted(found.steps, key=lambda step: (-step.length_us, step.at_us))[:most]


def _heaviest(item: tuple[str, Sum]) -> tuple[int, str]:
    return -item[1].path_us, item[0]


def _step(found: Analysis, step: Step) -> dict[str, Any]:
    read = found.start.reads[step.read]
    return {
        "at_us": step.at_us,
        "length_us": step.length_us,
        "process": read.process,
        "file": read.file,
        "path": found.start.files[read.file].path,
        "start": read.start,
        "end": read.end,
        "tier": TIERS[read.tier],
        "get": read.get,
        "waits": dict(zip(waits.KINDS, step.parts, strict=True)),
    }


def _file(found: Analysis, use: FileUse) -> dict[str, Any]:
    file = found.start.files[use.index]
    return {
        "path": file.path,
        "object": file.object,
        "size": file.size,
        "profiled": round(file.profiled / SHARE_ALL, 4),
        "process": use.process,
        "first_us": use.first_us,
        "opens": use.opens,
        "native_opens": use.native,
        "touched": use.touched,
        "fetched": None if file.fetched < 0 else file.fetched,
        "reads_by_tier": {name: use.tiers[tier] for tier, name in enumerate(TIERS) if use.tiers[tier]},
        "reads_by_profile": {name: use.help[help_] for help_, name in enumerate(waits.HELP) if use.help[help_]},
        **use.sum.as_dict(),
    }


def _get(found: Analysis, index: int) -> dict[str, Any]:
    get, use = found.start.gets[index], found.gets[index]
    return {
        "pack": found.start.packs[get.pack] if get.pack >= 0 else "",
        "start": get.start,
        "end": get.end,
        "content": get.content,
        "kind": KINDS[get.kind],
        "outcome": outcome(found.start, index),
        "queued_us": get.queued,
        "sent_us": get.sent,
        "first_us": get.first,
        "arrived_us": get.arrived,
        "decoded_us": get.decoded,
        "decode_cpu_us": get.decode_cpu,
        "verify_cpu_us": get.verify_cpu,
        "promoted_us": get.promoted,
        "attempts": get.attempts,
        "readers": use.readers,
        "wait_us": use.wait_us,
        "path_us": use.path_us,
    }
