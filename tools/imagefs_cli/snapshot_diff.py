"""``imagefs snapshot diff``: what two snapshots have that is not the same: the record, the files, and the memory page by page."""

import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

import click

from imagefs_cli import diff, output
from imagefs_cli.options import Invocation, command, complete_ref

if TYPE_CHECKING:
    from imagefs.format.difference import Change
    from imagefs.store.base import ObjectStore
    from snapshotstore.contents import File, Index
    from snapshotstore.difference import Pages

_DIFFERENT: Final = 1
_WIDTH: Final = 60


@command("diff", short_help="Show how two snapshots differ.")
@click.argument("first", metavar="A", shell_complete=complete_ref)
@click.argument("second", metavar="B", shell_complete=complete_ref)
def diff_command(invocation: Invocation, first: str, second: str) -> int:
    """Show how snapshot B differs from snapshot A: in its record, in its files, and in its memory, page by page.

    Of pages at one place of a memory file, equal ones are told without reading them, where the store knows. A page that differs has MOVED
    if it is in A's memory elsewhere.

    Ends with 0 if there is no difference in files and memory, and with 1 if there is one.
    """
    from snapshotstore.contents import open_index
    from snapshotstore.difference import record_changes
    from snapshotstore.repository import inspect

    store = invocation.store()
    try:
        here, there = (open_index(store, inspect(store, text)) for text in (first, second))
        changes = _files(here, there)
        memory = _memory(store, here, there)
        record = record_changes(here.snapshot.record, there.snapshot.record)
    finally:
        store.close()
    different = bool(changes) or any(pages.differ for _, pages in memory)
    if invocation.wants_json:
        _tell_json(here, there, {"record": record, "changes": changes, "memory": memory, "different": different})
    else:
        _tell_text(record, changes, memory)
    return _DIFFERENT if different else 0


def _files(here: "Index", there: "Index") -> "list[Change]":
    """Return what differs of the files, but for when they were written: each checkpoint writes all of them anew."""
    from imagefs.format.difference import CHANGED, differences

    found = []
    for change in differences(here.tree, there.tree):
        fields = {name: pair for name, pair in change.fields.items() if name != "mtime"}
        if fields or change.what != CHANGED:
            found.append(change._replace(fields=fields))
    return found


def _memory(store: "ObjectStore", here: "Index", there: "Index") -> "list[tuple[str, Pages]]":
    from snapshotstore.difference import Side, compare

    before, after = _memory_files(here), _memory_files(there)
    both = sorted(before.keys() & after.keys())
    return list(zip(both, compare(Side(store, here), Side(store, there), [(before[path], after[path]) for path in both]), strict=True))


def _memory_files(index: "Index") -> "dict[str, File]":
    from snapshotstore.contents import files

    return {file.path: file for file in files(index.tree) if file.is_memory}


def _tell_json(here: "Index", there: "Index", found: dict[str, Any]) -> None:
    sides = (("a", here), ("b", there))
    document: dict[str, Any] = {name: {"ref": index.snapshot.ref, "manifest": index.snapshot.name} for name, index in sides}
    document["record"] = found["record"]
    document["changes"] = [
        {"path": os.fsdecode(change.path), "change": change.what, "fields": diff.values(change.fields)} for change in found["changes"]
    ]
    document["memory"] = [{"path": path} | asdict(pages) for path, pages in found["memory"]]
    output.print_json(document | {"different": found["different"]})


def _tell_text(record: dict[str, list[Any]], changes: "list[Change]", memory: "list[tuple[str, Pages]]") -> None:
    for name, (before, after) in record.items():
        click.echo(output.plain(f"record   {name}: {output.short(str(before), _WIDTH)} -> {output.short(str(after), _WIDTH)}"))
    for change in changes:
        said = "".join(f"  {diff.said(name, *pair)}" for name, pair in change.fields.items())
        click.echo(output.plain(f"{change.what:8} {os.fsdecode(change.path)}{said}"))
    if memory:
        columns = ("pages", "zero", "equal", "changed", "moved", "added", "removed")
        rows = [[path, *(f"{getattr(pages, name):,}" for name in columns)] for path, pages in memory]
        output.table(["MEMORY", *(name.upper() for name in columns)], rows)
    if not (record or changes or any(pages.differ for _, pages in memory)):
        output.say("no difference")
