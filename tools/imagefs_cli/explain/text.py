"""An analysis for a terminal of 100 columns: what to do, where the time went, and who waited for it, most important first. Pure."""

import time
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Final

from imagefs.format.start import SSD, STORE, TIERS
from imagefs_cli.explain import waits
from imagefs_cli.explain.analysis import Analysis, FileUse, Sum
from imagefs_cli.explain.report import longest
from imagefs_cli.explain.verdict import seconds
from imagefs_cli.output import size

WIDTH: Final = 100
_BAR: Final = 20
_FOLDERS: Final = 8

NAMES: Final = ("queue", "first byte", "transfer", "decode", "verify", "disk", "daemon")
"""The kinds of waits, as people are told."""

MEANS: Final = (
    "waits for a turn to ask the store",
    "waits for the store's answer to begin",
    "waits for its bytes",
    "waits for zstd",
    "waits for BLAKE3",
    "waits for the SSD tier",
    "the daemon's own work: requests, threads",
)
HELPED: Final = ("not needed", "in time", "late", "not fetched", "not in it", "no profile")
"""What a profile did, as people are told: in the order of ``waits.HELP``."""


def lines(found: Analysis, rows: int = 10) -> list[str]:
    """Return what is printed. ``rows``: of the tables of waits and of files."""
    text = [*head(found), "", *wrapped(found.verdict.sentence)]
    if found.verdict.gain:
        text += wrapped(found.verdict.gain)
    text += ["", *_where(found)]
    if found.total.reads or found.native_opens:
        text += ["", *_tiers(found), "", *_link(found)]
    if found.steps:
        text += ["", *_longest(found, rows), "", *_folders(found), "", *_files(found, rows)]
    return text


def head(found: Analysis) -> list[str]:
    """Say which start it is."""
    start = found.start
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(min(start.began, 253402300799)))
    about = [
        f"{start.ref or start.manifest[:12]} at {start.mountpoint}",
        f"{start.mode} mode",
        when,
        f"label {start.label}" if start.label else "",
    ]
    said = [cut(", ".join(part for part in about if part), WIDTH)]
    if start.entry:
        command = f"  {' '.join(start.entry)}"
        said.append(command if len(command) <= WIDTH else f"{command[: WIDTH - 3].rstrip()}...")
    notes = []
    if start.ended == "running":
        notes.append("it is still going on")
    if start.mode == "kernel" and not start.watched:
        notes.append("what the kernel served by itself was not seen")
    if lost := start.lost.opens + start.lost.reads + start.lost.gets:
        notes.append(f"{lost:,} events found no room")
    if notes:
        said.append(f"  ({'; '.join(notes)})")
    return said


