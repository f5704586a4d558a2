"""``imagefs snapshot push``, ``pull`` and ``rm``: into the store, onto this host, and out of the store."""

import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from imagefs_cli import output
from imagefs_cli.options import Invocation, command, complete_directory, complete_ref
from imagefs_cli.progress import progress_bar

if TYPE_CHECKING:
    from collections.abc import Callable

    from imagefs.config import Config
    from imagefs.convert.stages import Progress
    from imagefs.store.base import ObjectStore
    from snapshotstore.checkpoint.base import Engine
    from snapshotstore.manifest import Record
    from snapshotstore.repository import PushReport

_POLL: Final = 0.1
_TRIES: Final = 5


# -- push ---------------------------------------------------------------------------------------------------------------------------------


@command("push", short_help="Store a checkpoint that an engine has made.")
@click.argument("directory", metavar="DIR", shell_complete=complete_directory)
@click.argument("ref")
@click.option("--engine", required=True, type=click.Choice(["runsc", "criu"]), help="Which engine has made it, on this host.")
@click.option("--lineage", metavar="NAME", help="Whose pages it may share: those of one app. By default the name in REF.")
@click.option("--image", metavar="REF", shell_complete=complete_ref, help="The image that was the program's root.")
@click.option("--flag", "flags", metavar="TEXT", multiple=True, help="What the engine has to be told again at a restore; repeatable.")
@click.option("--jobs", type=click.IntRange(1, 256), default=None, help="Threads that compress (default: the number of processors).")
@click.option("--level", type=click.IntRange(1, 19), default=1, show_default=True, help="The zstd level of new memory.")
@click.option("--recheck", is_flag=True, help="Verify what the store has already, and write again what is damaged.")
def push_command(
    invocation: Invocation,
    directory: str,
    ref: str,
    *,
    engine: str,
    lineage: str | None,
    image: str | None,
    flags: tuple[str, ...],
    jobs: int | None,
    level: int,
    recheck: bool,
) -> None:
    """Store the checkpoint in DIR as a snapshot, and name it REF.

    DIR is what the engine has written: with --image-path of `runsc checkpoint` (and --compression=none), with --images-dir of `criu dump`;
    or a directory that has that below engine/, and beside it what else belongs to the program, such as its writable layer below layer/.

    What the snapshot needs of a host is taken from this one, so push where the checkpoint was made. Pages that the lineage has are not
    stored again. Interrupted, it goes on where it was when it is run again.

    Where `imagefs snapshot verify` has found damage, --recheck heals it: nothing that the store has is relied on then before it was read.
    """
    import signal

    from imagefs.memory import settle_converter
    from imagefs.store.refs import Ref, resolve
    from snapshotstore.handmade import folder_of
    from snapshotstore.manifest import UNTOLD
    from snapshotstore.repository import push
    from snapshotstore.runner.engines import Engines

    name = Ref.parse(ref)
    folder = folder_of(Path(directory), engine)
    _, found = Engines(invocation.config().runtime).working(engine)[0]
    # Ended politely, it cleans up as after Ctrl-C: by default nothing of ours would run.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    settle_converter()
    store = invocation.store(create=True, private=True)  # a snapshot is a core dump
    try:
        record = _record(found, lineage or name.name, UNTOLD if image is None else resolve(store, image), flags)
        with progress_bar(invocation) as progress:
            jobs = jobs or len(os.sched_getaffinity(0))
            report = push(store, Path(directory), record, name, folder=folder, jobs=jobs, level=level, recheck=recheck, progress=progress)
    finally:
        store.close()
    if invocation.wants_json:
        output.print_json(asdict(report))
    else:
        _print(report)


def _record(engine: "Engine", lineage: str, image: str, flags: tuple[str, ...]) -> "Record":
    """Return the record of a program that was frozen on this host: what it may have looked at here is what it needs."""
    from snapshotstore import compat
    from snapshotstore.manifest import UNTOLD, Oci, Record, Runtime, key_of

    here = compat.collect([engine])
    return Record(
        runtime=Runtime(engine=engine.name, version=engine.version, format=engine.format, exact=engine.is_exact, flags=flags),
        cpu=compat.cpu_needed(here),
        kernel=here.kernel,
        oci=Oci(image=image, spec=UNTOLD),
        lineage=lineage,
        key=key_of(engine=engine.name, image=image, lineage=lineage),
        created=time.time(),
    )


def _print(report: "PushReport") -> None:
    output.pairs(
        [
            ("snapshot", f"{report.ref}  {report.manifest}"),
            ("files", f"{report.files:,} of {output.size(report.bytes_logical)}"),
            (
                "memory",
                f"{output.size(report.memory_bytes)}: {output.size(report.zero_bytes)} zero, {output.size(report.known_bytes)} known",
            ),
            ("stored", f"{output.size(report.new_bytes)} in {report.packs_new:,} new packs"),
            *([("healed", f"{report.healed:,} that were damaged in the store")] if report.healed else []),
            ("seconds", "  ".join(f"{stage} {seconds:.2f}" for stage, seconds in report.seconds.items())),
        ]
    )
    for note in report.notes:
        output.say(note)


