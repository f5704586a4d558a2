"""Two starts beside each other: what became shorter, and what longer. Pure."""

from typing import Any

from imagefs_cli.explain import waits
from imagefs_cli.explain.analysis import Analysis
from imagefs_cli.explain.report import document
from imagefs_cli.explain.text import NAMES, columns, cut, file_name, head, wrapped
from imagefs_cli.explain.verdict import seconds
from imagefs_cli.output import size


def both(found: Analysis, other: Analysis) -> dict[str, Any]:
    """Return the documents of two starts, and what the first has more of than the second."""
    return {
        "start": document(found),
        "other": document(other),
        "difference": {
            "length_us": found.length_us - other.length_us,
            "program_us": found.program_us - other.program_us,
            "waits": {name: one - two for name, one, two in zip(waits.KINDS, found.path, other.path, strict=True)},
            "store_bytes": found.bytes.stored - other.bytes.stored,
            "gets": found.link.gets - other.link.gets,
        },
    }


def lines(found: Analysis, other: Analysis, rows: int = 10) -> list[str]:
    """Return what is printed for two starts. ``rows``: of the table of files."""
    text = ["this start:", *head(found), "the other:", *head(other), "", *wrapped(found.verdict.sentence)]
    if found.verdict.gain:
        text += wrapped(found.verdict.gain)
    pairs = [("length", found.length_us, other.length_us), ("program", found.program_us, other.program_us)]
    pairs += [(name, one, two) for name, one, two in zip(NAMES, found.path, other.path, strict=True) if one or two]
    table = [(name, seconds(one), seconds(two), _signed(one - two)) for name, one, two in pairs]
    table.append(("moved", size(found.bytes.stored), size(other.bytes.stored), size(found.bytes.stored - other.bytes.stored)))
    table.append(("GETs", f"{found.link.gets:,}", f"{other.link.gets:,}", f"{found.link.gets - other.link.gets:+,}"))
    text += ["", *columns(("", "THIS START", "THE OTHER", "DIFFERENCE"), table, right={1, 2, 3})]
    changed = _files(found, other)[:rows]
    if changed:
        files = [(seconds(one), seconds(two), _signed(one - two), name) for name, one, two in changed]
        text += ["", *columns(("THIS START", "THE OTHER", "DIFFERENCE", "FILE"), files, right={0, 1, 2})]
    return [cut(line, 100) for line in text]


def _files(found: Analysis, other: Analysis) -> list[tuple[str, int, int]]:
    """Return files with their waits on each path, those that differ most first."""
    here, there = (_by_name(analysis) for analysis in (found, other))
    pairs = [(name, here.get(name, 0), there.get(name, 0)) for name in {*here, *there}]
    return sorted((pair for pair in pairs if pair[1] != pair[2]), key=lambda pair: (-abs(pair[1] - pair[2]), pair[0]))


def _by_name(found: Analysis) -> dict[str, int]:
    waited: dict[str, int] = {}
    for use in found.files:
        name = file_name(found, use.index)
        waited[name] = waited.get(name, 0) + use.sum.path_us
    return waited


def _signed(us: int) -> str:
    return f"{'+' if us > 0 else '-' if us < 0 else ''}{seconds(abs(us))}"
