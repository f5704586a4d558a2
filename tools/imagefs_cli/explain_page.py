"""The page that ``imagefs explain --html`` writes: one start, or two beside each other, in one file that fetches nothing.

Invariants: the page is ASCII but for its own assets; whatever comes from a document (names of files and programs are chosen by others) is
in it only inside a compressed, base64-coded block, which the page's script shows as text and nothing else; a content security policy
allows this script and this style, by their digests, and nothing besides: no network, no other script, no frame.

What the page shows is decided in ``explain_assets``, in the browser. Here the documents become columns, which are smaller and quicker to
unpack than rows, and files become one.
"""

import base64
import hashlib
import json
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from operator import sub
from typing import Any, Final

MODULES: Final = (
    *("units.js", "data.js", "waits.js", "coverage.js", "forest.js", "lanes.js", "view.js", "palette.js", "surface.js", "rows.js"),
    *("bars.js", "chart.js", "overview.js", "dom.js", "summary.js", "details.js", "table.js", "input.js", "app.js", "main.js"),
)
"""The page's script, each part before those that import it: browsers load modules of a page in one file only as one script."""

_READS: Final = ("t", "wait", "file", "start", "end", "tier", "process", "get")
_OPENS: Final = ("t", "file", "process", "native")
_GETS: Final = (
    *("queued", "sent", "first", "arrived", "decoded", "decodeCpu", "verifyCpu"),
    *("pack", "start", "end", "content", "kind", "promoted", "attempts"),
)
_TOUCHED: Final = ("file", "start", "end")
_PATH: Final = ("from", "until", "read")
_FROM_ROW_BEFORE: Final = frozenset({"t", "file", "queued", "from", "read"})
"""Columns of which each row is sent as what it differs by from the one before: of 100,000 events that makes a page a third smaller."""

_FROM_COLUMN: Final = {
    "end": "start",
    "until": "from",
    "sent": "queued",
    "first": "sent",
    "arrived": "first",
    "decoded": "arrived",
}
"""Columns that are sent as what they differ by from another one of the same row. ``data.js`` has the same names."""
_HEAD: Final = (
    *("manifest", "ref", "mountpoint", "mode", "label", "entry", "gpu", "began", "seconds", "ended", "watched"),
    *("lost", "host", "image", "optimized", "profile", "stats", "sentence"),
)
_IMPORT: Final = re.compile(r"(?m)^import [^;]*;\n")
_EXPORT: Final = re.compile(r"(?m)^export ")


def page(document: Mapping[str, Any], other: Mapping[str, Any] | None = None) -> str:
    """Return the page of a Start document, compared with ``other`` if it is given.

    Each may have two members that are no part of what was recorded. ``sentence`` is shown above everything else. ``path`` is the critical
    path, as ``[begin_us, end_us, read]`` for each of its waits, in order: with it the page says what the start's length consists of, and
    without it how long was waited.
    """
    starts = [_packed(start) for start in (document, other) if start is not None]
    script, style = _script(), _asset("page.css")
    policy = (
        f"default-src 'none'; script-src {_digest(script)}; style-src {_digest(style)}; img-src data:; base-uri 'none'; form-action 'none'"
    )
    # Separators without spaces, and ASCII: a lone surrogate, which is how Python has a byte that is not UTF-8, survives as an escape.
    data = json.dumps({"starts": starts}, separators=(",", ":")).encode("ascii")
    parts = {"POLICY": policy, "STYLE": style, "SCRIPT": script, "DATA": base64.b64encode(zlib.compress(data, 6)).decode("ascii")}
    return re.sub(r"\{\{([A-Z]+)\}\}", lambda match: parts[match[1]], _asset("page.html"))


def _packed(start: Mapping[str, Any]) -> dict[str, Any]:
    files = start.get("files", [])
    reads, opens = start.get("reads", []), sorted(start.get("opens", []), key=_time)
    order = sorted(range(len(reads)), key=lambda read: _time(reads[read]))
    packed = {
        "head": {name: start[name] for name in _HEAD if name in start},
        "files": {
            "path": [file["path"] for file in files],
            "object": ["" if file["path"] else file.get("object", "")[:16] for file in files],
            **{name: [file.get(name, otherwise) for file in files] for name, otherwise in (("size", 0), ("profiled", 0), ("fetched", -1))},
        },
        "processes": [
            {"pid": process["pid"], "command": process.get("command", ""), "parent": process.get("parent", -1)}
            for process in start.get("processes", [])
        ],
        "packs": [pack[:12] for pack in start.get("packs", [])],
        "reads": _columns(_READS, [reads[read] for read in order]),
        "opens": _columns(_OPENS, opens),
        "gets": _columns(_GETS, start.get("gets", [])),
        "touched": _columns(_TOUCHED, start.get("touched", [])),
    }
    if "path" in start:
        place = {read: number for number, read in enumerate(order)}
        packed["path"] = _columns(_PATH, [(begin, end, place[read]) for begin, end, read in start["path"]])
    return packed


def _time(row: Sequence[int]) -> int:
    return row[0]


def _columns(names: Sequence[str], rows: Iterable[Sequence[int]]) -> dict[str, list[int]]:
    """Return rows as columns, some as differences. What a later version has behind the columns known here is left out."""
    columns: list[list[int]] = [list(column) for column in zip(*rows, strict=False)] or [[] for _ in names]
    found = dict(zip(names, columns, strict=False))
    made = {}
    for name, column in found.items():
        if name in _FROM_ROW_BEFORE:
            made[name] = list(map(sub, column, [0, *column]))
        elif name in _FROM_COLUMN:
            made[name] = list(map(sub, column, found[_FROM_COLUMN[name]]))
        else:
            made[name] = column
    return made


def _script() -> str:
    """Return the modules as one strict script: their imports and exports only say what depends on what."""
    parts = [_EXPORT.sub("", _IMPORT.sub("", _asset(name))) for name in MODULES]
    return '"use strict";\n{\n' + "\n".join(parts) + "}\n"


def _asset(name: str) -> str:
    return resources.files("imagefs_cli").joinpath("explain_assets", name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}'"