# -- pull ---------------------------------------------------------------------------------------------------------------------------------


@command("pull", short_help="Bring all of a snapshot to this host.")
@click.argument("ref", shell_complete=complete_ref)
def pull_command(invocation: Invocation, ref: str) -> None:
    """Make this host warm for snapshot REF: all of it comes to the SSD tier, verified. A restore needs no pull, and is faster after one.

    A daemon is started if there is none, and brings it. It goes on when this command is interrupted; what is here is not fetched again.
    """
    from imagefs_cli.snapshot_show import fit_of, host_of
    from snapshotstore import compat
    from snapshotstore.repository import inspect

    begun = time.monotonic()
    store: ObjectStore = invocation.store()
    try:
        snapshot = inspect(store, ref)
    finally:
        store.close()
    fit = fit_of(compat.match(snapshot.record, host_of(invocation)))
    with progress_bar(invocation) as progress:
        done = _pulled(invocation.config(), ref, progress)
    if invocation.wants_json:
        result = {"ref": ref, "manifest": done["manifest"], "bytes": done["content"], "fetched": done["fetched"], **fit}
        output.print_json(result | {"seconds": round(time.monotonic() - begun, 3)})
        return
    output.say(f"{ref}: {output.size(done['content'])} are here, {output.size(done['fetched'])} of it came now")
    for why in fit["why_not"]:
        output.say(f"it cannot be restored here: {why}")


def _pulled(config: "Config", ref: str, progress: "Callable[[Progress], None] | None") -> dict[str, Any]:
    """Have all of it brought, and return how that ended; raise what prevented it."""
    from imagefs.convert.stages import Progress
    from imagefs.daemon import client
    from imagefs.errors import DaemonError

    # By its ref: so the host knows it by that when the store is away.
    at = client.warm(config, ref=ref)
    manifest = at["manifest"]
    fetched, tries = 0, _TRIES
    while not at["is_over"]:
        if progress is not None:
            progress(Progress("pull", at["here"], at["content"]))
        time.sleep(_POLL)
        before = at["fetched"]
        at = client.warm(config, manifest=manifest, begin=False)
        if not at["known"]:
            # Another process serves now. What the one before has fetched is here, but for what it had not written yet.
            fetched, tries = fetched + before, tries - 1
            if not tries:
                raise DaemonError(f"the daemon that brings {ref} ended {_TRIES} times", hint="its log says why")
            at = client.warm(config, manifest=manifest)
    at["fetched"] += fetched
    _check(ref, at)
    return at


def _check(ref: str, at: dict[str, Any]) -> None:
    from imagefs.errors import IntegrityError, StoreError, StoreFullError

    bounds = "`imagefs cache status` shows what bounds the SSD tier"
    if at["is_too_large"]:
        raise StoreFullError(f"{ref} cannot be kept on this host: {at['problem']}", hint=bounds)
    lacking = at["content"] - at["here"]
    here = f"{output.size(at['here'])} of {output.size(at['content'])} of {ref} are here"
    if at["damaged"]:
        raise IntegrityError(f"{here}: {at['problem']}", hint=f"`imagefs snapshot verify {ref}` says what is damaged")
    if at["problem"]:
        raise StoreError(f"{here}: {at['problem']}", hint="run it again: it goes on where it was")
    if lacking > 0:
        raise StoreFullError(f"{here}: the SSD tier has no room for the rest", hint=bounds)


# -- rm -----------------------------------------------------------------------------------------------------------------------------------


@command("rm", short_help="Remove a ref of a snapshot.")
@click.argument("ref", shell_complete=complete_ref)
def rm_command(invocation: Invocation, ref: str) -> None:
    """Remove REF of a snapshot. Its content stays in the store: other refs, mounts and members of its lineage may use it.

    With its last ref a snapshot leaves its lineage: what is pushed from then on does not refer to its pages any more.
    """
    from imagefs.store.refs import Ref
    from snapshotstore.listing import remove

    name = Ref.parse(ref)
    store = invocation.store()
    try:
        removed = remove(store, name)
    finally:
        store.close()
    left = [str(one) for one in removed.left]
    if invocation.wants_json:
        output.print_json({"ref": str(name), "manifest": removed.manifest, "left": left, "forgotten": removed.forgotten})
    elif left:
        output.say(f"removed {name}; the snapshot is still {', '.join(left)}")
    else:
        output.say(f"removed {name}; its content stays in the store, as {removed.manifest[:12]}")
