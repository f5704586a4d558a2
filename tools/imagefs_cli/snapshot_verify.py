"""``imagefs snapshot verify``: all of a snapshot is read from the store, and compared with what it should be."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

import click

from imagefs_cli import output
from imagefs_cli.options import Invocation, command, complete_ref
from imagefs_cli.progress import progress_bar

if TYPE_CHECKING:
    from imagefs.convert.stages import Progress
    from imagefs.errors import ImageFSError
    from imagefs.store.base import ObjectStore
    from snapshotstore.listing import Snapshot
    from snapshotstore.verifying import Verifier

_JOBS_MAX: Final = 8
_JOBS_MIN: Final = 4

_HEALING: Final = (
    "make it again: `imagefs snapshot push` or `create` with --recheck, or for a service `imagefs snapshot run --fresh`, writes again what "
    "is damaged"
)


@command("verify", short_help="Read all of a snapshot from the store, and verify it.")
@click.argument("ref", required=False, shell_complete=complete_ref)
@click.option("--all", "everything", is_flag=True, help="All snapshots in the store; what they share is read once.")
@click.option("--jobs", type=click.IntRange(1, 64), default=None, help="Threads that read and verify.")
def verify_command(invocation: Invocation, ref: str | None, *, everything: bool, jobs: int | None) -> int:
    """Read every frame of snapshot REF from the store, and compare each with its digest.

    What is damaged is named, with the files that it is of. Nothing of this host's cache counts. Ends with 5 if something is damaged or
    missing.

    Nothing is repaired: that takes the content. `imagefs snapshot push` and `create` with --recheck heal what they make again; so does
    `imagefs snapshot run` for a service, when that cannot be restored, and with --fresh.
    """
    from imagefs.errors import IntegrityError
    from snapshotstore.repository import inspect
    from snapshotstore.verifying import Verifier

    if everything == (ref is not None):
        raise click.UsageError("name a snapshot, or say --all")
    store = invocation.store()
    rows: list[dict[str, Any]] = []
    begun = time.monotonic()
    try:
        with Verifier(store, jobs=jobs or _jobs()) as verifier, progress_bar(invocation) as progress:
            if ref is not None:
                rows.append(_verify(store, verifier, inspect(store, ref), progress))
            else:
                rows += _verify_all(store, verifier, progress)
    finally:
        store.close()
    ok = not any(row["damage"] for row in rows)
    if invocation.wants_json:
        output.print_json({"ok": ok, "snapshots": rows, "seconds": round(time.monotonic() - begun, 3)})
    else:
        _print(rows)
    return 0 if ok else IntegrityError.exit_code


def _jobs() -> int:
    """Return how many threads wait for a store or decode: more than there are cores, as most of them wait."""
    return min(_JOBS_MAX, max(_JOBS_MIN, 2 * len(os.sched_getaffinity(0))))


def _verify(
    store: "ObjectStore", verifier: "Verifier", snapshot: "Snapshot", progress: "Callable[[Progress], None] | None"
) -> dict[str, Any]:
    from snapshotstore.contents import open_index

    row = _row(snapshot.ref, snapshot.name)
    with _damage(row):
        found = verifier.verify(open_index(store, snapshot), progress)
        row |= {"frames": found.frames, "bytes": found.bytes, "stored_bytes": found.stored_bytes}
        row["damage"] = [{"what": one.what, "why": one.why, "files": list(one.files)} for one in found.damage]
    return row


def _verify_all(store: "ObjectStore", verifier: "Verifier", progress: "Callable[[Progress], None] | None") -> Iterator[dict[str, Any]]:
    """Verify each snapshot once, however many refs it has. One whose record this version cannot read is passed over, and told."""
    from imagefs.errors import UnsupportedError
    from snapshotstore.listing import Snapshot, listing

    found = listing(store)
    refs: dict[str, list[str]] = {}
    for listed in found.snapshots:
        refs.setdefault(listed.name, []).append(str(listed.ref))
    for listed in {listed.name: listed for listed in found.snapshots}.values():
        text = " ".join(refs[listed.name])
        if listed.record is not None:
            yield _verify(store, verifier, Snapshot(listed.name, text, listed.manifest, listed.record), progress)
        else:
            assert listed.problem is not None  # one of the two is there
            yield _unread(text, listed.name, listed.problem, passed=isinstance(listed.problem, UnsupportedError))
    for ref, error in found.unreadable:
        yield _unread(str(ref), "", error, passed=isinstance(error, UnsupportedError))


def _row(ref: str, digest: str) -> dict[str, Any]:
    return {"ref": ref, "manifest": digest, "frames": 0, "bytes": 0, "stored_bytes": 0, "damage": [], "problem": None}


def _unread(ref: str, digest: str, error: "ImageFSError", *, passed: bool) -> dict[str, Any]:
    row = _row(ref, digest)
    if passed:
        return row | {"problem": error.message}
    return row | {"damage": [{"what": "manifest", "why": error.message, "files": []}]}


@contextlib.contextmanager
def _damage(row: dict[str, Any]) -> Iterator[None]:
    """Note what is wrong with an index: without it nothing can be told of files."""
    from imagefs.errors import IntegrityError, NotFoundError

    try:
        yield
    except (IntegrityError, NotFoundError) as error:
        row["damage"] = [{"what": "index", "why": error.message, "files": []}]


def _print(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        if row["problem"] is not None:
            output.say(f"{row['ref']} was passed over: {row['problem']}")
            continue
        state = f"{len(row['damage']):,} things are DAMAGED" if row["damage"] else "all as it should be"
        click.echo(output.plain(f"{row['ref']}: {row['frames']:,} frames, {output.size(row['bytes'])}: {state}"))
        for one in row["damage"]:
            click.echo(output.plain(f"  {one['what']}: {one['why']}"))
            for path in one["files"]:
                click.echo(output.plain(f"    in {path}"))
    if any(row["damage"] for row in rows):
        output.say(f"hint: {_HEALING}")