def wrapped(sentence: str, indent: str = "  ") -> list[str]:
    """Return a sentence in lines."""
    import textwrap

    return textwrap.wrap(sentence, WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def _where(found: Analysis) -> list[str]:
    """Say what the start's length consists of."""
    length = found.length_us
    rows = [("program", found.program_us, "its own time, and other waits")]
    rows += [(name, part, means) for name, part, means in zip(NAMES, found.path, MEANS, strict=True)]
    before = f", which came {seconds(found.before_us)} after the mount" if found.before_us >= length // 50 else ""
    said = [f"{seconds(length)} from the first access to the last{before}:"]
    for name, part, means in rows:
        if part and 200 * part >= length:
            bar = "#" * max(1, round(_BAR * part / length))
            said.append(f"  {name:10}  {seconds(part):>8}  {round(100 * part / length):>3} %  {bar:{_BAR}}  {means}"[:WIDTH].rstrip())
    if found.steps:
        stored = [step.length_us for step in found.steps if found.start.reads[step.read].tier == STORE]
        middle = f", {seconds(median(stored))} each in the middle" if stored else ""
        said.append(
            f"  {len(found.steps):,} waits one after the other, {len(stored):,} of them for the store{middle}; "
            f"{seconds(longest(found, 1)[0].length_us)} at most"
        )
    return said


def _tiers(found: Analysis) -> list[str]:
    rows = [("kernel", f"{found.native_opens:,} opens", "", "", "")] if found.native_opens else []
    for tier in reversed(range(len(TIERS))):
        total = found.tiers[tier]
        if total.reads:
            rows.append(
                (
                    TIERS[tier].upper() if tier <= SSD and tier else TIERS[tier],
                    f"{total.reads:,} reads",
                    size(total.bytes),
                    seconds(total.wait_us),
                    seconds(total.path_us),
                )
            )
    said = columns(("FROM", "", "BYTES", "WAITED", "ON THE PATH"), rows, right={1, 2, 3, 4})
    profile = found.start.profile
    told = [f"{name} {seconds(total.path_us)} ({total.reads:,})" for name, total in zip(HELPED, found.help, strict=True) if total.reads]
    made = f"of {profile.starts} starts, {size(profile.bytes)}" if profile is not None else "none"
    return [*said, *wrapped(f"Profile: {made}. Waits on the path, and reads: {', '.join(told) or 'none'}", "")]


def _link(found: Analysis) -> list[str]:
    moved, link = found.bytes, found.link
    if not link.gets:
        return ["Nothing was fetched."]
    kinds = ", ".join(f"{name} {size(count)}" for name, count in moved.by_kind.items() if count)
    share = ""
    if moved.touched_of_fetched is not None and moved.content:
        share = f", {100 * moved.touched_of_fetched // moved.content} % of it touched"
    rate = f" at {size(link.bytes_per_second)}/s while they came" if link.bytes_per_second else ""
    latency = f", {seconds(link.latency_us)} to a first byte" if link.latency_us is not None else ""
    return [
        *wrapped(f"{link.gets:,} GETs brought {size(moved.stored)} ({kinds}){rate}{latency}", ""),
        *wrapped(f"{size(moved.content)} of content{share}; {size(moved.touched)} were touched in all", ""),
    ]


def _longest(found: Analysis, rows: int) -> list[str]:
    table: list[tuple[str, ...]] = []
    for step in longest(found, rows):
        if table and step.length_us * 1000 < found.length_us:
            break
        read = found.start.reads[step.read]
        table.append(
            (
                seconds(step.length_us),
                _mostly(step.parts),
                TIERS[read.tier],
                _who(found, read.process),
                seconds(step.at_us),
                file_name(found, read.file),
            )
        )
    return columns(("WAITED", "FOR", "TIER", "WHO", "AT", "FILE"), table, right={0, 4})


def _files(found: Analysis, rows: int) -> list[str]:
    table = []
    for use in sorted(found.files, key=lambda use: (-use.sum.path_us, -use.sum.wait_us, use.index))[:rows]:
        if not use.sum.wait_us:
            break
        fetched = found.start.files[use.index].fetched
        table.append(
            (
                seconds(use.sum.path_us),
                f"{use.sum.reads:,}",
                _mostly(use.sum.parts),
                _helped(use),
                size(use.touched),
                size(fetched) if fetched >= 0 else "-",
                file_name(found, use.index),
            )
        )
    return columns(("ON THE PATH", "READS", "FOR", "PROFILE", "TOUCHED", "FETCHED", "FILE"), table, right={0, 1, 4, 5})


def _folders(found: Analysis) -> list[str]:
    table = [
        (seconds(total.path_us), seconds(total.wait_us), f"{total.reads:,}", _mostly(total.parts), path)
        for path, total in heaviest_folders(found)
    ]
    return columns(("ON THE PATH", "WAITED", "READS", "FOR", "BELOW"), table, right={0, 1, 2})


def heaviest_folders(found: Analysis, most: int = _FOLDERS) -> list[tuple[str, Sum]]:
    """Return directories that together have most of the waits, deeper ones where those of one have most of its: at most ``most``."""
    below: dict[str, list[str]] = {}
    for path in found.directories:
        if path not in {"/", ""}:
            parent = path.rpartition("/")[0] or ("/" if path.startswith("/") else "")
            below.setdefault(parent, []).append(path)
    weight = {path: total.wait_us for path, total in found.directories.items()}
    chosen: list[str] = [path for path in ("/", "") if path in weight]
    while chosen:
        chosen.sort(key=lambda path: -weight[path])
        for place, path in enumerate(chosen):
            inner = [folder for folder in below.get(path, ()) if weight[folder] >= weight[path] // 20]
            if inner and len(chosen) - 1 + len(inner) <= most and 4 * sum(weight[folder] for folder in inner) >= 3 * weight[path]:
                chosen[place : place + 1] = inner
                break
        else:
            break
    return [(path, found.directories[path]) for path in sorted(chosen, key=lambda path: -found.directories[path].path_us) if weight[path]]


def _mostly(parts: waits.Parts) -> str:
    """Name what a wait was for most of all."""
    return NAMES[max(range(len(parts)), key=lambda kind: parts[kind])] if any(parts) else "-"


def _helped(use: FileUse) -> str:
    """Name the worst that a profile did for a file."""
    return next((HELPED[help_] for help_ in reversed(range(len(HELPED))) if use.help[help_]), "-")


def _who(found: Analysis, process: int) -> str:
    if process < 0:
        return "-"
    command = found.start.processes[process].command.split(" ", 1)[0].rpartition("/")[2]
    return cut(command or str(found.start.processes[process].pid), 12)


def file_name(found: Analysis, index: int) -> str:
    """Name a file: by its path, or where that is not known by its object."""
    file = found.start.files[index]
    return file.path or (f"object {file.object[:16]}" if file.object else "a tiny file")


def cut(text: str, width: int) -> str:
    """Leave out the beginning of what is too long, which of a path says least."""
    return text if len(text) <= width else f"...{text[3 - width :]}"


def columns(heads: Sequence[str], rows: Iterable[Sequence[str]], *, right: set[int]) -> list[str]:
    """Return rows in columns under a head, the last one cut to fit. ``right``: the columns that are numbers."""
    table = [tuple(heads), *(tuple(row) for row in rows)]
    if len(table) == 1:
        return []
    widths = [max(len(row[column]) for row in table) for column in range(len(heads))]
    if len(heads) - 1 not in right:
        widths[-1] = max(16, WIDTH - sum(widths[:-1]) - 2 * (len(heads) - 1))
    said = []
    for row in table:
        cells = [cut(cell, width) for cell, width in zip(row, widths, strict=True)]
        cells = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        said.append("  ".join(cells).rstrip())
    return said
