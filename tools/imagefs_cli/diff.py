"""``imagefs diff``: what two images have that is not the same.

Invariants: nothing is kept of what was found but, for ``--json``, the text of the document, and that in a file past a megabyte: so it is
printed whole or, where a tree turns out to be damaged, not at all.
"""

import datetime
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import click

from imagefs_cli import output
from imagefs_cli.options import Invocation, command, complete_ref

if TYPE_CHECKING:
    from imagefs.format.difference import Change
    from imagefs.format.erofs_reader import Tree
    from imagefs.format.manifest import Manifest
    from imagefs.store.base import ObjectStore

_DIFFERENT: Final = 1
_IN_MEMORY: Final = 1024 * 1024
_PIECE: Final = 64 * 1024


@command("diff", short_help="Show how two images differ.")
@click.argument("first", metavar="A", shell_complete=complete_ref)
@click.argument("second", metavar="B", shell_complete=complete_ref)
def diff_command(invocation: Invocation, first: str, second: str) -> int:
    """Show how image B differs from image A, path by path.

    Compares what a program sees: which paths there are, and of each its type, mode, owner, time, attributes, content, target and other
    names; and what a container is run with: platform, environment, command, user and the like. How an image is stored makes no difference,
    nor where it came from.

    Ends with 0 if there is no difference, and with 1 if there is one, as diff(1) does.
    """
    from imagefs.format.difference import differences
    from imagefs.store.images import get_manifest
    from imagefs.store.refs import resolve

    store = invocation.store()
    try:
        names = [resolve(store, text) for text in (first, second)]
        here, there = (get_manifest(store, name) for name in names)
        settings = _settings(here, there)
        head = {"a": {"ref": first, "manifest": names[0]}, "b": {"ref": second, "manifest": names[1]}, "settings": settings}
        if here.tree == there.tree:
            return _tell(invocation, head, iter(()))
        with _trees(store, here, there) as (one, other):
            return _tell(invocation, head, differences(one, other))
    finally:
        store.close()


@contextmanager
def _trees(store: "ObjectStore", *manifests: "Manifest") -> "Iterator[list[Tree]]":
    """Open the trees of images, from files that are gone when this process is."""
    import mmap
    import tempfile
    from pathlib import Path

    from imagefs.format.erofs_reader import Tree
    from imagefs.store.images import fetch_blob_to

    found = []
    with tempfile.TemporaryDirectory(prefix="imagefs-diff-") as scratch:
        for number, manifest in enumerate(manifests):
            path = Path(scratch) / str(number)
            fetch_blob_to(store, manifest.tree.digest, manifest.tree.size, path)
            with path.open("rb") as file:
                found.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            path.unlink()
    yield [Tree(mapped) for mapped in found]


def _settings(here: "Manifest", there: "Manifest") -> dict[str, list[object]]:
    """Return what differs of that which a container is run with: before and after, by name."""
    import msgspec

    before, after = (_runtime(manifest.config) for manifest in (here, there))
    found = {
        name: [before.get(name), after.get(name)] for name in sorted(before.keys() | after.keys()) if before.get(name) != after.get(name)
    }
    if here.platform != there.platform:
        found["platform"] = [msgspec.to_builtins(manifest.platform) for manifest in (here, there)]
    return found


def _runtime(config: dict[str, Any]) -> dict[str, Any]:
    found = config.get("config")
    return found if isinstance(found, dict) else {}


def _tell(invocation: Invocation, head: dict[str, Any], changes: "Iterator[Change]") -> int:
    """Print all differences; return the exit code."""
    tell = _tell_json if invocation.wants_json else _tell_text
    return _DIFFERENT if tell(head, changes) else 0


def _tell_text(head: dict[str, Any], changes: "Iterator[Change]") -> bool:
    counts: dict[str, int] = {}
    for name, (before, after) in head["settings"].items():
        click.echo(output.plain(f"setting  {name}: {before} -> {after}"))
        counts["settings"] = counts.get("settings", 0) + 1
    for change in changes:
        path = os.fsdecode(change.path)
        told = "".join(f"  {said(name, *pair)}" for name, pair in change.fields.items())
        click.echo(output.plain(f"{change.what:8} {path}{told}"))
        counts[change.what] = counts.get(change.what, 0) + 1
    output.say(", ".join(f"{count:,} {what}" for what, count in counts.items()) or "no difference")
    return bool(counts)


def said(name: str, before: Any, after: Any) -> str:
    """Say a field's values to a person. Content is only said to differ: nobody reads digests."""
    if name == "content":
        return name
    if name == "xattrs":
        return f"xattrs {', '.join(sorted({os.fsdecode(key) for key in (*before, *after)}))}"
    show = _SHOWN.get(name, _plain)
    return f"{name} {show(before)} -> {show(after)}"


def _plain(value: Any) -> str:
    return os.fsdecode(value) if isinstance(value, bytes) else str(value)


def _time(nanoseconds: int) -> str:
    try:
        moment = datetime.datetime.fromtimestamp(nanoseconds // 10**9, datetime.UTC)
    except (OverflowError, ValueError, OSError):
        return f"{nanoseconds} ns"
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{nanoseconds % 10**9:09}Z"


_SHOWN: Final[dict[str, Callable[[Any], str]]] = {
    "mode": lambda mode: f"{mode:04o}",
    "owner": lambda owner: f"{owner[0]}:{owner[1]}",
    "device": lambda device: f"{device[0]}:{device[1]}",
    "mtime": _time,
}


def _tell_json(head: dict[str, Any], changes: "Iterator[Change]") -> bool:
    """Print one document: a change a line, so that it can be read as it comes."""
    import json
    import tempfile

    counts = {"added": 0, "removed": 0, "changed": 0}
    with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY, mode="w+", encoding="ascii") as file:
        file.write(json.dumps(head)[:-1] + ', "changes": [')
        for number, change in enumerate(changes):
            counts[change.what] += 1
            row = {"path": os.fsdecode(change.path), "change": change.what, "fields": values(change.fields)}
            file.write((",\n" if number else "\n") + json.dumps(row))
        different = bool(head["settings"]) or any(counts.values())
        file.write("\n], " + json.dumps(counts | {"different": different})[1:] + "\n")
        file.seek(0)
        while piece := file.read(_PIECE):
            click.echo(piece, nl=False)
    return different


def values(fields: dict[str, Any]) -> dict[str, Any]:
    """Return fields as JSON holds them: names as text, modes in octal, as they are typed."""

    def value(name: str, found: Any) -> Any:
        if name in {"mode", "owner", "device"}:
            return _SHOWN[name](found)
        if isinstance(found, list | tuple):
            return [value("", item) for item in found]
        return os.fsdecode(found) if isinstance(found, bytes) else found

    return {name: [value(name, before), value(name, after)] for name, (before, after) in fields.items()}
