"""What commands print: one JSON document, or text for people. Results go to standard output, everything else to standard error.

A mount's command prints too, so nothing is imported here that takes long to load.
"""

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any


def line(text: str, *, err: bool = False) -> None:
    """Print a line at once; nowhere, if the process was started without that stream."""
    stream = sys.stderr if err else sys.stdout
    if stream is not None:
        print(text, file=stream, flush=True)


def print_json(document: "Any") -> None:
    """Print one JSON document, in ASCII: so it is the same whatever the terminal's encoding, and names that are not UTF-8 survive."""
    import json

    line(json.dumps(document, indent=2, default=str))


def plain(text: str) -> str:
    """Return ``text`` with what could steer a terminal escaped: names and annotations come from images that somebody else made."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in "\n\t" else ascii(char)[1:-1] for char in text)


def table(head: "Sequence[str]", rows: "Sequence[Sequence[str]]") -> None:
    """Print rows in columns under a head."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    for row in [head, *rows]:
        line(plain("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()))


def short(text: str, most: int) -> str:
    """Return ``text`` cut to ``most`` characters, with a mark where it was; who wants all of it asks for JSON."""
    return text if len(text) <= most else text[: most - 3] + "..."


def pairs(rows: "Sequence[tuple[str, object]]") -> None:
    """Print names with their values."""
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        line(plain(f"{name.ljust(width)}  {value}"))


def size(count: float) -> str:
    """Say a number of bytes to a person: ``1.3 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def age(seconds: float) -> str:
    """Say how long ago something was to a person: ``3 h``."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def say(text: str) -> None:
    """Tell a person something that is not the result."""
    line(plain(text), err=True)


def on_terminal() -> bool:
    """Say whether a person is watching standard error."""
    return sys.stderr.isatty()
